"""A right that ends while its holder comes in: whatever the moment, it is noticed.

The moments lie between two steps of one handler, where nothing can be timed from outside; so the
database's answer, or the watcher's renewal, is followed by the end of the right at once.
"""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from socketio.exceptions import ConnectionRefusedError as Refused

from ordertrack.auth import from_token
from ordertrack.eventlog import AccessEnded
from ordertrack.policy import Actor, Caller, DriverScope
from ordertrack.realtime import socketio_handlers as module
from ordertrack.realtime.connections import Connections
from ordertrack.realtime.socketio_handlers import SocketIOHandlers
from tests.support.people import People, Person


class Sockets:
    """What stands below `SocketIOHandlers`: keeps the handlers, and whatever is sent and closed."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.sent: list[Any] = []
        self.closed: list[tuple[Any, ...]] = []
        self.server = self.manager = self
        self.rooms: dict[str, Any] = {}
        self.alive = True

    def on(self, name: str, handler: Callable[..., Any]) -> None:
        self.handlers[name] = handler

    def socket(self, sid: str) -> "Sockets":
        return self

    def enqueue(self, message: Any) -> None:
        self.sent.append(message)

    def close_with(self, *reason: Any, **options: Any) -> None:
        self.closed.append(reason)


class Door:
    def __init__(self, app: Flask) -> None:
        self.sockets = Sockets()
        self.connections = Connections(most=10, per_user=10)
        hub: Any = None
        sockets: Any = self.sockets
        self.rooms = SocketIOHandlers(app, sockets, hub, self.connections, DriverScope.ALL)

    def connect(self, person: Person) -> None:
        self.sockets.handlers["connect"]("sid", {}, {"token": person.token})

    def authenticate(self, person: Person) -> Any:
        return self.sockets.handlers["authenticate"]("sid", {"token": person.token})

    def tell(self, caller: Caller) -> None:
        """As the relay does, when the session has ended."""
        self.connections.end_access(AccessEnded(1, caller.user_id, caller.session_id, "signed_out"))


@pytest.fixture
def door(app: Flask) -> Door:
    return Door(app)


def principal_of(app: Flask, person: Person) -> Caller:
    with app.app_context():
        return from_token(person.token).caller


@pytest.mark.safety("ended-rights-close-sockets")
def test_who_is_signed_out_while_being_let_in_is_not_let_in(
    app: Flask, people: People, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = people.customer()
    genuine = module.callers.identify

    def identify(caller: Caller) -> Actor:
        actor = genuine(caller)  # good still, and now no longer:
        door.tell(caller)
        return actor

    monkeypatch.setattr(module.callers, "identify", identify)
    with pytest.raises(Refused) as refused:
        door.connect(person)
    assert refused.value.error_args["data"]["code"] == "invalid_token"
    assert not door.rooms.knows("sid")
    assert len(door.connections) == 0


@pytest.mark.safety("ended-rights-close-sockets")
def test_who_renews_with_a_session_that_ends_just_then_is_signed_out(
    app: Flask, people: People, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = people.customer()
    other = person.signed_in_again()
    door.connect(person)
    assert door.rooms.knows("sid")
    genuine = door.connections.renew

    def renew(*arguments: Any) -> None:
        # The relay is told before the watcher stands for that session: it finds nobody.
        other.api.post("/api/logout")
        door.tell(principal_of(app, other))
        genuine(*arguments)

    monkeypatch.setattr(door.connections, "renew", renew)
    answer = door.authenticate(other)
    assert (answer["ok"], answer["error"]["code"]) == (False, "invalid_token")
    assert not door.rooms.knows("sid")
    assert len(door.connections) == 0
    assert door.sockets.closed == [(1008, "invalid_token")]
