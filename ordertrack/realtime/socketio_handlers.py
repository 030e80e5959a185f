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

from ordertrack import auth
from ordertrack.auth import Credential
from ordertrack.errors import (
    DomainError,
    InvalidToken,
    NotFound,
    Unavailable,
    ValidationFailed,
)
from ordertrack.policy import Actor, Caller
from ordertrack.problems import from_exception, problem
from ordertrack.realtime.connections import Connections
from ordertrack.realtime.hub import Announcement, Hub, Wanted, feed_room
from ordertrack.schemas import (
    Form,
    OrdersWanted,
    OrderWanted,
    parse,
    present_catch_up,
    to_json,
)
from ordertrack.server.counters import counters
from ordertrack.server.ws_frames import CloseCode
from ordertrack.services import callers, orders
from ordertrack.services.orders import CaughtUp
from ordertrack.sio.engineio import EngineIOSession, encode_event
from ordertrack.sio.socketio import SocketIO

# Of an unknown event's name.
MAX_NAME_SHOWN = 50

Ack = dict[str, Any]


class SocketWatcher:
    """A Socket.IO client that has been let in."""

    __slots__ = ("_rooms", "_sid", "_socket", "actor", "credential", "ended", "is_connected")

    def __init__(
        self, rooms: "SocketIOHandlers", sid: str, socket: EngineIOSession, credential: Credential
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
        self._socket.enqueue(announcement.outgoing)

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
            self._socket.enqueue(encode_event("signed_out", to_json(problem(error))))
            self._socket.close_with(CloseCode.POLICY_VIOLATION, error.code, reconnect=False)

    def hang_up(self, code: int, reason: str) -> None:
        self.silence(Unavailable(reason))
        self._socket.close_with(code, reason, reconnect=True)


class SocketIOHandlers:
    """The Socket.IO side of one process."""

    def __init__(self, app: Flask, socketio: SocketIO, hub: Hub, connections: Connections) -> None:
        self._app = app
        self._hub = hub
        self._connections = connections
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
            self._connections.leave(watcher)

    # --- events -------------------------------------------------------------------------------

    def _connect(self, sid: str, environ: Mapping[str, Any], sent: Any = None) -> None:
        socket = self._socket(sid)
        try:
            with self._app.app_context():
                token = sent.get("token") if isinstance(sent, dict) else None
                if token is None:
                    token = auth.token_from_cookies(environ.get("HTTP_COOKIE"))
                watcher = SocketWatcher(self, sid, socket, auth.from_token(token))
                self._connections.admit(watcher)
                self._watchers[sid] = watcher
                self._identify(watcher)
            if not self.knows(sid):
                raise watcher.ended or callers.session_revoked()
            watcher.is_connected = True
        except Exception as error:
            self.forget(sid)
            shown = from_exception(error)
            if socket.alive:
                counters.refuse(shown.code)
            if isinstance(shown, Unavailable):
                # Refused, the stock clients would not come back; closed, they do.
                socket.close_with(CloseCode.TRY_AGAIN_LATER, shown.code, reconnect=True)
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
        return self._hub.subscribe(
            watcher,
            {one.order_id: one.after for one in wanted},
            lambda some: self._catch_up(watcher, some),
        )

    def _catch_up(
        self, watcher: SocketWatcher, wanted: Wanted
    ) -> tuple[Actor, dict[int, CaughtUp | DomainError]]:
        with self._door(watcher):
            return orders.catch_up(watcher.credential.caller, wanted, self._hub.budget)

    def _identify(self, watcher: SocketWatcher, caller: Caller | None = None) -> Actor:
        """Who the watcher is now, or would be as *caller*."""
        with self._door(watcher):
            return callers.identify(caller or watcher.credential.caller)

    @contextlib.contextmanager
    def _door(self, watcher: SocketWatcher) -> Iterator[None]:
        """Wait for a turn at the database; who has gone meanwhile takes none from the others."""
        with self._connections.door:
            if not watcher.is_there:
                raise Unavailable("The connection has ended.")
            yield

    def _subscribe_feed(self, watcher: SocketWatcher, data: dict[str, Any]) -> Ack:
        _require_feed(data)
        watcher.actor = self._identify(watcher)
        watcher.join(feed_room(watcher.actor))
        return {"ok": True}

    def _unsubscribe(self, watcher: SocketWatcher, data: Any) -> Ack:
        if isinstance(data, dict) and "feed" in data:
            _require_feed(data)
            if watcher.actor is not None:
                watcher.leave(feed_room(watcher.actor))
        else:
            self._hub.unsubscribe(watcher, parse(data, Unwanted).order_id)
        return {"ok": True}

    def _authenticate(self, watcher: SocketWatcher, data: Any) -> Ack:
        credential = auth.from_token(parse(data, Renewal).token)
        self._identify(watcher, credential.caller)
        self._connections.renew(watcher, credential)
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

    def _socket(self, sid: str) -> EngineIOSession:
        found: EngineIOSession = self.server.manager.socket(sid)
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
