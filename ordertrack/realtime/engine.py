"""Socket.IO on `transport`: Flask-SocketIO above, our own connections beneath.

Three libraries lie between an order's event and a browser, each replaced at one seam only:

- Flask-SocketIO: `SocketIO` below is its class; `init_app` gives it our `Server`.
- python-socketio: `Server` changes what a disconnect means and what is remembered of a handshake;
  `RoomManager` keeps the rooms. Packets, events, acknowledgements and namespaces stay stock.
- python-engineio: `EngineServer` makes our `EngineSocket` wherever the library would make its own.
  HTTP long-polling requests still run through the library's `handle_request`.

`EngineSocket` is one client, whichever transport carries it. A WebSocket gets frames that are built
once per broadcast and written without a greenlet or queue of its own; a polling client gets packets
in a queue with the same bounds; a client that upgrades gets what was queued first. On every path the
order of calls is the order of arrival.

What is used of the libraries beyond their documentation is listed in tests/realtime/test_canary.py,
which fails first when a new release changes it.
"""

import logging
import urllib.parse
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import engineio
import flask
import flask_socketio
import socketio
from engineio import exceptions as eio_exceptions
from engineio.packet import MESSAGE, NOOP, OPEN, Packet
from engineio.payload import Payload
from socketio import packet as sio_packet

