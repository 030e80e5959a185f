"""Plain WebSockets: GET /ws/orders/<id>?after=VERSION sends one order's events as text frames.

A WSGI application in front of Flask's, because a connection that is taken over has no response.
Refusals are HTTP answers before the upgrade. What is sent, in this order: the replay, what was
published while it was read and sent, and then each event as it is published.
"""

import re
from collections.abc import Iterable, Iterator
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask

from ordertrack import auth
from ordertrack.auth import Credential
from ordertrack.errors import DomainError, InvalidToken, Unavailable, ValidationFailed
from ordertrack.eventlog import Event
from ordertrack.origins import Origins
from ordertrack.policy import Actor
from ordertrack.problems import from_exception, refuse
from ordertrack.realtime.connections import Connections
from ordertrack.realtime.database_gate import DatabaseGate
from ordertrack.realtime.hub import Announcement, Hub
from ordertrack.schemas import MAX_ID, MAX_VERSION
from ordertrack.server import websocket
from ordertrack.server.counters import counters
from ordertrack.server.websocket import Limits, WebSocket
from ordertrack.server.ws_frames import CloseCode
from ordertrack.server.ws_handshake import check_handshake, check_origin
from ordertrack.services import orders
from ordertrack.services.orders import REPLAY_LIMIT, CaughtUp

PROTOCOL = "ordertrack.v1"

# Page size, in events, of a replay that exceeds the byte budget of one answer.
PAGE = 20

_PATH = re.compile(r"/ws/orders/([0-9]{1,19})")


class OrderWatcher:
    """A `hub.Watcher` of one order, and the handler of its own WebSocket."""

    __slots__ = (
        "_connections",
        "_hub",
        "_pages",
        "_unsent",
        "_unsent_bytes",
        "_unsent_limit",
        "_ws",
        "actor",
        "closing",
        "credential",
        "rooms",
    )
    kind = "websocket"

    def __init__(
        self, credential: Credential, hub: Hub, connections: Connections, unsent_limit: int
    ) -> None:
        self.credential = credential
        self.actor: Actor | None = None
        self.rooms: tuple[str, ...] = ()
        self.closing: DomainError | None = None
        self._hub = hub
        self._connections = connections
        self._ws: WebSocket | None = None  # until the handshake is over
        self._pages: Iterator[list[Event]] | None = None  # of a large replay
        # Frames for after the handshake and the replay; None when both are over. Bounded as the
        # send queue is.
        self._unsent: list[bytes] | None = []
        self._unsent_bytes = 0
        self._unsent_limit = unsent_limit

    @property
    def is_alive(self) -> bool:
        return self._ws is None or self._ws.alive

    def deliver(self, announcement: Announcement) -> None:
        if self._unsent is not None:
            self._unsent.append(announcement.frame)
            self._unsent_bytes += len(announcement.frame)
            if self._unsent_bytes > self._unsent_limit:
                self.close(CloseCode.TRY_AGAIN_LATER, "queue full")
        elif self._ws is not None:
            self._ws.enqueue(announcement.frame)

    def replay(self, events: Iterable[Event]) -> None:
        """Send *events* first, before what has been published since they were read."""
        self._unsent = [Announcement(event).frame for event in events] + (self._unsent or [])

    def replay_in_pages(self, pages: Iterator[list[Event]]) -> None:
        """As `replay`, but each page is read only when the client has taken the one before it."""
        self._pages = pages

    def joined(self, room: str) -> None: ...

    def left(self, room: str) -> None: ...

    def stop(self, error: DomainError) -> None:
        self.closing = self.closing or error
        self._connections.remove(self)

    def close_with_error(self, error: DomainError) -> None:
        self.closing = error
        self.close(CloseCode.POLICY_VIOLATION, error.code)

    def close(self, code: CloseCode, reason: str) -> None:
        self.stop(Unavailable(reason))
        if self._ws is not None:
            self._ws.close(code, reason)

    def ended(self) -> None:
        """The connection has ended, or will not be opened."""
        self.stop(Unavailable("The connection has ended."))
        self._hub.remove(self)
        self._pages = None  # it refers to this watcher

    # As the handler of a WebSocket: see `websocket.Handler` -----------------------------------

    def on_open(self, ws: WebSocket) -> None:
        self._ws = ws
        if self._pages is not None:
            ws.stream(self._send_page)
        else:
            self._send_unsent(ws)

    def on_message_in_loop(self, ws: WebSocket, message: str | bytes) -> bool:
        return True  # ignored: clients make changes over REST

    def on_message(self, ws: WebSocket, message: str | bytes) -> None:
        raise AssertionError("on_message_in_loop handles every message")

    def on_close(self, ws: WebSocket, code: int, reason: str) -> None:
        self.ended()

    def _send_page(self) -> bool:
        """Send the next page of the replay; False when it was the last, or cannot be read."""
        ws, pages = self._ws, self._pages
        assert ws is not None
        assert pages is not None
        try:
            events = next(pages, None)
        except Unavailable as error:
            self.close(CloseCode.TRY_AGAIN_LATER, error.code)
            return False
        except DomainError as error:
            self.close_with_error(error)
            return False
        if self.closing is not None:
            return False  # since that page was read, maybe from another database
        if events is None:
            self._pages = None
            self._send_unsent(ws)
            return False
        for event in events:
            ws.enqueue(Announcement(event).frame)
        return True

    def _send_unsent(self, ws: WebSocket) -> None:
        for frame in self._unsent or ():
            ws.enqueue(frame)
        self._unsent = None


