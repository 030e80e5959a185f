"""Engine.IO sessions: one per client, whichever transport carries it.

`EngineServer` is the library's server with `EngineSocket` in place of its own sockets, one check of
the origin, and no task, timer or queue per client. Long-polling requests still run through the
library's `handle_request`; WebSocket handshakes do not.

A WebSocket gets frames that are built once per broadcast; a polling client gets packets in a queue
with the same bounds as a WebSocket's backlog; a client that upgrades from one to the other gets
what was queued first. On every path the order of calls is the order of arrival.
"""

import logging
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import engineio
from engineio import exceptions as eio_exceptions
from engineio.packet import MESSAGE, NOOP, OPEN, Packet
from engineio.payload import Payload
from socketio import packet as sio_packet

from ordertrack.realtime import transport
from ordertrack.realtime.heartbeat import Deadlines, Heartbeat, take_due
from ordertrack.realtime.transport import (
    DEFAULT_LIMITS,
    Limits,
    Message,
    Origins,
    Refused,
    Signal,
    WebSocket,
    binary_frame,
    monotonic,
    stats,
    text_frame,
)

log = logging.getLogger(__name__)

# A client that has not been let into a namespace by then is closed.
CONNECT_SECONDS: Final = 10.0

# How long a polling client may take to fetch the last packets of a session that is over.
FAREWELL_SECONDS: Final = 5.0

_PING_FRAME: Final = text_frame("2")
_PROBE_ANSWER: Final = text_frame("3probe")
_CLOSE_PACKET: Final = Packet(1)
_NOOP_PACKET: Final = Packet(NOOP)
_PING_PACKET: Final = Packet(2)

# What a CONNECT handler may want of the handshake; the rest of it is not kept, and this only until
# CONNECT has been handled.
_KEPT: Final = (
    "flask.app",
    "wsgi.url_scheme",
    "QUERY_STRING",
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "HTTP_AUTHORIZATION",
    "HTTP_COOKIE",
    "HTTP_HOST",
    "HTTP_ORIGIN",
    "HTTP_SEC_FETCH_SITE",
    "HTTP_USER_AGENT",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_REQUEST_ID",
)


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

    __slots__ = ("packets", "polling", "ready", "since", "size")

    def __init__(self) -> None:
        self.packets: deque[tuple[Packet, int]] = deque()
        self.size = 0
        self.since = 0.0  # when the first was queued, or some were fetched
        self.polling = False  # a request waits for packets
        self.ready = Signal()

    def put(self, packet: Packet, size: int) -> None:
        if not self.packets:
            self.since = monotonic()
        self.packets.append((packet, size))
        self.size += size
        stats.queued_bytes += size
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
            stats.queued_bytes -= size
        self.since = monotonic()
        return taken

    def clear(self) -> None:
        stats.queued_bytes -= self.size
        self.packets.clear()
        self.size = 0


