"""Engine.IO 4 sessions: one per client, carried by HTTP long-polling or by a WebSocket.

Rules
-----
1. What is sent arrives once, in the order of the calls, also across the upgrade from polling.
2. Sending never blocks and never raises. What cannot leave at once is queued; a client that leaves
   more than `Limits.max_queue_bytes` or takes longer than `max_queue_seconds` is closed (1013).
3. A session's messages are handled one after the other, and `on_disconnect` runs once, after them.
4. A client that breaks the protocol loses its session: status 400, or close code 1002 or 1003.

States
------
A session has a lifecycle and a transport; `UPGRADES` has the way from polling to a WebSocket.

    lifecycle                    OPEN                 CLOSING        CLOSED
    send, enqueue, ping          queued or written    dropped        dropped
    close, close_with, too slow  CLOSING              -              -
    abort, WebSocket ended       CLOSED               CLOSED         -
    queue fetched or discarded   -                    CLOSED         -

    transport                    POLLING              PROBING, PROBED    WEBSOCKET
    sent packets go to           the queue            the queue          the WebSocket
    GET                          packets              noop               400
    POST                         handled              handled            400
    WebSocket handshake          PROBING              400                400
    probing WebSocket ended      -                    POLLING            -

Example
-------
    class Echo:
        def on_message(self, session: EngineIOSession, data: str) -> None:
            session.send(EncodedMessage([data]))  # now
            for other in server.sockets.values():
                other.enqueue(news)  # soon, with all else for that client; also an EncodedMessage

        def on_disconnect(self, session: EngineIOSession, reason: str | None) -> None: ...

    server = EngineIOServer()
    server.handler = Echo()  # and server.handle_request is the WSGI application

The protocol: https://socket.io/docs/v4/engine-io-protocol/, whose sections are named below.
"""

import base64
import logging
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

import engineio
from engineio.payload import Payload
from socketio import packet as sio_packet

from ordertrack.errors import MalformedRequest
from ordertrack.server import loop, websocket
from ordertrack.server.counters import counters
from ordertrack.server.loop import Signal, monotonic
from ordertrack.server.websocket import Message, WebSocket
from ordertrack.server.ws_frames import CloseCode, binary_frame, text_frame

if TYPE_CHECKING:
    from ordertrack.sio.engineio_server import EngineIOServer

log = logging.getLogger(__name__)

Reason: Final = engineio.Server.reason  # the arguments of disconnect handlers

# "Packet encoding": the text of a packet begins with its type; bytes are a binary message's data.
Packet = str | bytes
CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = "1", "2", "3", "4", "5", "6"
SEPARATOR: Final = "\x1e"  # of the packets that one request or its answer holds

_PING_FRAME: Final = text_frame(PING)


class State(Enum):
    OPEN = auto()
    CLOSING = auto()  # takes no more packets; the last ones or a close frame are on their way
    CLOSED = auto()


_OPEN: Final = State.OPEN  # looking it up takes a tenth of the time of queueing a packet


class Transport(Enum):
    POLLING = auto()
    PROBING = auto()  # polling, while the client tries a WebSocket
    PROBED = auto()  # polling, and the WebSocket works
    WEBSOCKET = auto()


# "Upgrade": the packets that a probing WebSocket may send. Any other closes it.
UPGRADES: Final[dict[tuple[Transport, Message], Transport]] = {
    (Transport.PROBING, PING + "probe"): Transport.PROBED,
    (Transport.PROBED, PING + "probe"): Transport.PROBED,
    (Transport.PROBED, UPGRADE): Transport.WEBSOCKET,
}


class MalformedPacketError(ValueError):
    """A client sent something that is not an acceptable Socket.IO packet."""


class EncodedMessage:
    """A message in the forms that both transports need, encoded once for all recipients."""

    __slots__ = ("frame", "packets", "size")

    def __init__(self, parts: list[Any]) -> None:
        """`parts` are the Socket.IO packet and, if it is binary, its attachments."""
        self.packets = [MESSAGE + part if isinstance(part, str) else part for part in parts]
        self.frame = b"".join(map(_frame, self.packets))
        self.size = len(self.frame)


def encode_event(name: str, data_json: str) -> EncodedMessage:
    """An event of the default namespace with one argument, which is JSON text already."""
    return EncodedMessage([f'2["{name}",{data_json}]'])


def _frame(packet: Packet) -> bytes:
    """One WebSocket message. See "Packet encoding"."""
    return text_frame(packet) if isinstance(packet, str) else binary_frame(packet)


def _text(packet: Packet) -> str:
    """In the answer to a GET, binary packets become text. See "Packet encoding"."""
    return packet if isinstance(packet, str) else "b" + base64.b64encode(packet).decode()


