"""The registry of connections: limits, tokens that expire, sessions that are revoked."""

import time

import pytest

from ordertrack.auth import Credential
from ordertrack.errors import DomainError, InvalidToken, TooManyRequests, Unavailable
from ordertrack.log_tail import Revoked
from ordertrack.policy import Caller, DriverScope
from ordertrack.realtime.connections import Connections
from tests.realtime.fakes import FakeWatcher, credential_for


@pytest.fixture
def connections() -> Connections:
    return Connections(limit=3, per_user=2)


def test_a_connection_is_closed_when_its_token_has_expired(connections: Connections) -> None:
    expired, good = FakeWatcher(expires_in=-1), FakeWatcher(expires_in=60)
    connections.admit(expired)
    connections.admit(good)
    connections.close_expired(0)
    assert (expired.logged_out, good.logged_out) == (["token_expired"], [])


def test_a_renewed_token_replaces_the_expiry_of_the_old_one(connections: Connections) -> None:
    connection = FakeWatcher(expires_in=-1)
    connections.admit(connection)
    connections.renew(connection, credential_for(1, 2, 60))
    connections.close_expired(0)
    assert connection.logged_out == []
    connections.renew(connection, credential_for(1, 2, -1))
    connections.close_expired(0)
    assert connection.logged_out == ["token_expired"]


def test_a_token_cannot_be_renewed_by_one_of_another_user(connections: Connections) -> None:
    connection = FakeWatcher(user_id=1)
    connections.admit(connection)
    with pytest.raises(InvalidToken):
        connections.renew(connection, credential_for(2, 1, 60))


def test_every_stopped_connection_has_an_error_of_its_own(connections: Connections) -> None:
    """Each may raise its own, and the traceback of an exception keeps the frames it passed."""
    watchers = [FakeWatcher(user_id=1), FakeWatcher(2), FakeWatcher(3)]
    for watcher in watchers:
        connections.admit(watcher)
    assert connections.stop_all(lambda: Unavailable("Connect again.")) == watchers
    assert len({id(watcher.closing) for watcher in watchers} - {id(None)}) == 3


def test_a_revocation_closes_the_connections_of_its_session_or_user(
    connections: Connections,
) -> None:
    first, second, stranger = FakeWatcher(1, 1), FakeWatcher(1, 2), FakeWatcher(2, 3)
    for connection in (first, second, stranger):
        connections.admit(connection)
    connections.close_revoked(Revoked(1, 1, 1, "signed_out"))
    assert [connection.logged_out for connection in (first, second, stranger)] == [
        ["invalid_token"],
        [],
        [],
    ]
    connections.close_revoked(Revoked(2, 1, None, "deactivated"))
    assert [connection.logged_out for connection in (second, stranger)] == [["invalid_token"], []]


def test_the_process_and_each_user_have_a_limit_of_connections(connections: Connections) -> None:
    connections.admit(FakeWatcher(1))
    connections.admit(FakeWatcher(1))
    with pytest.raises(TooManyRequests):
        connections.admit(FakeWatcher(1))
    connections.admit(FakeWatcher(2))
    with pytest.raises(TooManyRequests):
        connections.admit(FakeWatcher(3))
    assert len(connections) == 3


def test_a_removed_connection_leaves_nothing_in_memory(connections: Connections) -> None:
    for _ in range(1000):
        connection = FakeWatcher()
        connections.admit(connection)
        connections.remove(connection)
        connections.remove(connection)
    assert len(connections) == 0
    assert sum(map(len, connections._expiring.values())) == 0
    assert connections._by_user == {}


class FailingWatcher(FakeWatcher):
    def close_with_error(self, error: DomainError) -> None:
        raise RuntimeError("a bug in log_out")


def test_a_failing_log_out_keeps_no_other_expired_connection_open(
    connections: Connections,
) -> None:
    """Their tokens expire in the same second."""
    expires_at = time.time() - 1
    watchers: list[FakeWatcher] = []
    for number in range(3):
        connection = FailingWatcher(user_id=number) if number % 2 else FakeWatcher(user_id=number)
        connection.credential = Credential(Caller(number, 1, DriverScope.ALL), expires_at)
        connections.admit(connection)
        watchers.append(connection)
    connections.close_expired(0)
    assert [connection.logged_out for connection in watchers] == [
        ["token_expired"],
        [],
        ["token_expired"],
    ]
    assert len(connections) == 2, "a connection that cannot be logged out is forgotten as well"


def test_a_failing_log_out_keeps_no_other_revoked_connection_open(
    connections: Connections,
) -> None:
    failing, good = FailingWatcher(1), FakeWatcher(1)
    connections.admit(failing)
    connections.admit(good)
    connections.close_revoked(Revoked(1, 1, None, "deactivated"))
    assert good.logged_out == ["invalid_token"]
    assert failing not in connections._by_user.get(1, ())