class EngineSocket:
    """One Engine.IO session. Serves as the `transport.Handler` of its own WebSocket.

    `sid` is the Engine.IO session id. `ws` is its WebSocket; None while it is polling.
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
        "closing",
        "connected",
        "joined",
        "server",
        "session",
        "sid",
        "ws",
    )

    def __init__(self, server: "EngineServer", sid: str) -> None:
        self.server = server
        self.sid = sid
        self.ws: WebSocket | None = None
        self.session: dict[str, Any] = {}
        self.connected = False  # the Engine.IO handshake is done
        self.joined = False  # Socket.IO let it into a namespace
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
        return not self.closing

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

    def close(self, wait: bool = True, abort: bool = False, reason: str | None = None) -> None:
        """The library's way to end a session; it never waits."""
        del wait
        self._reason = self._reason or reason
        if abort and self.ws is not None and not self.closing:
            self.closing = True
            self.ws.close(1000)
        else:
            self.close_with(1000, goodbye=False)

    def expire(self) -> None:
        """The client has not answered a ping."""
        self._reason = self.server.reason.PING_TIMEOUT
        if self.ws is not None:
            self.closing = True
            self.ws.abort()
        else:
            self._end()

    def too_slow(self) -> None:
        """A polling client does not fetch what waits for it."""
        stats.slow_closes += 1
        self.discard_queue()
        self._reason = self.server.reason.TRANSPORT_ERROR
        self.close_with(1013, goodbye=False)

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
        if not self.closed:
            self.server.farewells.append((monotonic() + FAREWELL_SECONDS, self))
        transport.spawn(self.server.session_ended, self, self._reason)

    # As the handler of a WebSocket ----------------------------------------------------------------

    def on_open(self, ws: WebSocket) -> None:
        if self.connected:
            self._probe, self._probed = ws, False  # polling so far: wait for the probe
            self.server.probes.append((monotonic() + CONNECT_SECONDS, ws))
            return
        self.ws = ws
        self.connected = True
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
            ws.close(1003, "binary messages are not used here")
            return
        kind = message[:1]
        if kind == "4":
            self.server.receive(self, message[1:])
        elif kind == "1":
            self._reason = self.server.reason.CLIENT_DISCONNECT
            ws.close(1000)
        elif kind == "2":
            ws.write(text_frame("3" + message[1:]))
        elif kind not in ("5", "6"):
            ws.close(1002, "unknown Engine.IO packet")

    def on_close(self, ws: WebSocket, code: int, reason: str) -> None:
        del reason
        if ws is self._probe:
            self._probe = None
        if ws is not self.ws:
            return  # a probe that failed: polling goes on
        self.closing = self._over = True
        if self._reason is None:
            why = self.server.reason
            self._reason = why.CLIENT_DISCONNECT if code in (1000, 1001) else why.TRANSPORT_CLOSE
        self.server.session_ended(self, self._reason)

    def _on_probe_message(self, ws: WebSocket, message: Message) -> None:
        """The upgrade: a probe, its answer, a NOOP that ends the pending poll, the switch."""
        if ws is not self._probe or self.closing:
            ws.close(1000)
        elif message == "2probe":
            ws.write(_PROBE_ANSWER)
            self._probed = True
            if self._queue is not None and self._queue.polling:
                self._queue.ready.set()
        elif message == "5" and self._probed:
            queue, self._queue = self._queue, None
            self._probe, self.ws = None, ws
            self.server.waiting.discard(self)
            if queue is not None:
                for packet, _ in queue.packets:
                    ws.write(_frame(packet))
                queue.clear()
                queue.ready.set()
        else:
            ws.close(1002, "unexpected packet while upgrading")

    # As the library's polling socket --------------------------------------------------------------

    def start_polling(self) -> None:
        self.connected = True
        self._queue = _PollQueue()
        self.send(self.server.open_packet(self.sid, upgrades=True))

    def handle_get_request(
        self, environ: Mapping[str, Any], start_response: Callable[..., Any]
    ) -> list[Packet] | tuple[bytes, ...]:
        """Answer packets as soon as there are any; or a response, when the request upgrades."""
        if environ.get("HTTP_UPGRADE", "").lower() == "websocket":
            if self.upgrading or self.upgraded:
                raise eio_exceptions.EngineIOError("upgraded already")
            limits = self.server.limits
            return tuple(
                transport.accept(environ, start_response, self, limits=limits, heartbeat=False)
            )
        if self._queue is None or self.upgrading:
            return [_NOOP_PACKET]
        if self._queue.polling:
            raise eio_exceptions.EngineIOError("one poll at a time")
        return self.poll()

    def poll(self) -> list[Packet]:
        """Wait for packets. Raises the library's `QueueEmpty` when none came for too long."""
        queue = self._queue
        assert queue is not None
        self._heard = True
        queue.polling = True
        try:
            deadline = monotonic() + self.server.ping_interval + self.server.ping_timeout
            while not queue.packets and not self._over and not self.upgrading:
                if not queue.ready.wait(deadline - monotonic()):
                    self.close(reason=self.server.reason.TRANSPORT_ERROR)
                    raise eio_exceptions.QueueEmpty
                if self._queue is None:
                    return [_NOOP_PACKET]  # upgraded meanwhile
        finally:
            queue.polling = False
        packets = queue.take()
        if not queue.packets:
            self.server.waiting.discard(self)
        return packets or [_NOOP_PACKET]

    def handle_post_request(self, environ: Mapping[str, Any]) -> None:
        """Handle the packets in a request's body. Raises the library's `EngineIOError`."""
        try:
            length = int(environ.get("CONTENT_LENGTH") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= self.server.limits.max_message_bytes:
            raise eio_exceptions.ContentTooLongError
        self._heard = True
        try:
            packets = environ["wsgi.input"].read(length).decode().split("\x1e")
        except UnicodeDecodeError as error:
            raise eio_exceptions.EngineIOError("not UTF-8") from error
        if len(packets) > Payload.max_decode_packets:
            raise eio_exceptions.EngineIOError("too many packets")
        if self._posting:
            # Two at once have no order, and one's events must not be handled beside the other's.
            raise eio_exceptions.EngineIOError("one POST at a time")
        self._posting = True
        try:
            self._handle(packets)
        finally:
            self._posting = False

    def _handle(self, packets: list[str]) -> None:
        for packet in packets:
            kind = packet[:1]
            if kind == "1":
                self._reason = self._reason or self.server.reason.CLIENT_DISCONNECT
                self.discard_queue()
                self._end()
            elif self.closing:
                return
            elif not self._afford():
                self.close_with(1008, goodbye=False)
            elif kind == "4":
                self.server.receive(self, packet[1:])
            elif kind not in ("3", "6"):
                raise eio_exceptions.UnknownPacketError

    def _afford(self) -> bool:
        """Whether a polling client may send one more packet. A WebSocket sees to it itself."""
        allowance = self.server.limits.afford(self._allowance)
        self._allowance = allowance or self._allowance
        return allowance is not None


class MalformedPacketError(ValueError):
    """A client sent something that is no Socket.IO packet that we accept."""


class EngineServer(engineio.Server):  # type: ignore[misc]
    """The library's server with our sockets, one origin check and no task or timer per client."""

    def __init__(
        self, *, origins: Origins | None = None, limits: Limits = DEFAULT_LIMITS, **options: Any
    ) -> None:
        self.origins = origins or Origins()
        self.limits = limits
        options["monitor_clients"] = False
        options["max_http_buffer_size"] = limits.max_message_bytes
        # Refusing is done before the library sees the request; this makes it answer the headers.
        options["cors_allowed_origins"] = lambda _origin, environ: self.origins.permit(environ)
        super().__init__(**options)
        self.waiting: set[EngineSocket] = set()  # polling clients that have something to fetch
        self.farewells: Deadlines[EngineSocket] = deque()  # over, with a rest to fetch
        self.probes: Deadlines[WebSocket] = deque()  # opened in order to upgrade
        self._newcomers: Deadlines[EngineSocket] = deque()
        self._heartbeat = Heartbeat(
            self.ping_interval,
            self.ping_timeout,
            ping=EngineSocket.ping,
            expire=EngineSocket.expire,
            pause=transport.pause,
        )
        transport.every(self._heartbeat.period, self._sweep)

    def open_packet(self, sid: str, *, upgrades: bool) -> Packet:
        return Packet(
            OPEN,
            {
                "sid": sid,
                "upgrades": ["websocket"] if upgrades and self.allow_upgrades else [],
                "pingTimeout": int(self.ping_timeout * 1000),
                "pingInterval": int(self.ping_interval * 1000),
                "maxPayload": self.max_http_buffer_size,
            },
        )

    def handle_request(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """The WSGI application: long-polling requests and WebSocket handshakes."""
        try:
            self.origins.check(environ)
            if environ["REQUEST_METHOD"] == "GET" and "HTTP_UPGRADE" in environ:
                query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""))
                if "sid" not in query and query.get("transport") == ["websocket"]:
                    if query.get("EIO") != ["4"]:
                        raise Refused(
                            "400 Bad Request", "malformed_request", "Only EIO=4 is spoken here"
                        )
                    return self._open_websocket(environ, start_response)
            return super().handle_request(environ, start_response)
        except Refused as refused:
            return transport.refuse(start_response, refused)

    def _open_websocket(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> list[bytes]:
        session = self._new_session(environ)
        try:
            transport.take_over(environ, session, limits=self.limits, heartbeat=False)
        finally:
            if not session.connected:
                session.close()  # refused
        return []

    def _handle_connect(
        self,
        environ: dict[str, Any],
        _start_response: Callable[..., Any],
        _transport: str,
        jsonp_index: int | None = None,
    ) -> Any:
        """The library's step for a new client; only polling ones come here."""
        session = self._new_session(environ)
        session.start_polling()
        return self._ok(session.poll(), jsonp_index=jsonp_index)

    def _new_session(self, environ: dict[str, Any]) -> EngineSocket:
        transport.start()
        if transport.full(self.limits) or len(self.sockets) >= self.limits.max_connections:
            raise transport.TOO_MANY
        session = EngineSocket(self, self.generate_id())
        self.sockets[session.sid] = session
        self._trigger_event("connect", session.sid, {k: environ[k] for k in _KEPT if k in environ})
        self._newcomers.append((monotonic() + CONNECT_SECONDS, session))
        self._heartbeat.add(session)
        return session

    def session_ended(self, session: EngineSocket, reason: str | None) -> None:
        """Tell Socket.IO, and forget the session as soon as nothing waits to be fetched."""
        if session.closed:
            self.sockets.pop(session.sid, None)
        self._trigger_event("disconnect", session.sid, reason)

    def receive(self, session: EngineSocket, packet: str) -> None:
        """Hand an Engine.IO message to Socket.IO and wait until it has been handled."""
        try:
            self.handlers["message"](session.sid, packet)
        except MalformedPacketError:
            session.close_with(1002, "malformed packet", goodbye=False)
        except Exception:  # a handler's fault is no reason to end the connection
            log.exception("A Socket.IO handler failed")

    def _sweep(self, now: float) -> None:
        self._heartbeat.sweep(now)
        for session in take_due(self._newcomers, now, transport.pause):
            if not session.joined:
                session.close_with(1008, "not authenticated in time", goodbye=False)
        for ws in take_due(self.probes, now, transport.pause):
            if isinstance(ws.handler, EngineSocket) and ws.handler.ws is not ws:
                ws.abort()
        for session in take_due(self.farewells, now, transport.pause):
            session.discard_queue()
            self.sockets.pop(session.sid, None)
        for session in list(self.waiting):
            session.check_age(now)