_DISCONNECT: Final = EncodedMessage([str(sio_packet.DISCONNECT)])  # from the default namespace


@dataclass(slots=True, eq=False)
class _Polling:
    """What a session needs only while requests carry it: first of all a queue for the next GET."""

    packets: deque[tuple[Packet, int]] = field(default_factory=deque)  # each with its size
    size: int = 0
    since: float = 0.0  # when the first was queued, or some were fetched
    ready: Signal = field(default_factory=Signal)  # the waiting GET should look again
    taken: Signal = field(default_factory=Signal)  # packets have been fetched or discarded
    fetching: bool = False  # a GET waits for packets
    posting: bool = False  # a POST's packets are being handled
    heard: bool = True  # since the last ping
    bucket_full_at: float = 0.0  # see Limits.take_tokens
    probe: WebSocket | None = None  # the WebSocket that the session may move to

    def put(self, packet: Packet, size: int) -> None:
        if not self.packets:
            self.since = monotonic()
        self.packets.append((packet, size))
        self.size += size
        counters.queued_bytes += size
        self.ready.set()

    def take(self) -> list[Packet]:
        """Take as many packets as the stock clients accept in one answer.

        The close packet is sent alone, because the JavaScript client acts on it before it has
        looked at the packets in front of it.
        """
        taken: list[Packet] = []
        while self.packets and len(taken) < Payload.max_decode_packets:
            if taken and self.packets[0][0] == CLOSE:
                break
            packet, size = self.packets.popleft()
            taken.append(packet)
            self.size -= size
            counters.queued_bytes -= size
        self.since = monotonic()
        self.taken.set()
        return taken

    def clear(self) -> None:
        counters.queued_bytes -= self.size
        self.packets.clear()
        self.size = 0
        self.taken.set()


