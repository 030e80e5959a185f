"""Socket.IO: the events connect, subscribe, unsubscribe and authenticate.

Handlers are registered on python-socketio's server and get no Flask request context: they need the
token, not a request. Nothing here changes an order: that is for REST alone. The hub's rooms are
Flask-SocketIO's rooms as well, so that its API shows them; events are delivered by the hub.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask
from socketio.exceptions import ConnectionRefusedError as Refused

from ordertrack import auth
from ordertrack.auth import Credential
from ordertrack.errors import DomainError, InvalidToken, NotFound, Unavailable, ValidationFailed
from ordertrack.policy import Actor
from ordertrack.problems import from_exception, problem
from ordertrack.realtime.connections import Connections
from ordertrack.realtime.database_gate import DatabaseGate
from ordertrack.realtime.hub import Announcement, Hub, feed_room
from ordertrack.schemas import (
    Subscription,
    Subscriptions,
    TokenRenewal,
    Unsubscription,
    parse,
    present_catch_up,
    to_json,
)
from ordertrack.server.counters import counters
from ordertrack.server.ws_frames import CloseCode
from ordertrack.services.orders import CaughtUp
from ordertrack.sio.engineio import EngineIOSession, encode_event
from ordertrack.sio.socketio import SocketIO

# Characters of an unknown event's name that the answer repeats.
MAX_NAME_SHOWN = 50

Ack = dict[str, Any]


class SocketIOWatcher:
    """A `hub.Watcher` on Socket.IO, kept as its session's `application` until it is closed."""

    __slots__ = (
        "_connections",
        "_server",
        "_session",
        "_sid",
        "actor",
        "closing",
        "credential",
        "is_connected",
        "rooms",
    )
    kind = "socketio"

    def __init__(
        self,
        sid: str,
        session: EngineIOSession,
        server: Any,
        credential: Credential,
        connections: Connections,
    ) -> None:
        self.credential = credential
        self.actor: Actor | None = None
        self.rooms: tuple[str, ...] = ()
        self.closing: DomainError | None = None
        self.is_connected = False  # its CONNECT has been accepted
        self._sid = sid
        self._session = session
        self._server = server
        self._connections = connections

    @property
    def is_alive(self) -> bool:
        return self._session.alive

    def deliver(self, announcement: Announcement) -> None:
        self._session.enqueue(announcement.message)

    def joined(self, room: str) -> None:
        self._server.enter_room(self._sid, room)

    def left(self, room: str) -> None:
        self._server.leave_room(self._sid, room)

    def stop(self, error: DomainError) -> None:
        self.closing = self.closing or error
        self._connections.remove(self)

    def close_with_error(self, error: DomainError) -> None:
        self.stop(error)
        if self.is_connected:  # else its CONNECT is refused with the error
            self._session.enqueue(encode_event("signed_out", to_json(problem(error))))
            self._session.close_with(CloseCode.POLICY_VIOLATION, error.code, reconnect=False)

    def close(self, code: CloseCode, reason: str) -> None:
        self.stop(Unavailable(reason))
        self._session.close_with(code, reason, reconnect=True)


