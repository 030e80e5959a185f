"""Passwords are hashed off the loop, and only so many wait for their turn."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ordertrack import eventlet_support
from tests.support.people import PASSWORD
from tests.support.servers import Server

STORM = 2 * eventlet_support._MAX_WAITING


def test_a_storm_of_logins_is_answered_or_turned_away(
    database: str, start_server: Callable[..., Server]
) -> None:
    # The pool is not what turns them away here.
    server = start_server(database, DB_POOL_SIZE="50", DB_POOL_TIMEOUT="60")
    person = server.people.customer()
    start = threading.Barrier(STORM)

    def log_in(_: int) -> tuple[int, str | None]:
        start.wait()
        answer = server.api.post("/api/login", json={"email": person.email, "password": PASSWORD})
        return answer.status_code, answer.headers.get("Retry-After")

    with ThreadPoolExecutor(STORM) as pool:
        answers = list(pool.map(log_in, range(STORM)))
    assert set(answers) <= {(200, None), (429, "2")}
    # Nobody who was in front was turned away, and not everybody could wait.
    assert (
        answers.count((200, None)) >= eventlet_support._MAX_THREADS + eventlet_support._MAX_WAITING
    )
    assert (429, "2") in answers
    assert person.signed_in_again().api.get("/api/me").status_code == 200


def test_nothing_is_turned_away_where_there_is_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventlet_support, "_MAX_WAITING", 0)
    assert eventlet_support.run_in_thread(sum, [1, 2]) == 3