@dataclass(slots=True, eq=False, repr=False)
class EngineIOSession:
    """One Engine.IO session, which is also the `websocket.Handler` of its WebSockets."""

    server: "EngineIOServer"
    sid: str  # the Engine.IO session id
    handshake: dict[str, Any] | None  # of the first request, until the client has authenticated
    transport: Transport
    state: State = State.OPEN
    ws: WebSocket | None = None  # None unless the transport is WEBSOCKET
    application: Any = None  # the object that the application keeps for this client
    saved: dict[str, Any] | None = None  # see `EngineIOServer.get_session`
    deadline: float = 0.0  # for authenticating
    has_heartbeat: bool = False  # registered with the heartbeat
    _reason: str | None = None  # for the disconnect handler
    _polling: _Polling | None = None

    def __post_init__(self) -> None:
        if self.transport is Transport.POLLING:
            self._polling = _Polling()

    @property
    def authenticated(self) -> bool:
        """Whether Socket.IO has connected the client to a namespace."""
        return self.handshake is None

    @property
    def alive(self) -> bool:
        """Whether something can still be sent to the client, as far as is known."""
        return self.state is State.OPEN and (self.ws is None or self.ws.alive)

    @property
    def heard(self) -> bool:
        """Whether the client has sent anything since the last ping."""
        if self.ws is not None:
            return self.ws.heard
        return self._polling is None or self._polling.heard

    @heard.setter
    def heard(self, value: bool) -> None:
        if self.ws is not None:
            self.ws.heard = value
        elif self._polling is not None:
            self._polling.heard = value

    @property
    def holds_websocket(self) -> bool:
        """Whether it has a WebSocket, or probes one."""
        return self.transport is not Transport.POLLING

    @property
    def holds_request(self) -> bool:
        """Whether a GET waits for packets."""
        return self._polling is not None and self._polling.fetching

    # Sending --------------------------------------------------------------------------------------

    def enqueue(self, message: EncodedMessage) -> None:
        """Send a message that may go to many, soon, with all else that waits for this client."""
        ws = self.ws
        if ws is not None:
            ws.enqueue(message.frame)
        else:
            for packet in message.packets:
                self._put(packet, message.size)

    def send(self, message: EncodedMessage) -> None:
        """Send a message now."""
        if self.ws is not None:
            self.ws.write(message.frame)
        else:
            self.enqueue(message)

    def answer(self, packet: str) -> None:
        """Send a message that is one Socket.IO packet, in the loop's next turn."""
        if self.ws is not None:
            self.ws.answer(text_frame(MESSAGE + packet))
        else:
            self.enqueue(EncodedMessage([packet]))

    def ping(self) -> None:
        """See "Heartbeat": the server pings, and the client answers."""
        if self.ws is not None:
            self.ws.enqueue(_PING_FRAME)
        else:
            self._put(PING, 1)

    def _put(self, packet: Packet, size: int) -> None:
        polling = self._polling
        if polling is None or self.state is not _OPEN:
            return
        if polling.packets and polling.size + size > self.server.limits.max_queue_bytes:
            self.close_slow()
            return
        polling.put(packet, size)
        self.server.unfetched.add(self)

    # Closing --------------------------------------------------------------------------------------

    def close_with(self, code: int, text: str = "", *, reconnect: bool) -> None:
        """Close the session after what has been sent so far, with a WebSocket close code.

        Without `reconnect` a Socket.IO DISCONNECT goes first: the stock clients reconnect by
        themselves unless they have received one.
        """
        if self.state is not State.OPEN:
            return
        if not reconnect and self.authenticated:
            self.send(_DISCONNECT)
        self._reason = self._reason or Reason.SERVER_DISCONNECT
        if self.ws is not None:
            self.state = State.CLOSING
            self.ws.close(code, text)
        else:
            self._put(CLOSE, 1)
            self._close_polling()

    def close(self, reason: str) -> None:
        """Close the session after what has been sent; the disconnect handler gets `reason`."""
        self._reason = self._reason or reason
        self.close_with(CloseCode.NORMAL, reconnect=True)

    def close_slow(self) -> None:
        """Close a polling session whose client does not fetch its packets, and discard those."""
        counters.slow_closes += 1
        self.discard_queue()
        self._reason = Reason.TRANSPORT_ERROR
        self.close_with(CloseCode.TRY_AGAIN_LATER, reconnect=True)

    def abort(self, reason: str) -> None:
        """Close the session at once, without telling the client."""
        self._reason = self._reason or reason
        if self.ws is not None:
            self.state = State.CLOSED
            self.server.session_closed(self)
            self.ws.abort()
        else:
            self.discard_queue()
            self._close_polling()

    def expire(self) -> None:
        """Called by the heartbeat: no answer to the ping has been read in time."""
        self.read_now()
        if not self.heard:
            self.abort(Reason.PING_TIMEOUT)

    def read_now(self) -> None:
        """Read what has arrived: a busy loop may be behind, and the client is not to blame."""
        if self.ws is not None and self.ws.alive:
            websocket.read_now(self.ws)

    def check_pace(self, now: float) -> None:
        """Called every second while packets wait to be fetched."""
        polling = self._polling
        if polling is not None and now - polling.since > self.server.limits.max_queue_seconds:
            self.close_slow()

    def discard_queue(self) -> None:
        """Discard the packets that wait to be fetched."""
        if self._polling is not None:
            self._polling.clear()
            if self.state is State.CLOSING:
                self.state = State.CLOSED

    def _close_polling(self) -> None:
        """Close a session without a WebSocket; the packets that are left may still be fetched."""
        polling = self._polling
        if polling is None or self.state is not State.OPEN:
            return
        self.state = State.CLOSING if polling.packets else State.CLOSED
        if polling.probe is not None:
            polling.probe.abort()
        polling.ready.set()
        self.server.unfetched.discard(self)
        self.server.session_closed(self)
        if not polling.posting:
            self._spawn_on_disconnect()

    def _spawn_on_disconnect(self) -> None:
        loop.spawn(self.server.handler.on_disconnect, self, self._reason)

    # As the handler of a WebSocket ----------------------------------------------------------------

    def on_open(self, ws: WebSocket) -> None:
        if self._polling is not None:
            self._polling.probe, self.transport = ws, Transport.PROBING
            self.server.probe_opened(ws)
            return
        self.ws = ws
        self.server.session_opened(self)
        ws.answer(text_frame(self.server.open_packet(self.sid, upgrades=False)))

    def on_message_in_loop(self, ws: WebSocket, message: Message) -> bool:
        if message == PONG:
            return True  # the WebSocket has noted that the client was heard
        if ws is not self.ws:
            self._on_probe_message(ws, message)
            return True
        return False

    def on_message(self, ws: WebSocket, message: Message) -> None:
        if isinstance(message, bytes):
            ws.close(CloseCode.UNSUPPORTED_DATA, "binary messages are not supported")
            return
        kind, data = message[:1], message[1:]
        if kind == MESSAGE:
            try:
                self._handle_message(data)
            except MalformedPacketError:
                self.close_with(CloseCode.PROTOCOL_ERROR, "malformed packet", reconnect=True)
        elif kind == CLOSE:
            self.close(Reason.CLIENT_DISCONNECT)
        elif kind == PING:
            ws.write(text_frame(PONG + data))
        elif kind not in (UPGRADE, NOOP):
            ws.close(CloseCode.PROTOCOL_ERROR, "unknown Engine.IO packet")

    def on_close(self, ws: WebSocket, code: int, reason: str) -> None:
        del reason
        if ws is not self.ws:
            self._stop_probing(ws)
            return
        self.state = State.CLOSED
        self.server.session_closed(self)
        if self._reason is None:
            by_client = code in (CloseCode.NORMAL, CloseCode.GOING_AWAY)
            self._reason = Reason.CLIENT_DISCONNECT if by_client else Reason.TRANSPORT_CLOSE
        self.server.handler.on_disconnect(self, self._reason)

    def _handle_message(self, data: str) -> None:
        """Wait until Socket.IO has handled a message. Raises `MalformedPacketError`.

        Another exception is the application's, so it is logged and the session goes on.
        """
        try:
            self.server.handler.on_message(self, data)
        except MalformedPacketError:
            raise
        except Exception:
            log.exception("A Socket.IO handler failed")

    # "Upgrade": a probe, its answer, a noop that ends the waiting GET, the switch -----------------

    def _on_probe_message(self, ws: WebSocket, message: Message) -> None:
        polling = self._polling
        if polling is None or ws is not polling.probe or self.state is not State.OPEN:
            ws.close(CloseCode.NORMAL)
            return
        following = UPGRADES.get((self.transport, message))
        if following is Transport.PROBED:
            ws.write(text_frame(PONG + "probe"))
            self.transport = following
            if polling.fetching:
                polling.ready.set()
        elif following is Transport.WEBSOCKET and not polling.posting:
            # While a POST is being handled, the packets of the WebSocket would overtake its own.
            self.transport, self.ws, self._polling = following, ws, None
            self.server.unfetched.discard(self)
            for packet, _ in polling.packets:
                ws.write(_frame(packet))
            polling.clear()
            polling.ready.set()
        else:
            self._stop_probing(ws)
            ws.close(CloseCode.PROTOCOL_ERROR, "unexpected packet while upgrading")

    def _stop_probing(self, ws: WebSocket) -> None:
        """A WebSocket beside the session has failed: polling goes on."""
        if self._polling is not None and ws is self._polling.probe:
            self._polling.probe, self.transport = None, Transport.POLLING

    # "HTTP long-polling" --------------------------------------------------------------------------

    def open_polling(self) -> None:
        """Begin a session without a WebSocket."""
        self.server.session_opened(self)
        packet = self.server.open_packet(self.sid, upgrades=True)
        self._put(packet, len(packet))

    def fetch(self) -> str:
        """The packets that a GET waits for. Raises `MalformedRequest`, which ends the session."""
        polling = self._polling
        if polling is None or self.transport is not Transport.POLLING:
            return NOOP
        if polling.fetching:
            raise MalformedRequest("Another GET is waiting already")
        polling.heard = polling.fetching = True
        try:
            deadline = monotonic() + self.server.ping_interval + self.server.ping_timeout
            while not polling.packets and self.state is State.OPEN and not self.holds_websocket:
                if not polling.ready.wait(deadline - monotonic()):
                    raise MalformedRequest("No ping was sent in time, so the session is broken")
        finally:
            polling.fetching = False
        packets = polling.take()
        if not polling.packets and polling is self._polling:  # else it has upgraded
            self.server.unfetched.discard(self)
            if self.state is State.CLOSING:
                self.state = State.CLOSED
        return SEPARATOR.join(map(_text, packets)) or NOOP

    def handle(self, payload: str) -> None:
        """Handle the packets of a POST. Raises `MalformedRequest`, which ends the session."""
        polling = self._polling
        assert polling is not None
        if polling.posting:
            # Two at once have no order, and a session's events are handled one after the other.
            raise MalformedRequest("Another POST is being handled already")
        polling.heard = polling.posting = True
        try:
            for packet in payload.split(SEPARATOR):
                # As on a WebSocket, no message is handled while much waits for the client: else the
                # answers to one POST could exceed the queue of a client that fetches at once.
                # `check_pace` bounds the wait.
                while polling.size > self.server.limits.high_watermark:
                    polling.taken.wait()
                self._handle_packet(polling, packet)
        finally:
            polling.posting = False
            if self.state is not State.OPEN:
                self._spawn_on_disconnect()

    def _handle_packet(self, polling: _Polling, packet: str) -> None:
        kind = packet[:1]
        if kind == CLOSE:
            self._reason = self._reason or Reason.CLIENT_DISCONNECT
            self.discard_queue()
            self._close_polling()
            return
        if self.state is not State.OPEN:
            raise MalformedRequest("The session has ended before this packet was handled")
        full_at = self.server.limits.take_tokens(polling.bucket_full_at)
        if full_at is None:
            self.close_with(CloseCode.POLICY_VIOLATION, reconnect=True)
            raise MalformedRequest("Too many messages")
        polling.bucket_full_at = full_at
        if kind == MESSAGE:
            try:
                self._handle_message(packet[1:])
            except MalformedPacketError:
                raise MalformedRequest("Malformed Socket.IO packet") from None
        elif kind not in (PONG, NOOP):
            raise MalformedRequest("Unknown kind of packet")
