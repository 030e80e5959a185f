"""Engine.IO 4 over HTTP: handshakes, long polling, and the bounds on sessions.

One WSGI application answers all of it. A WebSocket handshake leaves HTTP with the session as its
handler; what remains are polls (GET), packets (POST) and refusals. Of python-engineio only the
packets and payloads are used; python-socketio finds here what it asks of its Engine.IO server.
"""

import logging
import secrets
import urllib.parse
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import engineio
from engineio.packet import MESSAGE, OPEN, Packet
from engineio.payload import Payload

from ordertrack.origins import Origins
from ordertrack.server import loop, websocket
from ordertrack.server.counters import counters
from ordertrack.server.heartbeat import Deadlines, Heartbeat, take_due
from ordertrack.server.loop import monotonic
from ordertrack.server.websocket import DEFAULT_LIMITS, Limits, WebSocket
from ordertrack.server.ws_frames import CloseCode
from ordertrack.server.ws_handshake import Refused, bad_request, check_origin, refuse, too_many
from ordertrack.sio.engineio import EngineIOSession, MalformedPacketError
from ordertrack.sio.pending_sessions import PendingSessions

log = logging.getLogger(__name__)

# A client that has not sent CONNECT by then, or whose CONNECT was refused, is closed.
CONNECT_SECONDS: Final = 10.0

# How long a polling client may take to fetch the last packets of a session that is over.
FAREWELL_SECONDS: Final = 5.0

# What a CONNECT handler may want of the handshake; the rest of it is not kept.
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

Environ = dict[str, Any]
Headers = list[tuple[str, str]]


class Receiver(Protocol):
    """Socket.IO, as far as Engine.IO knows it."""

    def on_message(self, session: EngineIOSession, data: str) -> None:
        """Handle a message. Raises `MalformedPacketError`."""

    def on_end(self, session: EngineIOSession, reason: str | None) -> None:
        """The session is over, and none of its messages is being handled any more."""


