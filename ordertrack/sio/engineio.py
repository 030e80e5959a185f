"""Engine.IO sessions: one per client, whichever transport carries it.

A WebSocket gets frames that are built once per broadcast; a polling client gets packets in a queue
with the same bounds as a WebSocket's backlog; a client that upgrades from one to the other gets
what was queued first. On every path the order of calls is the order of arrival.

A session's handlers run one after the other, and `session_ended` of the server after
the last of them.
"""

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from engineio.packet import CLOSE, MESSAGE, NOOP, PING, Packet
from engineio.payload import Payload
from socketio import packet as sio_packet

from ordertrack.server import loop, websocket
from ordertrack.server.counters import counters
from ordertrack.server.loop import Signal, monotonic
from ordertrack.server.websocket import Message, WebSocket
from ordertrack.server.ws_frames import CloseCode, binary_frame, text_frame
from ordertrack.server.ws_handshake import bad_request

if TYPE_CHECKING:
    from ordertrack.sio.engineio_server import EngineIOServer

_PING_FRAME: Final = text_frame("2")
_PROBE_ANSWER: Final = text_frame("3probe")
_CLOSE_PACKET: Final = Packet(CLOSE)
_NOOP_PACKET: Final = Packet(NOOP)
_PING_PACKET: Final = Packet(PING)


class MalformedPacketError(ValueError):
    """A client sent something that is no Socket.IO packet that we accept."""


class Outgoing:
    """A message in the forms that both transports need, made once for all recipients."""

    __slots__ = ("frame", "packets", "size")

    def __init__(self, parts: Iterable[str | bytes]) -> None:
        """`parts` are the Socket.IO packet and, if it is binary, its attachments."""
        parts = list(parts)
        self.packets = [Packet(MESSAGE, part) for part in parts]
        self.frame = b"".join(
            text_frame("4" + part) if isinstance(part, str) else binary_frame(part)
            for part in parts
        )
        self.size = len(self.frame)


def encode_event(name: str, data_json: str) -> Outgoing:
    """An event of the default namespace with one argument, which is JSON text already."""
    return Outgoing([f'2["{name}",{data_json}]'])


def _frame(packet: Packet) -> bytes:
    encoded = packet.encode()
    return text_frame(encoded) if isinstance(encoded, str) else binary_frame(encoded)


class _PollQueue:
    """Packets that wait for a polling client's next request, bounded like a WebSocket's backlog."""

    __slots__ = ("packets", "polling", "ready", "since", "size", "taken")

    def __init__(self) -> None:
        self.packets: deque[tuple[Packet, int]] = deque()
        self.size = 0
        self.since = 0.0  # when the first was queued, or some were fetched
        self.polling = False  # a request waits for packets
        self.ready = Signal()
        self.taken = Signal()

    def put(self, packet: Packet, size: int) -> None:
        if not self.packets:
            self.since = monotonic()
        self.packets.append((packet, size))
        self.size += size
        counters.queued_bytes += size
        self.ready.set()

    def take(self) -> list[Packet]:
        """As many packets as the stock clients accept in one answer.

        The end of the session is told alone: the JavaScript client would act on it before it has
        looked at what stands in front of it.
        """
        taken: list[Packet] = []
        while self.packets and len(taken) < Payload.max_decode_packets:
            if taken and self.packets[0][0] is _CLOSE_PACKET:
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


