"""Raw WebSockets: GET /ws/orders/<id>?after=VERSION, one order's events as text frames.

A WSGI application in front of Flask's, because a connection that is taken over has no response.
Refusals are HTTP answers before the upgrade.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask

from ordertrack import auth
from ordertrack.auth import Credential
from ordertrack.errors import DomainError, InvalidToken, Unavailable, ValidationFailed
from ordertrack.eventlog import Event
from ordertrack.origins import Origins
from ordertrack.policy import Actor, Caller
from ordertrack.problems import from_exception, refuse
from ordertrack.realtime.connections import Connections
from ordertrack.realtime.hub import (
    Announcement,
    Hub,
    Wanted,
    order_room,
)
from ordertrack.schemas import MAX_ID, MAX_VERSION
from ordertrack.server import websocket
from ordertrack.server.counters import counters
from ordertrack.server.websocket import Limits, WebSocket
from ordertrack.server.ws_frames import CloseCode
from ordertrack.server.ws_handshake import check_handshake, check_origin
from ordertrack.services import orders
from ordertrack.services.orders import REPLAY_LIMIT, CaughtUp

PROTOCOL = "ordertrack.v1"

# Events that are read and sent at once where a replay is too large for one answer: they are large.
PAGE = 20

_PATH = re.compile(r"/ws/orders/([0-9]{1,19})")


class RawRooms:
    """Who watches an order over a raw socket: the rooms that Socket.IO does not know of."""

    def __init__(self) -> None:
        self._rooms: dict[str, dict[RawWatcher, None]] = {}

    def members(self, room: str) -> Iterable["RawWatcher"]:
        return self._rooms.get(room, ())

    def memberships(self) -> int:
        """How many watchers there are, each counted once per order."""
        return sum(map(len, self._rooms.values()))

    def join(self, room: str, watcher: "RawWatcher") -> None:
        self._rooms.setdefault(room, {})[watcher] = None

    def leave(self, room: str, watcher: "RawWatcher") -> None:
        members = self._rooms.get(room)
        if members is not None:
            members.pop(watcher, None)
            if not members:
                del self._rooms[room]


class RawWatcher:
    """A raw socket that watches one order; also the transport's handler for it."""

    __slots__ = (
        "_backlog",
        "_connections",
        "_ended",
        "_held",
        "_most_held",
        "_pages",
        "_room",
        "_rooms",
        "_ws",
        "actor",
        "credential",
    )

    def __init__(
        self,
        credential: Credential,
        order_id: int,
        rooms: RawRooms,
        connections: Connections,
        most_held: int,
    ) -> None:
        self.credential = credential
        self.actor: Actor | None = None
        self._room = order_room(order_id)
        self._rooms = rooms
        self._connections = connections
        self._ws: WebSocket | None = None
        # What is announced between joining and the end of the handshake, or of the replay.
        self._backlog: list[bytes] | None = []
        self._held = 0  # bytes of that,
        self._most_held = most_held  # and where it ends
        self._pages: Iterator[list[Event]] | None = None  # of a large replay
        self._ended: DomainError | None = None  # why it must not open any more

    def deliver(self, announcement: Announcement) -> None:
        if self._backlog is not None:
            self._backlog.append(announcement.frame)
            self._held += len(announcement.frame)
            if self._held > self._most_held:
                self.hang_up(CloseCode.TRY_AGAIN_LATER, "queue full")
        elif self._ws is not None:
            self._ws.enqueue(announcement.frame)

    def replay(self, events: Iterable[Event]) -> None:
        """What was missed goes before what was announced since."""
        self._backlog = [Announcement(event).frame for event in events] + (self._backlog or [])

    def replay_in_pages(self, pages: Iterator[list[Event]]) -> None:
        """The same, read and sent one after the other, as the client takes them."""
        self._pages = pages

    def join(self, room: str) -> None:
        if self._ended is None:
            self._rooms.join(room, self)

    def leave(self, room: str) -> None:
        self._rooms.leave(room, self)

    def may_open(self) -> None:
        """Raises what has ended this watcher's right while it was on its way."""
        if self._ended is not None:
            raise self._ended

    def sign_out(self, error: DomainError) -> None:
        self._ended = error
        self.hang_up(CloseCode.POLICY_VIOLATION, error.code)

    def silence(self, error: DomainError) -> None:
        self._ended = self._ended or error
        self.gone()

    def hang_up(self, code: int, reason: str) -> None:
        self.silence(Unavailable(reason))
        if self._ws is not None:
            self._ws.close(code, reason)

    def gone(self) -> None:
        self._rooms.leave(self._room, self)
        self._connections.leave(self)

    def on_open(self, ws: WebSocket) -> None:
        self._ws = ws
        if self._pages is not None:
            ws.stream(self._send_page)
        else:
            self._go_live(ws)

    def _send_page(self) -> bool:
        """Send the next page of the replay; False when there is none, or it cannot be had."""
        ws, pages = self._ws, self._pages
        assert ws is not None
        assert pages is not None
        try:
            events = next(pages, None)
        except Unavailable as error:
            self.hang_up(CloseCode.TRY_AGAIN_LATER, error.code)
            return False
        except DomainError as error:
            self.sign_out(error)
            return False
        if self._ended is not None:
            return False  # silenced while that page was read, maybe from another database
        if events is None:
            self._pages = None
            self._go_live(ws)
            return False
        for event in events:
            ws.enqueue(Announcement(event).frame)
        return True

    def _go_live(self, ws: WebSocket) -> None:
        for frame in self._backlog or ():
            ws.enqueue(frame)
        self._backlog = None

    def on_message_in_loop(self, ws: WebSocket, message: str | bytes) -> bool:
        return True  # a watcher has nothing to say: changes are made over REST

    def on_message(self, ws: WebSocket, message: str | bytes) -> None:
        raise AssertionError("every message is dealt with in the loop")

    def on_close(self, ws: WebSocket, code: int, reason: str) -> None:
        self.gone()


