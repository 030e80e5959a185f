"""Who is connected, and for how long."""

import time

import pytest

from ordertrack.auth import Credential
from ordertrack.errors import DomainError, InvalidToken, TooManyRequests, Unavailable
from ordertrack.eventlog import AccessEnded
from ordertrack.policy import Caller, DriverScope
from ordertrack.realtime.connections import Connections


class Visitor:
    def __init__(self, user: int = 1, session: int = 1, expires_in: float = 900) -> None:
        self.credential = credential(user, session, expires_in)
        self.told: str | None = None
        self.silenced: DomainError | None = None

    def silence(self, error: DomainError) -> None:
        self.silenced = error

    def sign_out(self, error: DomainError) -> None:
        self.told = error.code


def credential(user: int, session: int, expires_in: float) -> Credential:
    return Credential(Caller(user, session, DriverScope.ALL), time.time() + expires_in)


@pytest.fixture
def connections() -> Connections:
    return Connections(most=3, per_user=2)


def test_a_guest_whose_token_has_expired_is_told(connections: Connections) -> None:
    expired, good = Visitor(expires_in=-1), Visitor(expires_in=60)
    connections.admit(expired)
    connections.admit(good)
    connections.sweep(0)
    assert (expired.told, good.told) == ("token_expired", None)


def test_a_renewed_guest_stays_and_then_expires_by_its_new_token(connections: Connections) -> None:
    connection = Visitor(expires_in=-1)
    connections.admit(connection)
    connections.renew(connection, credential(1, 2, 60))
    connections.sweep(0)
    assert connection.told is None
    connections.renew(connection, credential(1, 2, -1))
    connections.sweep(0)
    assert connection.told == "token_expired"


def test_a_guest_does_not_go_on_as_somebody_else(connections: Connections) -> None:
    connection = Visitor(user=1)
    connections.admit(connection)
    with pytest.raises(InvalidToken):
        connections.renew(connection, credential(2, 1, 60))


def test_all_who_are_sent_away_have_an_error_of_their_own(connections: Connections) -> None:
    """Each raises it where it is, and its traceback holds what it was doing."""
    visitors = [Visitor(user=1), Visitor(user=2), Visitor(user=3)]
    for visitor in visitors:
        connections.admit(visitor)
    assert connections.silence_all(lambda: Unavailable("Connect again.")) == visitors
    assert len({id(visitor.silenced) for visitor in visitors} - {id(None)}) == 3


def test_a_session_that_ends_takes_its_own_guests_along(connections: Connections) -> None:
    first, second, stranger = Visitor(1, 1), Visitor(1, 2), Visitor(2, 3)
    for connection in (first, second, stranger):
        connections.admit(connection)
    connections.end_access(AccessEnded(1, 1, 1, "signed_out"))
    assert [connection.told for connection in (first, second, stranger)] == [
        "invalid_token",
        None,
        None,
    ]
    connections.end_access(AccessEnded(2, 1, None, "deactivated"))
    assert [connection.told for connection in (second, stranger)] == ["invalid_token", None]


def test_the_house_and_each_share_of_it_have_a_limit(connections: Connections) -> None:
    connections.admit(Visitor(1))
    connections.admit(Visitor(1))
    with pytest.raises(TooManyRequests):
        connections.admit(Visitor(1))
    connections.admit(Visitor(2))
    with pytest.raises(TooManyRequests):
        connections.admit(Visitor(3))
    assert len(connections) == 3


def test_who_leaves_leaves_nothing_behind(connections: Connections) -> None:
    for _ in range(1000):
        connection = Visitor()
        connections.admit(connection)
        connections.leave(connection)
        connections.leave(connection)
    assert len(connections) == 0
    assert sum(map(len, connections._expiring.values())) == 0
    assert connections._by_user == {}


class Stubborn(Visitor):
    def sign_out(self, error: DomainError) -> None:
        raise RuntimeError("a bug in signing out")


def test_one_that_cannot_be_told_does_not_keep_the_others_in(connections: Connections) -> None:
    """Neither when tokens expire in the same second, nor when an account ends."""
    expires_at = time.time() - 1
    told: list[Visitor] = []
    for number in range(3):
        connection = Stubborn(user=number) if number % 2 else Visitor(user=number)
        connection.credential = Credential(Caller(number, 1, DriverScope.ALL), expires_at)
        connections.admit(connection)
        told.append(connection)
    connections.sweep(0)
    assert [connection.told for connection in told] == ["token_expired", None, "token_expired"]
    assert len(connections) == 2, "whoever could not be told has no right any more, either"


def test_one_that_cannot_be_told_of_an_end_does_not_keep_the_others_in(
    connections: Connections,
) -> None:
    stubborn, good = Stubborn(1), Visitor(1)
    connections.admit(stubborn)
    connections.admit(good)
    connections.end_access(AccessEnded(1, 1, None, "deactivated"))
    assert good.told == "invalid_token"
    assert stubborn not in connections._by_user.get(1, ())
