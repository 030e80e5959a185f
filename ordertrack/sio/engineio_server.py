"""The Engine.IO server: its WSGI application, the registry of its sessions, and their deadlines.

A WebSocket handshake leaves HTTP with the session as its handler; what remains are GET (packets
for the client), POST (packets from it) and refusals. It replaces python-engineio's server, of which
only the formats of packets are used, and has what python-socketio asks of that server.

The protocol: https://socket.io/docs/v4/engine-io-protocol/. Names in quotation marks are its
sections.
"""

import json
import logging
import secrets
import urllib.parse
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from engineio.packet import Packet

from ordertrack import problems
from ordertrack.errors import DomainError, Forbidden, MalformedRequest, PayloadTooLarge
from ordertrack.origins import Origins
from ordertrack.server import loop, websocket
from ordertrack.server.admission import admission, no_capacity
from ordertrack.server.counters import counters
from ordertrack.server.heartbeat import Deadlines, Heartbeat, take_due
from ordertrack.server.http_request import Environ
from ordertrack.server.loop import monotonic
from ordertrack.server.websocket import DEFAULT_LIMITS, Limits, WebSocket
from ordertrack.server.ws_frames import CloseCode
from ordertrack.server.ws_handshake import check_origin
from ordertrack.sio.engineio import EncodedMessage, EngineIOSession, Reason, State, Transport
from ordertrack.sio.pending_sessions import PendingSessions

log = logging.getLogger(__name__)

# Seconds that a client has to authenticate, or to complete an upgrade, before it is closed.
CONNECT_SECONDS: Final = 10.0

# Seconds that a polling client has to fetch the last packets of a session that is closing.
LAST_FETCH_SECONDS: Final = 5.0

# The parts of the handshake's environ that connect handlers may use; the rest is not kept.
_KEPT: Final[tuple[str, ...]] = (
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
    "HTTP_X_REQUEST_ID",
)

# A session's id: a multiple of 3, which base64 makes four characters of.
_ID_BYTES: Final = 15
_IDS_AT_ONCE: Final = 64

Headers = list[tuple[str, str]]


def _parse_query(text: str) -> dict[str, list[str]]:
    return urllib.parse.parse_qs(text, keep_blank_values=True)


# Of the stock clients that begin with a WebSocket.
_USUAL_QUERIES: Final = {
    text: _parse_query(text) for text in ("EIO=4&transport=websocket", "transport=websocket&EIO=4")
}


class SessionHandler(Protocol):
    """What Engine.IO calls: Socket.IO."""

    def on_message(self, session: EngineIOSession, data: str) -> None:
        """Handle a message. Raises `MalformedPacketError`."""

    def on_disconnect(self, session: EngineIOSession, reason: str | None) -> None:
        """The session has been closed, and none of its messages is being handled any more."""