class OrderSockets:
    """The WSGI application that answers /ws/orders/<id> and passes everything else on."""

    def __init__(
        self,
        app: Flask,
        inner: WSGIApplication,
        *,
        hub: Hub,
        rooms: RawRooms,
        connections: Connections,
        origins: Origins,
        limits: Limits,
    ) -> None:
        self._app = app
        self._inner = inner
        self._hub = hub
        self._rooms = rooms
        self._connections = connections
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

    def _open(self, environ: dict[str, Any], order_id: int) -> Iterable[bytes]:
        check_handshake(environ)
        check_origin(self._origins, environ)
        credential, subprotocol = _credential(environ)
        after = _after(environ)
        watcher = RawWatcher(
            credential, order_id, self._rooms, self._connections, self._limits.max_queue_bytes
        )
        self._connections.admit(watcher)
        try:
            standing = self._hub.subscribe(
                watcher,
                {order_id: orders.LATEST if after is None else after},
                lambda wanted: self._catch_up(credential.caller, wanted),
            )[order_id]
            if not isinstance(standing, CaughtUp):
                raise standing
            caller, upto = credential.caller, standing.version
            if not standing.reset:
                watcher.replay(standing.events)
            elif after is not None and upto - after <= REPLAY_LIMIT:
                # Not too many, but large.
                watcher.replay_in_pages(self._pages(caller, order_id, after, upto))
            else:
                # Too many to replay: the latest event says where the order stands now.
                watcher.replay(self._read(caller, order_id, upto - 1, 1))
            watcher.may_open()
            websocket.take_over(environ, watcher, subprotocol=subprotocol, limits=self._limits)
            return []
        except BaseException:
            watcher.gone()
            raise

    def _catch_up(
        self, caller: Caller, wanted: Wanted
    ) -> tuple[Actor, dict[int, CaughtUp | DomainError]]:
        with self._connections.door:
            return orders.catch_up(caller, wanted, self._hub.budget)

    def _pages(self, caller: Caller, order_id: int, after: int, upto: int) -> Iterator[list[Event]]:
        """The events with after < version ≤ upto. Raises what `orders.history` raises."""
        while after < upto:
            with self._app.app_context():
                events = self._read(caller, order_id, after, min(PAGE, upto - after))
            if not events:  # versions are dense: the database was replaced
                raise Unavailable("The history ends before the order's version.")
            yield events
            after += len(events)

    def _read(self, caller: Caller, order_id: int, after: int, limit: int) -> list[Event]:
        with self._connections.door:
            history = orders.history(caller, order_id, after=after, limit=limit)
            return history.events


def _credential(environ: dict[str, Any]) -> tuple[Credential, str | None]:
    """From the Authorization header, or for browsers from the subprotocols. Never from a cookie."""
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


def _after(environ: dict[str, Any]) -> int | None:
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