class EngineIOSession:
    """One Engine.IO session. Serves as the `transport.Handler` of its own WebSocket.

    `sid` is the Engine.IO session id. `ws` is its WebSocket; None while it is polling. `handshake`
    is what is kept of the first request until the client has been let in. `application` belongs to
    the application: the object that it keeps for this client.
    """

    __slots__ = (
        "_allowance",
        "_heard",
        "_over",
        "_posting",
        "_probe",
        "_probed",
        "_queue",
        "_reason",
        "address",
        "application",
        "beating",
        "closing",
        "deadline",
        "handshake",
        "joined",
        "server",
        "session",
        "sid",
        "ws",
    )

    def __init__(self, server: "EngineIOServer", sid: str, handshake: dict[str, Any]) -> None:
        self.server = server
        self.sid = sid
        self.handshake: dict[str, Any] | None = handshake
        self.address: str = handshake.get("REMOTE_ADDR", "")
        self.deadline = 0.0  # by when it has to have been let in
        self.ws: WebSocket | None = None
        self.application: Any = None
        self.session: dict[str, Any] | None = None  # see `EngineIOServer.get_session`
        self.joined = False  # Socket.IO let it into a namespace
        self.beating = False  # it gets pings
        self.closing = False  # nothing is sent any more
        self._queue: _PollQueue | None = None
        self._posting = False  # a request's packets are being handled
        self._probe: WebSocket | None = None  # the WebSocket that polling may move to
        self._probed = False  # and whether it has been tried
        self._reason: str | None = None
        self._allowance = 0.0
        self._heard = True
        self._over = False

    @property
    def closed(self) -> bool:
        """Whether the session is over, and nothing waits to be fetched any more."""
        return self._over and (self._queue is None or not self._queue.packets)

    # For Heartbeat --------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the client can still be told anything, as far as is known."""
        return not self.closing and (self.ws is None or self.ws.alive)

    @property
    def heard(self) -> bool:
        """Whether the client has sent anything since the last ping."""
        return self.ws.heard if self.ws is not None else self._heard

    @heard.setter
    def heard(self, value: bool) -> None:
        if self.ws is not None:
            self.ws.heard = value
        else:
            self._heard = value

    # Sending --------------------------------------------------------------------------------------

    @property
    def upgraded(self) -> bool:
        return self.ws is not None

    @property
    def upgrading(self) -> bool:
        return self._probe is not None

    @property
    def holds_socket(self) -> bool:
        """Whether it has a WebSocket, or tries one."""
        return self.ws is not None or self._probe is not None

    @property
    def holds_poll(self) -> bool:
        """Whether a request waits for packets."""
        return self._queue is not None and self._queue.polling

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait here for the client to read or fetch."""
        if self.ws is not None:
            return self.ws.queued_bytes
        return self._queue.size if self._queue is not None else 0

    def send_outgoing(self, outgoing: Outgoing) -> None:
        """Send a message that may go to many, in the loop's next turn; never blocks or raises."""
        if self.ws is not None:
            self.ws.enqueue(outgoing.frame)
        else:
            for packet in outgoing.packets:
                self._put(packet, outgoing.size)

    def send(self, packet: Packet) -> None:
        """Send an Engine.IO packet now; never blocks or raises."""
        if self.ws is not None:
            self.ws.write(_frame(packet))
        else:
            encoded = packet.encode(b64=True)
            self._put(packet, len(encoded))

    def _put(self, packet: Packet, size: int) -> None:
        queue = self._queue
        if queue is None or self.closing:
            return
        if queue.packets and queue.size + size > self.server.limits.max_queue_bytes:
            self.too_slow()
            return
        queue.put(packet, size)
        self.server.waiting.add(self)

    def ping(self) -> None:
        if self.ws is not None:
            self.ws.enqueue(_PING_FRAME)
        else:
            self._put(_PING_PACKET, 1)

    # Ending ---------------------------------------------------------------------------------------

    def close_with(self, code: int, reason: str = "", *, goodbye: bool = True) -> None:
        """Close the session after what has been sent so far.

        With `goodbye` a Socket.IO DISCONNECT goes first, which tells the stock clients not to come
        back by themselves; without it they do. `code` is the WebSocket close code.
        """
        if self.closing:
            return
        if goodbye and self.joined:
            self.send(Packet(MESSAGE, str(sio_packet.DISCONNECT)))
        self._reason = self._reason or self.server.reason.SERVER_DISCONNECT
        if self.ws is not None:
            self.closing = True
            self.ws.close(code, reason)
        else:
            self._put(_CLOSE_PACKET, 1)
            self._end()

    def close(self, reason: str | None = None) -> None:
        """End the session in order; `reason` is what the disconnect handler is told."""
        self._reason = self._reason or reason
        self.close_with(CloseCode.NORMAL, goodbye=False)

    def expire(self) -> None:
        """The client has not answered a ping, as far as has been read."""
        self.read_what_is_there()
        if not self.heard:
            self.drop(self.server.reason.PING_TIMEOUT)

    def read_what_is_there(self) -> None:
        """Before a client is called late: a busy loop may be behind with reading."""
        if self.ws is not None and self.ws.alive:
            websocket.read_now(self.ws)

    def drop(self, reason: str) -> None:
        """End the session at once, without a word to the client."""
        self._reason = self._reason or reason
        if self.ws is not None:
            self.closing = self._over = True
            self.server.session_over(self)
            self.ws.abort()
        else:
            self.discard_queue()
            self._end()

    def too_slow(self) -> None:
        """A polling client does not fetch what waits for it."""
        counters.slow_closes += 1
        self.discard_queue()
        self._reason = self.server.reason.TRANSPORT_ERROR
        self.close_with(CloseCode.TRY_AGAIN_LATER, goodbye=False)

    def discard_queue(self) -> None:
        """Free what waits to be fetched."""
        if self._queue is not None:
            self._queue.clear()

    def check_age(self, now: float) -> None:
        """Called by the sweep while something waits to be fetched."""
        queue = self._queue
        if queue is not None and now - queue.since > self.server.limits.max_queue_seconds:
            self.too_slow()

    def _end(self) -> None:
        """A session without a WebSocket is over; a last request may still fetch the rest."""
        if self._over:
            return
        self.closing = self._over = True
        if self._probe is not None:
            self._probe.abort()
        if self._queue is not None:
            self._queue.ready.set()
        self.server.waiting.discard(self)
        self.server.session_over(self)
        if not self._posting:
            loop.spawn(self.server.session_ended, self, self._reason)

    # As the handler of a WebSocket ----------------------------------------------------------------

    def on_open(self, ws: WebSocket) -> None:
        if self._queue is not None:
            self._probe, self._probed = ws, False  # polling so far: wait for the probe
            self.server.wait_for_probe(ws)
            return
        self.ws = ws
        self.server.session_began(self)
        ws.write(_frame(self.server.open_packet(self.sid, upgrades=False)))

    def on_message_in_loop(self, ws: WebSocket, message: Message) -> bool:
        if message == "3":
            return True  # `heard` is all that a pong says
        if ws is not self.ws:
            self._on_probe_message(ws, message)
            return True
        return False

    def on_message(self, ws: WebSocket, message: Message) -> None:
        if isinstance(message, bytes):
            ws.close(CloseCode.UNSUPPORTED_DATA, "binary messages are not used here")
            return
        kind = message[:1]
        if kind == "4":
            try:
                self.server.receive(self, message[1:])
            except MalformedPacketError:
                self.close_with(CloseCode.PROTOCOL_ERROR, "malformed packet", goodbye=False)
        elif kind == "1":
            self._reason = self.server.reason.CLIENT_DISCONNECT
            ws.close(CloseCode.NORMAL)
        elif kind == "2":
            ws.write(text_frame("3" + message[1:]))
        elif kind not in ("5", "6"):
            ws.close(CloseCode.PROTOCOL_ERROR, "unknown Engine.IO packet")

    def on_close(self, ws: WebSocket, code: int, reason: str) -> None:
        del reason
        if ws is self._probe:
            self._probe = None
        if ws is not self.ws:
            return  # a probe that failed: polling goes on
        self.closing = self._over = True
        self.server.session_over(self)
        if self._reason is None:
            why = self.server.reason
            left = code in (CloseCode.NORMAL, CloseCode.GOING_AWAY)
            self._reason = why.CLIENT_DISCONNECT if left else why.TRANSPORT_CLOSE
        self.server.session_ended(self, self._reason)

    def _on_probe_message(self, ws: WebSocket, message: Message) -> None:
        """The upgrade: a probe, its answer, a NOOP that ends the pending poll, the switch."""
        if ws is not self._probe or self.closing:
            ws.close(CloseCode.NORMAL)
        elif message == "2probe":
            ws.write(_PROBE_ANSWER)
            self._probed = True
            if self._queue is not None and self._queue.polling:
                self._queue.ready.set()
        elif message == "5" and self._probed and not self._posting:
            # With a request's packets still in the making, the next ones would overtake them.
            queue, self._queue = self._queue, None
            self._probe, self.ws = None, ws
            self.server.waiting.discard(self)
            if queue is not None:
                for packet, _ in queue.packets:
                    ws.write(_frame(packet))
                queue.clear()
                queue.ready.set()
        else:
            self._probe = None  # polling goes on
            ws.close(CloseCode.PROTOCOL_ERROR, "unexpected packet while upgrading")

    # Long polling ---------------------------------------------------------------------------------

    @property
    def polling(self) -> bool:
        """Whether requests carry the session, rather than a WebSocket."""
        return self._queue is not None

    def start_polling(self) -> None:
        self._queue = _PollQueue()
        self.server.session_began(self)
        self.send(self.server.open_packet(self.sid, upgrades=True))

    def fetch(self) -> list[Packet]:
        """What a GET answers: packets, waited for. Raises `Refused`, which ends the session."""
        queue = self._queue
        if queue is None or self.upgrading:
            return [_NOOP_PACKET]
        if queue.polling:
            raise bad_request("One poll at a time")
        self._heard = True
        queue.polling = True
        try:
            deadline = monotonic() + self.server.ping_interval + self.server.ping_timeout
            while not queue.packets and not self._over and not self.upgrading:
                if not queue.ready.wait(deadline - monotonic()):
                    raise bad_request("No ping was due, so the session is broken")
                if self._queue is None:
                    return [_NOOP_PACKET]  # upgraded meanwhile
        finally:
            queue.polling = False
        packets = queue.take()
        if not queue.packets:
            self.server.waiting.discard(self)
        return packets or [_NOOP_PACKET]

    def handle(self, payload: str) -> None:
        """Handle the packets of a POST. Raises `Refused`, which ends the session."""
        if self._posting:
            # Two at once have no order, and one's events must not be handled beside the other's.
            raise bad_request("One POST at a time")
        self._heard = True
        self._posting = True
        try:
            for packet in payload.split("\x1e"):  # each is taken off the client's allowance
                self._wait_until_fetched()
                self._handle_packet(packet)
        finally:
            self._posting = False
            if self._over:
                loop.spawn(self.server.session_ended, self, self._reason)

    def _wait_until_fetched(self) -> None:
        """As on a WebSocket, no message is handled while much waits for the client.

        Else the answers to what it sends in one request could be more than is kept for it, however
        quickly it fetches them. It has as long as `check_age` gives it.
        """
        queue = self._queue
        while queue is not None and queue.size > self.server.limits.crowded_bytes:
            queue.taken.wait()

    def _handle_packet(self, packet: str) -> None:
        kind = packet[:1]
        if kind == "1":
            self._reason = self._reason or self.server.reason.CLIENT_DISCONNECT
            self.discard_queue()
            self._end()
        elif self.closing:
            raise bad_request("The session has ended before this packet was handled")
        elif not self._afford():
            self.close_with(CloseCode.POLICY_VIOLATION, goodbye=False)
            raise bad_request("Too many messages")
        elif kind == "4":
            try:
                self.server.receive(self, packet[1:])
            except MalformedPacketError:
                raise bad_request("Malformed Socket.IO packet") from None
        elif kind not in ("3", "6"):
            raise bad_request("Unknown kind of packet")

    def _afford(self) -> bool:
        """Whether a polling client may send one more packet. A WebSocket sees to it itself."""
        allowance = self.server.limits.afford(self._allowance)
        self._allowance = allowance or self._allowance
        return allowance is not None