class EngineIOServer:
    """All Engine.IO sessions of a process, and the WSGI application at which they begin."""

    handler: SessionHandler

    def __init__(
        self,
        *,
        origins: Origins | None = None,
        limits: Limits = DEFAULT_LIMITS,
        credential_cookie: str | None = None,
        ping_interval: float = websocket.PING_INTERVAL,
        ping_timeout: float = websocket.PING_TIMEOUT,
        async_mode: str = "eventlet",
        async_handlers: bool = False,
        logger: object = None,
    ) -> None:
        """`credential_cookie` is the name of a cookie that can authenticate instead of a token.

        The last three come from python-socketio; only these values of them are supported.
        """
        del async_handlers, logger
        self.origins = origins or Origins()
        self.limits = limits
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.async_mode = async_mode
        self.sockets: dict[str, EngineIOSession] = {}
        self.unfetched: set[EngineIOSession] = set()  # open, polling, with packets to fetch
        self._credential_cookie = credential_cookie
        self._hello = {upgrades: self._make_hello(upgrades=upgrades) for upgrades in (False, True)}
        self._ids: list[str] = []  # generated, and not used yet
        self._pending: PendingSessions[EngineIOSession] = PendingSessions(
            limits.max_pending_sessions, limits.max_pending_sessions_per_address
        )
        self._closing: Deadlines[EngineIOSession] = deque()  # polling, with packets left to fetch
        self._probes: Deadlines[WebSocket] = deque()  # opened in order to upgrade
        self._heartbeat = Heartbeat(
            ping_interval,
            ping_timeout,
            ping=EngineIOSession.ping,
            expire=EngineIOSession.expire,
            pause=loop.pause,
        )
        loop.every(self._heartbeat.period, self._heartbeat.sweep)
        for sweep in (
            self._close_unauthenticated,
            self._abort_probes,
            self._discard_unfetched,
            self._close_slow,
        ):
            loop.every_second(sweep)
        admission.on_full(self._evict_pending)

    # HTTP -----------------------------------------------------------------------------------------

    def handle_request(self, environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        """The WSGI application."""
        text = environ.get("QUERY_STRING", "")
        query = _USUAL_QUERIES.get(text) or _parse_query(text)
        is_handshake = "sid" not in query
        try:
            check_origin(self.origins, environ)
            if environ["REQUEST_METHOD"] == "OPTIONS":  # a page of an allowed origin asks first
                return _answer(start_response, environ, "", _preflight(environ))
            transport = _requested_transport(environ, query)
            if is_handshake:
                session = self._make_session(environ, query, transport)
            else:
                session = self._find_session(environ, query, transport)
            if transport is Transport.WEBSOCKET:
                websocket.take_over(environ, session, limits=self.limits, heartbeat=False)
                return []
            if is_handshake:
                session.open_polling()
            return _answer(start_response, environ, self._exchange_packets(session, environ))
        except DomainError as refused:
            if is_handshake:
                counters.refuse(refused.code)
            if refused.code != "forbidden":
                refused.headers += tuple(_cors(environ))
            return problems.refuse(refused, start_response)

    def _make_session(
        self, environ: Environ, query: Mapping[str, list[str]], transport: Transport
    ) -> EngineIOSession:
        """A session for a new client, not registered yet. See "Handshake"."""
        if environ["REQUEST_METHOD"] != "GET":
            raise MalformedRequest("A session starts with GET")
        if query.get("EIO") != ["4"]:
            raise MalformedRequest("Only Engine.IO 4 (EIO=4) is supported")
        cookie = self._credential_cookie
        if cookie and cookie in environ.get("HTTP_COOKIE", "") and not self.origins.vouch(environ):
            # The page may be another server's, which the cookie is not meant for.
            raise Forbidden(
                "With a cookie, only a page of this server may open sockets. Send a token instead, "
                "and no cookie"
            )
        loop.event_loop.start()
        authenticated = len(self.sockets) - len(self._pending)
        if admission.is_draining or authenticated >= self.limits.max_connections:
            raise no_capacity()
        handshake = {name: environ[name] for name in _KEPT if name in environ}
        return EngineIOSession(self, self.generate_id(), handshake, transport)

    def _find_session(
        self, environ: Environ, query: Mapping[str, list[str]], transport: Transport
    ) -> EngineIOSession:
        """The session that a request belongs to. Raises `MalformedRequest`."""
        # A ping that has timed out has ended the session for this request, too.
        self._heartbeat.sweep(monotonic())
        session = self.sockets.get(query["sid"][-1])
        if session is None or session.state is State.CLOSED:
            raise MalformedRequest("The session is unknown or has ended")
        upgrades = transport is Transport.WEBSOCKET
        if session.ws is not None or (session.holds_websocket and upgrades):
            raise MalformedRequest("The session has moved to a WebSocket")
        if session.state is not State.OPEN and (upgrades or environ["REQUEST_METHOD"] == "POST"):
            raise MalformedRequest("The session has ended")
        return session

    def _exchange_packets(self, session: EngineIOSession, environ: Environ) -> str:
        """The answer to a polling client's request, a fault of which closes the session."""
        try:
            if environ["REQUEST_METHOD"] == "POST":
                payload = self._read_payload(environ)
                # It may have changed while the body was on its way.
                if session.state is not State.OPEN or session.ws is not None:
                    raise MalformedRequest("The session has ended")
                session.handle(payload)
                return "ok"
            return session.fetch()
        except DomainError:
            session.close(Reason.TRANSPORT_ERROR)
            raise

    def _read_payload(self, environ: Environ) -> str:
        most = self.limits.max_message_bytes
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(most + 1) if length <= most else b""
        if max(length, len(body)) > most:
            raise PayloadTooLarge(f"At most {most} bytes at a time")
        try:
            payload: str = body.decode()
        except UnicodeDecodeError:
            raise MalformedRequest("The packets are not UTF-8") from None
        return payload

    def open_packet(self, sid: str, *, upgrades: bool) -> str:
        """The first packet of a session. See "Handshake"."""
        return f'0{{"sid":"{sid}",{self._hello[upgrades]}'

    def _make_hello(self, *, upgrades: bool) -> str:
        """The open packet's JSON behind the session's id."""
        members = {
            "upgrades": ["websocket"] if upgrades else [],
            "pingTimeout": int(self.ping_timeout * 1000),
            "pingInterval": int(self.ping_interval * 1000),
            "maxPayload": self.limits.max_message_bytes,
        }
        return json.dumps(members, separators=(",", ":"))[1:]

    # Called by the session and by Socket.IO: opened, CONNECT received, perhaps refused, closed ----

    def session_opened(self, session: EngineIOSession) -> None:
        """Register a session whose transport is open; it has a while to authenticate."""
        self.sockets[session.sid] = session
        session.deadline = monotonic() + CONNECT_SECONDS
        self._add_pending(session)
        if self.ping_interval < CONNECT_SECONDS:
            self._start_pings(session)

    def connect_received(self, session: EngineIOSession) -> None:
        """The client is in time, however long the connect handler takes."""
        self._pending.discard(session)
        self._start_pings(session)

    def connect_refused(self, session: EngineIOSession) -> None:
        """The client may try again within the time that it had."""
        if session.alive and not session.authenticated:
            self._add_pending(session)

    def session_closed(self, session: EngineIOSession) -> None:
        """Forget a session that has been closed, once its last packets are fetched."""
        self._pending.discard(session)
        if session.state is State.CLOSED:
            self.sockets.pop(session.sid, None)
        else:
            self._closing.append((monotonic() + LAST_FETCH_SECONDS, session))

    def probe_opened(self, ws: WebSocket) -> None:
        """A polling client probes a WebSocket."""
        self._probes.append((monotonic() + CONNECT_SECONDS, ws))

    def _add_pending(self, session: EngineIOSession) -> None:
        evicted = self._pending.add(session, (session.handshake or {}).get("REMOTE_ADDR", ""))
        if evicted is not None:
            evicted.abort(Reason.TRANSPORT_ERROR)

    def _evict_pending(self, socket: bool) -> bool:
        """Close a pending session to free the connection that it holds; False if there is none.

        With `socket` that is a WebSocket, even if it is only probed; else a waiting GET will do.
        """
        session = self._pending.oldest(
            lambda one: one.holds_websocket or (one.holds_request and not socket)
        )
        if session is None:
            return False
        session.abort(Reason.TRANSPORT_ERROR)
        return True

    def _start_pings(self, session: EngineIOSession) -> None:
        if not session.has_heartbeat:
            session.has_heartbeat = True
            self._heartbeat.add(session)

    # Deadlines, looked at every second ------------------------------------------------------------

    def _close_unauthenticated(self, now: float) -> None:
        late = [one for one in self._pending if one.deadline <= now and one.state is State.OPEN]
        for session in late:
            session.read_now()
        if late:
            loop.pause()  # a greenlet handles a CONNECT among what was read
        for session in late:
            if session not in self._pending:
                continue
            # It stays pending until it is gone, so that it can be evicted while it closes.
            if session.ws is not None:
                session.close_with(
                    CloseCode.POLICY_VIOLATION, "not authenticated in time", reconnect=True
                )
            else:
                session.abort(Reason.TRANSPORT_ERROR)

    def _abort_probes(self, now: float) -> None:
        for _, ws in take_due(self._probes, now, loop.pause):
            if isinstance(ws.handler, EngineIOSession) and ws.handler.ws is not ws:
                ws.abort()

    def _discard_unfetched(self, now: float) -> None:
        for _, session in take_due(self._closing, now, loop.pause):
            session.discard_queue()
            self.sockets.pop(session.sid, None)

    def _close_slow(self, now: float) -> None:
        for session in list(self.unfetched):
            try:
                session.check_pace(now)
            except Exception:  # the other sessions are due as well
                log.exception("A session could not be closed")

    # What python-socketio asks of its Engine.IO server --------------------------------------------

    def on(self, event: str, handler: Callable[..., Any]) -> None:
        """Ignored: `handler` gets the events, and sessions rather than their ids."""

    def send(self, sid: str, data: str | bytes) -> None:
        session = self.sockets.get(sid)
        if session is not None:
            session.send(EncodedMessage([data]))

    def send_packet(self, sid: str, packet: Packet) -> None:
        self.send(sid, packet.data)  # it is always a message

    def generate_id(self) -> str:
        """A new id, of 120 random bits."""
        if not self._ids:
            # A system call for each would take longer than all else that makes a session.
            text = secrets.token_urlsafe(_ID_BYTES * _IDS_AT_ONCE)
            size = len(text) // _IDS_AT_ONCE
            self._ids = [text[at : at + size] for at in range(0, len(text), size)]
        return self._ids.pop()

    def get_session(self, sid: str) -> dict[str, Any]:
        """What `save_session` keeps for a client. Raises `KeyError` when the client is gone."""
        session = self.sockets[sid]
        if session.saved is None:
            session.saved = {}
        return session.saved

    create_event = staticmethod(loop.Signal)
    start_background_task = staticmethod(loop.spawn)
    sleep = staticmethod(loop.sleep)

    def shutdown(self) -> None:
        """Does nothing: there is no background task to stop."""

    def transport(self, sid: str) -> str:
        return "polling" if self.sockets[sid].ws is None else "websocket"


def _requested_transport(environ: Environ, query: Mapping[str, list[str]]) -> Transport:
    """POLLING or WEBSOCKET. Raises `MalformedRequest`. See "Query parameters"."""
    if environ["REQUEST_METHOD"] not in ("GET", "POST"):
        raise MalformedRequest("Only GET and POST are supported")
    if "j" in query:
        raise MalformedRequest("JSONP is not supported")
    transport = query.get("transport")
    if transport == ["websocket"]:
        return Transport.WEBSOCKET
    if transport != ["polling"]:
        raise MalformedRequest("Add transport=polling or transport=websocket")
    return Transport.POLLING


def _answer(
    start_response: Callable[..., Any], environ: Environ, text: str, extra: Headers | None = None
) -> list[bytes]:
    body = text.encode()
    headers = [
        ("Content-Type", "text/plain; charset=UTF-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        *_cors(environ),
        *(extra or ()),
    ]
    start_response("200 OK", headers)
    return [body]


def _cors(environ: Environ) -> Headers:
    """Allow the page to read the answer: its origin has been checked."""
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        return []
    return [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Credentials", "true"),
        ("Vary", "Origin"),
    ]


def _preflight(environ: Environ) -> Headers:
    allowed = [("Access-Control-Allow-Methods", "GET, POST, OPTIONS")]
    asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS")
    if asked:
        allowed.append(("Access-Control-Allow-Headers", asked))
    return allowed
