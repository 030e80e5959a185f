"""A session that is revoked while its connection is opened: it is closed, whatever the moment.

The moments lie between two steps of one handler, where nothing can be timed from outside; so the
session is revoked at once after the database's answer, or before the renewal.
"""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from socketio.exceptions import ConnectionRefusedError as Refused

from ordertrack.auth import from_token
from ordertrack.log_tail import Revoked
from ordertrack.policy import Actor, Caller
from ordertrack.realtime.connections import Connections
from ordertrack.realtime.database_gate import DatabaseGate
from ordertrack.realtime.hub import Hub
from ordertrack.realtime.socketio_handlers import SocketIOHandlers
from ordertrack.services import callers
from ordertrack.services.orders import Budget
from tests.support.people import People, Person


class Sockets:
    """Stands for the Socket.IO server and its only session; keeps handlers, and what is sent."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.sent: list[Any] = []
        self.closed: list[tuple[Any, ...]] = []
        self.server = self.manager = self
        self.application: Any = None
        self.alive = True

    def on(self, name: str, handler: Callable[..., Any]) -> None:
        self.handlers[name] = handler

    def socket(self, sid: str) -> "Sockets":
        return self

    def enqueue(self, message: Any) -> None:
        self.sent.append(message)

    def close_with(self, *reason: Any, **options: Any) -> None:
        self.closed.append(reason)


class Handlers:
    def __init__(self, app: Flask) -> None:
        self.sockets = Sockets()
        self.connections = Connections(limit=10, per_user=10)
        gate = DatabaseGate(1, Budget())
        sockets: Any = self.sockets
        SocketIOHandlers(app, sockets, Hub(gate.catch_up), self.connections, gate)

    def connect(self, person: Person) -> None:
        self.sockets.handlers["connect"]("sid", {}, {"token": person.token})

    def authenticate(self, person: Person) -> Any:
        return self.sockets.handlers["authenticate"]("sid", {"token": person.token})

    def revoke(self, caller: Caller) -> None:
        """As the relay does when it reads the revocation."""
        self.connections.close_revoked(Revoked(1, caller.user_id, caller.session_id, "signed_out"))


@pytest.fixture
def handlers(app: Flask) -> Handlers:
    return Handlers(app)


def caller_of(app: Flask, person: Person) -> Caller:
    with app.app_context():
        return from_token(person.token).caller


@pytest.mark.safety("ended-rights-close-sockets")
def test_a_session_that_is_revoked_while_it_connects_is_refused(
    app: Flask, people: People, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = people.customer()
    genuine = callers.identify

    def identify(caller: Caller) -> Actor:
        actor = genuine(caller)  # still good; revoked now:
        handlers.revoke(caller)
        return actor

    monkeypatch.setattr(callers, "identify", identify)
    with pytest.raises(Refused) as refused:
        handlers.connect(person)
    assert refused.value.error_args["data"]["code"] == "invalid_token"
    assert not handlers.sockets.application
    assert len(handlers.connections) == 0


@pytest.mark.safety("ended-rights-close-sockets")
def test_a_session_that_is_revoked_while_a_token_of_it_is_taken_up_is_closed(
    app: Flask, people: People, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = people.customer()
    other = person.signed_in_again()
    handlers.connect(person)
    assert handlers.sockets.application
    genuine = handlers.connections.renew

    def renew(*arguments: Any) -> None:
        # The relay reads it before the connection belongs to that session: it finds none to close.
        other.api.post("/api/logout")
        handlers.revoke(caller_of(app, other))
        genuine(*arguments)

    monkeypatch.setattr(handlers.connections, "renew", renew)
    answer = handlers.authenticate(other)
    assert (answer["ok"], answer["error"]["code"]) == (False, "invalid_token")
    assert handlers.authenticate(person)["error"]["code"] == "unavailable", "it is being closed"
    assert len(handlers.connections) == 0
    assert handlers.sockets.closed == [(1008, "invalid_token")]
