"""Socket.IO: connect, subscribe, unsubscribe, authenticate. Rooms are Flask-SocketIO rooms, one for
each order id, and one for each feed.

Handlers are registered on python-socketio's server and get no Flask request context: they need the
token, not a request. Nothing here changes an order; that is REST's alone.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flask import Flask
from socketio.exceptions import ConnectionRefusedError as Refused

from ordertrack import identity
from ordertrack.errors import (
    DomainError,
    InvalidToken,
    NotFound,
    Unavailable,
    ValidationFailed,
)
from ordertrack.identity import Credential
from ordertrack.payloads import (
    Form,
    OrdersWanted,
    OrderWanted,
    parse,
    present_catch_up,
    to_json,
)
from ordertrack.policy import Actor, DriverScope, Principal
from ordertrack.problems import from_exception, problem
from ordertrack.realtime.engine import EngineSocket, SocketIO, encode_event
from ordertrack.realtime.fanout import TRY_AGAIN_LATER, Announcement, Fanout, Wanted, feed_room
from ordertrack.realtime.guests import Guests
from ordertrack.realtime.stats import stats
from ordertrack.services import actors, orders
from ordertrack.services.orders import CaughtUp

SIGNED_OUT = 1008  # policy violation, RFC 6455

# Of an unknown event's name.
MAX_NAME_SHOWN = 50

Ack = dict[str, Any]


class SocketWatcher:
    """A Socket.IO client that has been let in."""

    __slots__ = ("_rooms", "_sid", "_socket", "actor", "credential", "ended", "is_connected")

    def __init__(
        self, rooms: "Rooms", sid: str, socket: EngineSocket, credential: Credential
    ) -> None:
        self._rooms = rooms
        self._sid = sid
        self._socket = socket
        self.credential = credential
        self.actor: Actor | None = None
        self.is_connected = False
        self.ended: DomainError | None = None  # why it must not connect any more

    @property
    def is_there(self) -> bool:
        """Whether there is still a client to be answered, as far as is known."""
        return self._socket.alive

    def deliver(self, announcement: Announcement) -> None:
        self._socket.send_outgoing(announcement.outgoing)

    def join(self, room: str) -> None:
        if self._rooms.knows(self._sid):
            self._rooms.server.enter_room(self._sid, room)

    def leave(self, room: str) -> None:
        self._rooms.server.leave_room(self._sid, room)

    def silence(self, error: DomainError) -> None:
        self.ended = self.ended or error
        self._rooms.forget(self._sid)

    def sign_out(self, error: DomainError) -> None:
        self.silence(error)
        if self.is_connected:  # else CONNECT is still to be answered, with a refusal now
            self._socket.send_outgoing(encode_event("signed_out", to_json(problem(error))))
            self._socket.close_with(SIGNED_OUT, error.code)

    def hang_up(self, code: int, reason: str) -> None:
        self.silence(Unavailable(reason))
        self._socket.close_with(code, reason, goodbye=False)


class Rooms:
    """The Socket.IO side of one process."""

    def __init__(
        self, app: Flask, socketio: SocketIO, fanout: Fanout, guests: Guests, scope: DriverScope
    ) -> None:
        self._app = app
        self._fanout = fanout
        self._guests = guests
        self._scope = scope
        self._watchers: dict[str, SocketWatcher] = {}
        self.server: Any = socketio.server
        for name, handler in {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "authenticate": self._authenticate,
        }.items():
            self.server.on(name, self._answering(handler))
        self.server.on("*", self._unknown)
        self.server.on("connect", self._connect)
        self.server.on("disconnect", self._disconnect)

    def knows(self, sid: str) -> bool:
        """Whether the client is here, and is to stay."""
        return sid in self._watchers

    def forget(self, sid: str) -> None:
        """The client is being closed: nothing reaches it any more."""
        watcher = self._watchers.pop(sid, None)
        if watcher is not None:
            self._guests.leave(watcher)

    # --- events -------------------------------------------------------------------------------

    def _connect(self, sid: str, environ: Mapping[str, Any], auth: Any = None) -> None:
        socket = self._socket(sid)
        try:
            with self._app.app_context():
                token = auth.get("token") if isinstance(auth, dict) else None
                if token is None:
                    token = identity.token_from_cookies(environ.get("HTTP_COOKIE"))
                watcher = SocketWatcher(self, sid, socket, identity.from_token(token))
                self._guests.admit(watcher)
                self._watchers[sid] = watcher
                self._identify(watcher)
            if not self.knows(sid):
                raise watcher.ended or actors.signed_out()
            watcher.is_connected = True
        except Exception as error:
            self.forget(sid)
            shown = from_exception(error)
            if socket.alive:
                stats.refuse(shown.code)
            if isinstance(shown, Unavailable):
                # Refused, the stock clients would not come back; closed, they do.
                socket.close_with(TRY_AGAIN_LATER, shown.code, goodbye=False)
            raise Refused(shown.detail, problem(shown)) from error

    def _disconnect(self, sid: str, _reason: str) -> None:
        self.forget(sid)

    def _subscribe(self, watcher: SocketWatcher, data: Any) -> Ack:
        if isinstance(data, dict) and "feed" in data:
            return self._subscribe_feed(watcher, data)
        if isinstance(data, dict) and "orders" in data:
            wanted = parse(data, OrdersWanted).orders
            if len({one.order_id for one in wanted}) != len(wanted):
                raise ValidationFailed.at("/orders", "must name each order once")
            answers = self._join(watcher, wanted)
            return {"ok": True, "results": [_ack(answers[one.order_id]) for one in wanted]}
        one = parse(data, OrderWanted)
        return _ack(self._join(watcher, [one])[one.order_id])

    def _join(
        self, watcher: SocketWatcher, wanted: Iterable[OrderWanted]
    ) -> dict[int, CaughtUp | DomainError]:
        return self._fanout.subscribe(
            watcher,
            {one.order_id: one.after for one in wanted},
            lambda some: self._catch_up(watcher, some),
        )

    def _catch_up(
        self, watcher: SocketWatcher, wanted: Wanted
    ) -> tuple[Actor, dict[int, CaughtUp | DomainError]]:
        with self._door(watcher):
            return orders.catch_up(
                watcher.credential.principal, wanted, self._scope, self._fanout.budget
            )

    def _identify(self, watcher: SocketWatcher, principal: Principal | None = None) -> Actor:
        """Who the watcher is now, or would be as *principal*."""
        with self._door(watcher):
            return actors.identify(principal or watcher.credential.principal)

    @contextlib.contextmanager
    def _door(self, watcher: SocketWatcher) -> Iterator[None]:
        """Wait for a turn at the database; who has gone meanwhile takes none from the others."""
        with self._guests.door:
            if not watcher.is_there:
                raise Unavailable("The connection has ended.")
            yield

    def _subscribe_feed(self, watcher: SocketWatcher, data: dict[str, Any]) -> Ack:
        _require_feed(data)
        watcher.actor = self._identify(watcher)
        watcher.join(feed_room(watcher.actor, self._scope))
        return {"ok": True}

    def _unsubscribe(self, watcher: SocketWatcher, data: Any) -> Ack:
        if isinstance(data, dict) and "feed" in data:
            _require_feed(data)
            if watcher.actor is not None:
                watcher.leave(feed_room(watcher.actor, self._scope))
        else:
            self._fanout.unsubscribe(watcher, parse(data, Unwanted).order_id)
        return {"ok": True}

    def _authenticate(self, watcher: SocketWatcher, data: Any) -> Ack:
        credential = identity.from_token(parse(data, Renewal).token)
        self._identify(watcher, credential.principal)
        self._guests.renew(watcher, credential)
        try:
            # Had it ended just before, the watcher was not found by it.
            self._identify(watcher)
        except InvalidToken as error:
            watcher.sign_out(error)
            raise
        return {"ok": True}

    def _unknown(self, event: str, _sid: str, *_arguments: Any) -> Ack:
        """An event that there is not: a typing error must not wait for its answer for ever."""
        error = NotFound(f"There is no event {event[:MAX_NAME_SHOWN]!r}.")
        return {"ok": False, "error": problem(error)}

    # --- around every event -------------------------------------------------------------------

    def _answering(self, handler: Callable[[SocketWatcher, Any], Ack]) -> Callable[..., Ack]:
        """Give *handler* the watcher and one argument; turn what it raises into an ack."""

        def handle(sid: str, *arguments: Any) -> Ack:
            watcher = self._watchers.get(sid)
            if watcher is None:
                closing = Unavailable("This connection is being closed. Connect again.")
                return {"ok": False, "error": problem(closing)}
            try:
                with self._app.app_context():
                    return handler(watcher, arguments[0] if arguments else None)
            except Exception as error:  # noqa: BLE001 (answered as a problem, logged if unexpected)
                return {"ok": False, "error": problem(from_exception(error))}

        return handle

    def _socket(self, sid: str) -> EngineSocket:
        found: EngineSocket = self.server.manager.socket(sid)
        return found

    def members(self, room: str) -> list[SocketWatcher]:
        """Who is in *room* now."""
        watchers = self._watchers
        sids = self.server.manager.rooms.get("/", {}).get(room, ())
        return [watchers[sid] for sid in sids if sid in watchers]


class Unwanted(OrderWanted):
    """An order that is not watched any more."""


class Renewal(Form):
    token: str


def _require_feed(data: dict[str, Any]) -> None:
    if data != {"feed": "orders"}:
        raise ValidationFailed.at("/feed", 'must be "orders", and alone')


def _ack(answer: CaughtUp | DomainError) -> Ack:
    if isinstance(answer, DomainError):
        return {"ok": False, "error": problem(answer)}
    return present_catch_up(answer)