from ordertrack.realtime import transport
from ordertrack.realtime.transport import (
    DEFAULT_LIMITS,
    Heartbeat,
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

PING_INTERVAL: Final = 25.0
PING_TIMEOUT: Final = 20.0

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

    def __init__(self, encoded: Iterable[str | bytes]) -> None:
        """`encoded` are the Socket.IO packet and, if it is binary, its attachments."""
        self.packets = [Packet(MESSAGE, part) for part in encoded]
        self.frame = b"".join(map(_frame, self.packets))
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
        self.since = 0.0  # when the first of them was queued
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
        """Everything that waits."""
        taken = [packet for packet, _ in self.packets]
        self.clear()
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
        "_heard",
        "_probe",
        "_queue",
        "_reason",
        "closed",
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
        self.closed = False  # the library's word for it
        self._queue: _PollQueue | None = None
        self._probe: WebSocket | None = None  # the WebSocket that polling may move to
        self._reason: str | None = None
        self._heard = True

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
        if self._queue is not None:
            self._queue.clear()
        self._reason = self.server.reason.TRANSPORT_ERROR
        self.close_with(1013, goodbye=False)

    def check_age(self, now: float) -> None:
        """Called by the sweep while something waits to be fetched."""
        queue = self._queue
        if queue is not None and now - queue.since > self.server.limits.max_queue_seconds:
            self.too_slow()

    def _end(self) -> None:
        """A session without a WebSocket is over; a waiting request may still fetch the rest."""
        if self.closed:
            return
        self.closing = self.closed = True
        if self._probe is not None:
            self._probe.abort()
        if self._queue is not None:
            self._queue.ready.set()
        self.server.waiting.discard(self)
        transport.spawn(self.server.session_ended, self, self._reason)

    # As the handler of a WebSocket ----------------------------------------------------------------

    def on_open(self, ws: WebSocket) -> None:
        if self.connected:
            self._probe = ws  # polling so far: wait for the probe
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
        self.closing = self.closed = True
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
            if self._queue is not None and self._queue.polling:
                self._queue.ready.set()
        elif message == "5":
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
            while not queue.packets and not self.closed and not self.upgrading:
                if not queue.ready.wait(deadline - monotonic()):
                    self.close(reason=self.server.reason.TRANSPORT_ERROR)
                    raise eio_exceptions.QueueEmpty
                if self._queue is None:
                    return [_NOOP_PACKET]  # upgraded meanwhile
        finally:
            queue.polling = False
        packets = queue.take()
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
        for packet in packets:
            if self.closing:
                return
            kind = packet[:1]
            if kind == "4":
                self.server.receive(self, packet[1:])
            elif kind == "1":
                self._reason = self.server.reason.CLIENT_DISCONNECT
                self._end()
            elif kind not in ("3", "6"):
                raise eio_exceptions.UnknownPacketError


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
        self._newcomers: deque[tuple[float, EngineSocket]] = deque()
        self._heartbeat = Heartbeat(
            self.ping_interval, self.ping_timeout, EngineSocket.ping, EngineSocket.expire
        )
        transport.every_second(self._sweep)

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
                self._forget(session)
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
        if transport.full(self.limits):
            raise transport.TOO_MANY
        session = EngineSocket(self, self.generate_id())
        self.sockets[session.sid] = session
        self._trigger_event("connect", session.sid, {k: environ[k] for k in _KEPT if k in environ})
        self._newcomers.append((monotonic() + CONNECT_SECONDS, session))
        self._heartbeat.add(session)
        return session

    def _forget(self, session: EngineSocket) -> None:
        session.closing = session.closed = True
        self.session_ended(session, self.reason.TRANSPORT_ERROR)

    def session_ended(self, session: EngineSocket, reason: str) -> None:
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
        while self._newcomers and self._newcomers[0][0] <= now:
            session = self._newcomers.popleft()[1]
            if not session.joined:
                session.close_with(1008, "not authenticated in time", goodbye=False)
        for session in list(self.waiting):
            session.check_age(now)


class Server(socketio.Server):  # type: ignore[misc]
    """python-socketio's server; a disconnect closes the connection, a handshake is not kept."""

    flask_app: flask.Flask | None = None
    manager: "RoomManager"
    eio: EngineServer

    def _engineio_server_class(self) -> type[EngineServer]:
        return EngineServer

    def disconnect(
        self, sid: str, namespace: str | None = None, ignore_queue: bool = False
    ) -> None:
        """Send DISCONNECT, run the handlers, and close the connection, which the stock one keeps."""
        session = self.manager.socket(sid, namespace or "/")
        super().disconnect(sid, namespace=namespace, ignore_queue=ignore_queue)
        if session is not None:
            session.close(reason=self.reason.SERVER_DISCONNECT)

    def get_environ(self, sid: str, namespace: str | None = None) -> dict[str, Any] | None:
        """The handshake's environ until CONNECT has been handled; later a bare one for Flask."""
        session = self.manager.socket(sid, namespace or "/")
        if session is None:
            return None
        return self.environ.get(session.sid) or {
            "flask.app": self.flask_app,
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "0",
            "wsgi.url_scheme": "http",
        }

    def _handle_connect(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        namespace = namespace or "/"
        try:
            super()._handle_connect(eio_sid, namespace, data)
        except Exception:  # the stock server would leave the client half connected
            log.exception("A CONNECT handler failed")
            refusal = self.packet_class(
                sio_packet.CONNECT_ERROR, {"message": "internal error"}, namespace=namespace
            )
            self._send_packet(eio_sid, refusal)
            self.manager.forget(eio_sid)
            return
        session = self.eio.sockets.get(eio_sid)
        if session is None or session.closed:
            # It went away while the handler ran, so nobody else will clean up.
            self._handle_eio_disconnect(eio_sid, self.reason.TRANSPORT_CLOSE)
        elif self.manager.sid_from_eio_sid(eio_sid, namespace) is not None:
            session.joined = True
            self.environ.pop(eio_sid, None)

    def _handle_disconnect(
        self, eio_sid: str, namespace: str | None, reason: str | None = None
    ) -> None:
        super()._handle_disconnect(eio_sid, namespace, reason)
        session = self.eio.sockets.get(eio_sid)
        if session is not None:  # the client has left the one namespace there is
            session.close(reason=self.reason.CLIENT_DISCONNECT)

    def _handle_eio_message(self, eio_sid: str, data: str) -> None:
        """The stock dispatch without binary packets, which no event of ours has."""
        try:
            packet = self.packet_class(encoded_packet=data)
            kind = packet.packet_type
            if kind == sio_packet.EVENT and not _is_event(packet.data):
                raise ValueError("An event is a list that begins with its name")
            if kind == sio_packet.ACK and not isinstance(packet.data, list):
                raise ValueError("An acknowledgement is a list")
        except (ValueError, IndexError, TypeError, RecursionError) as error:
            raise MalformedPacketError(str(error)) from None
        if kind == sio_packet.EVENT:
            self._handle_event(eio_sid, packet.namespace, packet.id, packet.data)
        elif kind == sio_packet.CONNECT:
            self._handle_connect(eio_sid, packet.namespace, packet.data)
        elif kind == sio_packet.DISCONNECT:
            self._handle_disconnect(eio_sid, packet.namespace, self.reason.CLIENT_DISCONNECT)
        elif kind == sio_packet.ACK:
            self._handle_ack(eio_sid, packet.namespace, packet.id, packet.data)
        else:
            raise MalformedPacketError("This kind of packet is not accepted")

    def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        super()._handle_eio_disconnect(eio_sid, reason)
        self.manager.forget(eio_sid)


def _is_event(data: object) -> bool:
    return isinstance(data, list) and bool(data) and isinstance(data[0], str)


class _Client:
    """A client of one namespace: its session, its rooms, and whether it is fully connected."""

    __slots__ = ("connected", "rooms", "session")

    def __init__(self, session: EngineSocket) -> None:
        self.session = session
        self.rooms: set[str] = set()
        self.connected = False


class RoomManager(socketio.Manager):  # type: ignore[misc]
    """The stock manager's rooms in plain dictionaries, with each client's rooms beside them.

    So that a client leaves in time proportional to its own rooms, where the stock manager scans all
    rooms there are, and an event for a room is encoded once. As with the stock manager, a client's
    own id works as the name of a room with only that client, and None names the whole namespace.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rooms: dict[str, dict[str, dict[str, EngineSocket]]] = {}
        self._clients: dict[str, dict[str, _Client]] = {}  # namespace → sid
        self._sids: dict[str, dict[str, str]] = {}  # Engine.IO session → namespace → sid

    # Our own fan-out ------------------------------------------------------------------------------

    def sockets(self, room: str, namespace: str = "/") -> Collection[EngineSocket]:
        """The sockets in a room: a live view, so do not wait while iterating over it."""
        return self.rooms.get(namespace, {}).get(room, {}).values()

    def socket(self, sid: str, namespace: str = "/") -> EngineSocket | None:
        client = self._client(sid, namespace)
        return client.session if client is not None else None

    def _client(self, sid: str, namespace: str) -> _Client | None:
        return self._clients.get(namespace, {}).get(sid)

    # The stock manager's interface ----------------------------------------------------------------

    def emit(
        self,
        event: str,
        data: Any,
        namespace: str,
        room: Any = None,
        skip_sid: Any = None,
        callback: Callable[..., Any] | None = None,
        to: Any = None,
        **kwargs: Any,
    ) -> None:
        """Send an event to a client, a room, several rooms, or all. It leaves in the next turn."""
        if callback is not None:  # each recipient gets its own acknowledgement id
            super().emit(
                event, data, namespace, room=room, skip_sid=skip_sid, callback=callback, to=to,
                **kwargs,
            )  # fmt: skip
            return
        arguments = list(data) if isinstance(data, tuple) else [] if data is None else [data]
        packet = self.server.packet_class(
            sio_packet.EVENT, namespace=namespace, data=[event, *arguments]
        )
        encoded = packet.encode()
        outgoing = Outgoing(encoded if isinstance(encoded, list) else [encoded])
        skipped = skip_sid if isinstance(skip_sid, list) else [skip_sid]
        for sid, session in self._recipients(namespace, to or room):
            if sid not in skipped:
                session.send_outgoing(outgoing)

    def _recipients(self, namespace: str, room: Any) -> Iterable[tuple[str, EngineSocket]]:
        if room is None:
            clients = self._clients.get(namespace, {})
            return [(sid, client.session) for sid, client in clients.items()]
        if not isinstance(room, str):
            several = {pair for one in room for pair in self._recipients(namespace, one)}
            return list(several)
        client = self._client(room, namespace)
        if client is not None:
            return [(room, client.session)]
        return self.rooms.get(namespace, {}).get(room, {}).items()

    def get_namespaces(self) -> Iterable[str]:
        return self._clients.keys()

    def get_participants(self, namespace: str, room: Any) -> Iterator[tuple[str, str]]:
        for sid, session in list(self._recipients(namespace, room)):
            yield sid, session.sid

    def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        session = self.server.eio.sockets.get(eio_sid)
        sids = self._sids.setdefault(eio_sid, {})
        if session is None or namespace in sids:
            return None
        sid: str = self.server.eio.generate_id()
        sids[namespace] = sid
        self._clients.setdefault(namespace, {})[sid] = _Client(session)
        return sid

    def connect(self, sid: str, namespace: str) -> str | None:
        client = self._client(sid, namespace)
        if client is not None:
            client.connected = True
        return sid

    def is_pre_connected(self, sid: str, namespace: str) -> bool:
        client = self._client(sid, namespace)
        return client is not None and not client.connected

    def is_connected(self, sid: str, namespace: str) -> bool:
        client = self._client(sid, namespace)
        return client is not None and client.connected

    def sid_from_eio_sid(self, eio_sid: str, namespace: str) -> str | None:
        return self._sids.get(eio_sid, {}).get(namespace)

    def eio_sid_from_sid(self, sid: str, namespace: str) -> str | None:
        session = self.socket(sid, namespace)
        return session.sid if session is not None else None

    def pre_disconnect(self, sid: str, namespace: str) -> str | None:
        """Its handlers may still look it up, but it counts as gone."""
        client = self._client(sid, namespace)
        if client is None:
            return None
        client.connected = False
        return client.session.sid

    def basic_disconnect(self, sid: str, namespace: str, **_: Any) -> None:
        client = self._clients.get(namespace, {}).pop(sid, None)
        self.callbacks.pop(sid, None)
        if client is None:
            return
        for room in client.rooms:
            self._remove(sid, namespace, room)
        sids = self._sids.get(client.session.sid, {})
        sids.pop(namespace, None)
        if not sids:
            self._sids.pop(client.session.sid, None)

    def forget(self, eio_sid: str) -> None:
        """Remove whatever is left of a session in any namespace."""
        for namespace, sid in list(self._sids.get(eio_sid, {}).items()):
            self.basic_disconnect(sid, namespace)
        self._sids.pop(eio_sid, None)

    def is_sid_room(self, namespace: str, room: str) -> bool:
        return self._client(room, namespace) is not None

    def basic_enter_room(
        self, sid: str, namespace: str, room: str, eio_sid: str | None = None
    ) -> None:
        del eio_sid
        client = self._client(sid, namespace)
        if client is None:
            raise ValueError("sid is not connected to requested namespace")
        if self.is_sid_room(namespace, room):
            raise ValueError("cannot enter a sid room")
        client.rooms.add(room)
        self.rooms.setdefault(namespace, {}).setdefault(room, {})[sid] = client.session

    def basic_leave_room(self, sid: str, namespace: str, room: str) -> None:
        client = self._client(sid, namespace)
        if client is not None and room in client.rooms:
            client.rooms.remove(room)
            self._remove(sid, namespace, room)

    def _remove(self, sid: str, namespace: str, room: str) -> None:
        rooms = self.rooms[namespace]
        members = rooms[room]
        del members[sid]
        if not members:
            del rooms[room]

    def basic_close_room(self, room: str, namespace: str) -> None:
        if self.is_sid_room(namespace, room):
            raise ValueError("cannot close a sid room")
        for sid in list(self.rooms.get(namespace, {}).get(room, {})):
            self.basic_leave_room(sid, namespace, room)

    def get_rooms(self, sid: str, namespace: str) -> list[str]:
        client = self._client(sid, namespace)
        return [sid, *client.rooms] if client is not None else []


class SocketIO(flask_socketio.SocketIO):  # type: ignore[misc]
    """Flask-SocketIO on our transport. Its documented interface is unchanged.

    Beyond the library's options `init_app` takes `origins` (`transport.Origins`) and `limits`
    (`transport.Limits`). Events whose handlers need no Flask request are best registered on
    `server.on`, which saves a request context for each.
    """

    server: Server

    def init_app(self, app: flask.Flask, **options: Any) -> None:
        quiet = logging.getLogger(f"{__name__}.library")
        quiet.setLevel(logging.ERROR)  # it warns of every packet for a client that has left
        defaults = {
            "async_mode": "eventlet",
            "async_handlers": False,  # True may reorder one client's events
            "client_manager": RoomManager(),
            "ping_interval": PING_INTERVAL,
            "ping_timeout": PING_TIMEOUT,
            "logger": quiet,
            "engineio_logger": quiet,
        }
        super().init_app(app, **(defaults | options))
        # It has made a stock server, whose class it does not let one choose: put ours in its place.
        self.server = Server(**self.server_options)
        self.server.flask_app = app
        self.sockio_mw.engineio_app = self.server
        for event, handler, namespace in self.handlers:
            self.server.on(event, handler, namespace=namespace)
        for namespace_handler in self.namespace_handlers:
            self.server.register_namespace(namespace_handler)

    @property
    def rooms(self) -> RoomManager:
        return self.server.manager

    def drain(self, seconds: float) -> None:
        """Close every session and raw WebSocket with 1012, spread over `seconds`.

        Without a Socket.IO DISCONNECT, after which the stock clients would not come back.
        """
        for session in list(self.server.eio.sockets.values()):
            if not session.upgraded:
                session.close_with(1012, "server restarting", goodbye=False)
        transport.close_all(1012, "server restarting", seconds)