class OrderSockets:
    """The WSGI application that answers /ws/orders/<id>, and passes everything else to *inner*."""

    def __init__(
        self,
        app: Flask,
        inner: WSGIApplication,
        *,
        hub: Hub,
        connections: Connections,
        gate: DatabaseGate,
        origins: Origins,
        limits: Limits,
    ) -> None:
        self._app = app
        self._inner = inner
        self._hub = hub
        self._connections = connections
        self._gate = gate
        self._origins = origins
        self._limits = limits

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match = _PATH.fullmatch(environ.get("PATH_INFO", ""))
        if match is None or int(match[1]) > MAX_ID:
            return self._inner(environ, start_response)
        try:
            with self._app.app_context():
                return self._open(environ, int(match[1]))
        except Exception as error:  # noqa: BLE001 (answered as a problem, logged if unexpected)
            shown = from_exception(error)
            counters.refuse(shown.code)
            return refuse(shown, start_response)

    def _open(self, environ: WSGIEnvironment, order_id: int) -> Iterable[bytes]:
        accept_key = check_handshake(environ)
        check_origin(self._origins, environ)
        credential, subprotocol = _credential(environ)
        after = _after(environ)
        watcher = OrderWatcher(
            credential, self._hub, self._connections, self._limits.max_queue_bytes
        )
        self._connections.admit(watcher)
        try:
            self._subscribe(watcher, order_id, after)
            if watcher.closing is not None:  # revoked, or too much was published meanwhile
                raise watcher.closing
            websocket.take_over(
                environ,
                watcher,
                subprotocol=subprotocol,
                limits=self._limits,
                accept_key=accept_key,
            )
            return []
        except BaseException:
            watcher.ended()
            raise

    def _subscribe(self, watcher: OrderWatcher, order_id: int, after: int | None) -> None:
        """Let *watcher* watch the order, and prepare its replay. Raises what refuses it."""
        wanted = {order_id: orders.LATEST if after is None else after}
        answer = self._hub.subscribe(watcher, wanted)[order_id]
        if not isinstance(answer, CaughtUp):
            raise answer
        upto = answer.version
        if not answer.reset:
            watcher.replay(answer.events)
        elif after is not None and upto - after <= REPLAY_LIMIT:
            # Within `REPLAY_LIMIT`, but over the byte budget: it is sent in pages.
            watcher.replay_in_pages(self._pages(watcher, order_id, after, upto))
        else:
            # Too many to replay: the latest event says where the order stands now.
            watcher.replay(self._gate.events(watcher, order_id, upto - 1, 1))

    def _pages(
        self, watcher: OrderWatcher, order_id: int, after: int, upto: int
    ) -> Iterator[list[Event]]:
        """The events with after < version ≤ upto. Raises what `orders.history` raises."""
        while after < upto:
            with self._app.app_context():
                events = self._gate.events(watcher, order_id, after, min(PAGE, upto - after))
            if not events:  # versions are dense: the database was replaced
                raise Unavailable("The history ends before the order's version.")
            yield events
            after += len(events)


def _credential(environ: WSGIEnvironment) -> tuple[Credential, str | None]:
    """From the Authorization header, or for browsers from the subprotocols. Never from a cookie.

    A page of another site could open a socket with the cookie. Raises `InvalidToken`.
    """
    offered = [
        part.strip() for part in environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "").split(",") if part
    ]
    subprotocol = PROTOCOL if PROTOCOL in offered else None
    token = auth.bearer(environ.get("HTTP_AUTHORIZATION"))
    if token is None and subprotocol:
        token = next(
            (part.removeprefix("bearer.") for part in offered if part.startswith("bearer.")), None
        )
    if token is None:
        raise InvalidToken("Send Authorization: Bearer <token>, or the subprotocol bearer.<token>.")
    return auth.from_token(token), subprotocol


def _after(environ: WSGIEnvironment) -> int | None:
    given = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    unknown = set(given) - {"after"}
    if unknown:
        raise ValidationFailed.at(f"/{min(unknown)}", "is not a known parameter")
    if "after" not in given:
        return None
    raw = given["after"][-1]
    if not re.fullmatch(r"[0-9]{1,10}", raw) or int(raw) > MAX_VERSION:
        raise ValidationFailed.at("/after", "must be a version: a whole number from 0")
    return int(raw)