class SocketIOHandlers:
    """The handlers of one process's Socket.IO events."""

    def __init__(
        self, app: Flask, socketio: SocketIO, hub: Hub, connections: Connections, gate: DatabaseGate
    ) -> None:
        self._app = app
        self._hub = hub
        self._connections = connections
        self._gate = gate
        self._server: Any = socketio.server
        for name, handler in {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "authenticate": self._authenticate,
        }.items():
            self._server.on(name, self._acknowledging(handler))
        self._server.on("*", self._unknown)
        self._server.on("connect", self._connect)
        self._server.on("disconnect", self._disconnect)

    # --- events -------------------------------------------------------------------------------

    def _connect(self, sid: str, environ: Mapping[str, Any], sent: Any = None) -> None:
        session = self._session(sid)
        try:
            with self._app.app_context():
                token = sent.get("token") if isinstance(sent, dict) else None
                if token is None:
                    token = auth.token_from_cookies(environ.get("HTTP_COOKIE"))
                watcher = SocketIOWatcher(
                    sid, session, self._server, auth.from_token(token), self._connections
                )
                self._connections.admit(watcher)
                session.application = watcher
                self._gate.identify(watcher)
            if watcher.closing is not None:  # revoked since the database answered
                raise watcher.closing
            watcher.is_connected = True
        except Exception as error:
            self._disconnect(sid)
            shown = from_exception(error)
            if session.alive:
                counters.refuse(shown.code)
            if isinstance(shown, Unavailable):
                # The stock clients reconnect after a close, but not after a CONNECT_ERROR.
                session.close_with(CloseCode.TRY_AGAIN_LATER, shown.code, reconnect=True)
            raise Refused(shown.detail, problem(shown)) from error

    def _disconnect(self, sid: str, _reason: str = "") -> None:
        session = self._session(sid)
        watcher: SocketIOWatcher | None = session.application
        if watcher is not None:
            session.application = None
            watcher.stop(Unavailable("The connection has ended."))
            self._hub.remove(watcher)

    def _subscribe(self, watcher: SocketIOWatcher, data: Any) -> Ack:
        if isinstance(data, dict) and "feed" in data:
            return self._subscribe_feed(watcher, data)
        several = isinstance(data, dict) and "orders" in data
        wanted = parse(data, Subscriptions).orders if several else [parse(data, Subscription)]
        if len({one.order_id for one in wanted}) != len(wanted):
            raise ValidationFailed.at("/orders", "must name each order once")
        answers = self._hub.subscribe(watcher, {one.order_id: one.after for one in wanted})
        acks = [_ack(answers[one.order_id]) for one in wanted]
        return {"ok": True, "results": acks} if several else acks[0]

    def _subscribe_feed(self, watcher: SocketIOWatcher, data: dict[str, Any]) -> Ack:
        _require_feed(data)
        watcher.actor = self._gate.identify(watcher)
        self._hub.join(watcher, feed_room(watcher.actor))
        return {"ok": True}

    def _unsubscribe(self, watcher: SocketIOWatcher, data: Any) -> Ack:
        if isinstance(data, dict) and "feed" in data:
            _require_feed(data)
            if watcher.actor is not None:
                self._hub.leave(watcher, feed_room(watcher.actor))
        else:
            self._hub.unsubscribe(watcher, parse(data, Unsubscription).order_id)
        return {"ok": True}

    def _authenticate(self, watcher: SocketIOWatcher, data: Any) -> Ack:
        credential = auth.from_token(parse(data, TokenRenewal).token)
        self._gate.identify(watcher, credential.caller)
        self._connections.renew(watcher, credential)
        try:
            # Revoked just before, the session had no connection yet that could be closed.
            self._gate.identify(watcher)
        except InvalidToken as error:
            watcher.close_with_error(error)
            raise
        return {"ok": True}

    def _unknown(self, event: str, _sid: str, *_arguments: Any) -> Ack:
        """An event that does not exist: without an answer, a client would wait for ever."""
        error = NotFound(f"There is no event {event[:MAX_NAME_SHOWN]!r}.")
        return {"ok": False, "error": problem(error)}

    # --- around every event -------------------------------------------------------------------

    def _acknowledging(self, handler: Callable[[SocketIOWatcher, Any], Ack]) -> Callable[..., Ack]:
        """Call *handler* with the watcher and one argument; an error becomes a negative ack."""

        def handle(sid: str, *arguments: Any) -> Ack:
            watcher: SocketIOWatcher | None = self._session(sid).application
            try:
                if watcher is None or watcher.closing is not None:
                    raise Unavailable("This connection is being closed. Connect again.")
                with self._app.app_context():
                    return handler(watcher, arguments[0] if arguments else None)
            except Exception as error:  # noqa: BLE001 (answered as a problem, logged if unexpected)
                return {"ok": False, "error": problem(from_exception(error))}

        return handle

    def _session(self, sid: str) -> EngineIOSession:
        found: EngineIOSession = self._server.manager.socket(sid)
        return found


def _require_feed(data: dict[str, Any]) -> None:
    if data != {"feed": "orders"}:
        raise ValidationFailed.at("/feed", 'must be "orders", and alone')


def _ack(answer: CaughtUp | DomainError) -> Ack:
    if isinstance(answer, DomainError):
        return {"ok": False, "error": problem(answer)}
    return present_catch_up(answer)