class EngineIOServer:
    """All Engine.IO sessions of a process, and the WSGI application that they begin at."""

    reason = engineio.Server.reason
    receiver: Receiver

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
        """`credential_cookie` is the cookie that may stand in for a token when connecting.

        python-socketio gives the last three, of which only one way is served here.
        """
        del async_handlers, logger
        self.origins = origins or Origins()
        self.limits = limits
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.async_mode = async_mode
        self.sockets: dict[str, EngineIOSession] = {}
        self.waiting: set[EngineIOSession] = set()  # polling clients that have something to fetch
        self._credential_cookie = credential_cookie
        self._newcomers: PendingSessions[EngineIOSession] = PendingSessions(
            limits.max_newcomers, limits.max_newcomers_per_address
        )
        self._farewells: Deadlines[EngineIOSession] = deque()  # over, with a rest to fetch
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
            self._close_latecomers,
            self._drop_probes,
            self._drop_farewells,
            self._close_slow,
        ):
            loop.every_second(sweep)
        websocket.make_room_with(self._end_a_newcomer)

    # HTTP -----------------------------------------------------------------------------------------

    def handle_request(self, environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        """The WSGI application."""
        query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        is_handshake = "sid" not in query
        try:
            check_origin(self.origins, environ)
            if environ["REQUEST_METHOD"] == "OPTIONS":  # before a page of an allowed origin asks
                return _answer(start_response, environ, "", _preflight(environ))
            carrier = _carrier(environ, query)
            session = self._begin(environ, query) if is_handshake else self._find(environ, query)
            if carrier == "websocket":
                websocket.take_over(environ, session, limits=self.limits, heartbeat=False)
                return []
            return _answer(start_response, environ, self._exchange(session, environ))
        except Refused as refused:
            if is_handshake:
                counters.refuse(refused.code)
            if refused.code != "forbidden":
                refused.headers += tuple(_cors(environ))
            return refuse(start_response, refused)

    def _begin(self, environ: Environ, query: Mapping[str, list[str]]) -> EngineIOSession:
        """A session for a new client; it counts from when its transport stands."""
        if environ["REQUEST_METHOD"] != "GET":
            raise bad_request("A session begins with GET")
        if query.get("EIO") != ["4"]:
            raise bad_request("Only EIO=4 is spoken here")
        self._check_cookie(environ)
        loop.start()
        joined = len(self.sockets) - len(self._newcomers)
        if websocket.draining() or joined >= self.limits.max_connections:
            raise too_many()
        handshake = {name: environ[name] for name in _KEPT if name in environ}
        return EngineIOSession(self, self.generate_id(), handshake)

    def _check_cookie(self, environ: Environ) -> None:
        """Raises `Refused` when a page that may not be ours would connect by the user's cookie."""
        cookie = self._credential_cookie
        if cookie and cookie in environ.get("HTTP_COOKIE", "") and not self.origins.vouch(environ):
            raise Refused(
                "403 Forbidden", "forbidden",
                "With a cookie, only a page of this server may open sockets. Send a token instead, "
                "and no cookie",
            )  # fmt: skip

    def _find(self, environ: Environ, query: Mapping[str, list[str]]) -> EngineIOSession:
        """The session that a request belongs to."""
        # What has run out of time is over for this request, too.
        self._heartbeat.sweep(monotonic())
        session = self.sockets.get(query["sid"][-1])
        if session is None or session.closed:
            raise bad_request("This session is not known, or over")
        upgrades = query["transport"] == ["websocket"]
        if session.ws is not None or (session.upgrading and upgrades):
            raise bad_request("This session has moved to a WebSocket")
        if session.closing and (upgrades or environ["REQUEST_METHOD"] == "POST"):
            raise bad_request("This session is over")
        return session

    def _exchange(self, session: EngineIOSession, environ: Environ) -> str:
        """A polling client's request; a fault of its ends the session."""
        try:
            if environ["REQUEST_METHOD"] == "POST":
                payload = self._read_payload(environ)
                if session.closing or session.ws is not None:  # while the body was on its way
                    raise bad_request("This session is over")
                session.handle(payload)
                return "ok"
            if not session.polling:
                session.start_polling()
            fetched: str = Payload(packets=session.fetch()).encode()
            return fetched
        except Refused:
            session.close(reason=self.reason.TRANSPORT_ERROR)
            raise

    def _read_payload(self, environ: Environ) -> str:
        most = self.limits.max_message_bytes
        if int(environ.get("CONTENT_LENGTH") or 0) > most:
            body = None
        else:
            body = environ["wsgi.input"].read(most + 1)
        if body is None or len(body) > most:
            raise Refused(
                "413 Content Too Large", "payload_too_large", f"At most {most} bytes at a time"
            )
        try:
            payload: str = body.decode()
        except UnicodeDecodeError:
            raise bad_request("The packets are not UTF-8") from None
        return payload

    def open_packet(self, sid: str, *, upgrades: bool) -> Packet:
        return Packet(
            OPEN,
            {
                "sid": sid,
                "upgrades": ["websocket"] if upgrades else [],
                "pingTimeout": int(self.ping_timeout * 1000),
                "pingInterval": int(self.ping_interval * 1000),
                "maxPayload": self.limits.max_message_bytes,
            },
        )

    # Sessions, from beginning to end --------------------------------------------------------------

    def session_began(self, session: EngineIOSession) -> None:
        """Its transport stands: from now on it is known, and has a while to be let in."""
        self.sockets[session.sid] = session
        session.deadline = monotonic() + CONNECT_SECONDS
        self._wait_to_be_let_in(session)
        if self.ping_interval < CONNECT_SECONDS:
            self._begin_heartbeat(session)

    def session_asks(self, session: EngineIOSession) -> None:
        """CONNECT has come: however long the answer takes, it is not the client that is late."""
        self._newcomers.discard(session)
        self._begin_heartbeat(session)

    def session_refused(self, session: EngineIOSession) -> None:
        """CONNECT was refused: the client may try again, within the time that it had."""
        if session.alive and not session.joined:
            self._wait_to_be_let_in(session)

    def session_ended(self, session: EngineIOSession, reason: str | None) -> None:
        """Tell Socket.IO. Nothing of the session is being handled any more."""
        self.receiver.on_end(session, reason)

    def session_over(self, session: EngineIOSession) -> None:
        """Nothing is sent any more: forget the session, unless something waits to be fetched."""
        self._newcomers.discard(session)
        if session.closed:
            self.sockets.pop(session.sid, None)
        else:
            self._farewells.append((monotonic() + FAREWELL_SECONDS, session))

    def wait_for_probe(self, ws: WebSocket) -> None:
        """A polling client tries a WebSocket, to upgrade to."""
        self._probes.append((monotonic() + CONNECT_SECONDS, ws))

    def receive(self, session: EngineIOSession, data: str) -> None:
        """Hand a message to Socket.IO and wait until it is handled. Raises `MalformedPacketError`.

        A handler's own fault is logged, and is no reason to end the connection.
        """
        try:
            self.receiver.on_message(session, data)
        except MalformedPacketError:
            raise
        except Exception:
            log.exception("A Socket.IO handler failed")

    def _wait_to_be_let_in(self, session: EngineIOSession) -> None:
        crowded_out = self._newcomers.add(session, session.address)
        if crowded_out is not None:
            crowded_out.drop(self.reason.TRANSPORT_ERROR)

    def _end_a_newcomer(self, socket: bool) -> bool:
        """End a session that has not been let in, for what it holds; False if there is none.

        With `socket` that is a WebSocket, be it only tried for an upgrade; else a poll will do.
        """
        session = self._newcomers.oldest(
            lambda one: one.holds_socket or (one.holds_poll and not socket)
        )
        if session is None:
            return False
        session.drop(self.reason.TRANSPORT_ERROR)
        return True

    # Time -----------------------------------------------------------------------------------------

    def _begin_heartbeat(self, session: EngineIOSession) -> None:
        if not session.beating:
            session.beating = True
            self._heartbeat.add(session)

    def _close_latecomers(self, now: float) -> None:
        late = [one for one in self._newcomers if one.deadline <= now and not one.closing]
        for session in late:
            session.read_what_is_there()
        if late:
            loop.pause()  # a CONNECT among it is handled in a greenlet
        for session in late:
            if session not in self._newcomers:
                continue
            # Until it is gone it stays among them: it may have to make room while it closes.
            if session.ws is not None:
                session.close_with(
                    CloseCode.POLICY_VIOLATION, "not authenticated in time", goodbye=False
                )
            else:
                session.drop(self.reason.TRANSPORT_ERROR)

    def _drop_probes(self, now: float) -> None:
        for ws in take_due(self._probes, now, loop.pause):
            if isinstance(ws.handler, EngineIOSession) and ws.handler.ws is not ws:
                ws.abort()

    def _drop_farewells(self, now: float) -> None:
        for session in take_due(self._farewells, now, loop.pause):
            session.discard_queue()
            self.sockets.pop(session.sid, None)

    def _close_slow(self, now: float) -> None:
        for session in list(self.waiting):
            try:
                session.check_age(now)
            except Exception:  # its own misfortune: the others are due as well
                log.exception("A session could not be closed")

    # What python-socketio asks of its Engine.IO server --------------------------------------------

    def on(self, event: str, handler: Callable[..., Any]) -> None:
        """The stock server would be told by session ids; `receiver` is told instead."""

    def send(self, sid: str, data: str | bytes) -> None:
        self.send_packet(sid, Packet(MESSAGE, data))

    def send_packet(self, sid: str, packet: Packet) -> None:
        session = self.sockets.get(sid)
        if session is not None:
            session.send(packet)

    def generate_id(self) -> str:
        return secrets.token_urlsafe(15)

    def get_session(self, sid: str) -> dict[str, Any]:
        """What `save_session` keeps for a client. Raises `KeyError` when the client is gone."""
        session = self.sockets[sid]
        if session.session is None:
            session.session = {}
        return session.session

    create_event = staticmethod(loop.Signal)
    start_background_task = staticmethod(loop.spawn)
    sleep = staticmethod(loop.sleep)

    def shutdown(self) -> None:
        """Nothing runs that would have to be stopped."""

    def transport(self, sid: str) -> str:
        return "websocket" if self.sockets[sid].upgraded else "polling"


def _carrier(environ: Environ, query: Mapping[str, list[str]]) -> str:
    """What is to carry the session's packets: polling or websocket. Raises `Refused`."""
    if environ["REQUEST_METHOD"] not in ("GET", "POST"):
        raise bad_request("Only GET and POST are used here")
    if "j" in query:
        raise bad_request("There is no JSONP in this version of the protocol")
    carrier = query.get("transport")
    if carrier == ["websocket"]:
        return "websocket"
    if carrier != ["polling"]:
        raise bad_request("Add transport=polling or transport=websocket")
    return "polling"


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
    """That the page may read the answer: its origin has been checked."""
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
