"""Heartbeats ping at their interval and expire silent connections; deadlines fall due in order."""

from collections import deque

import pytest

from ordertrack.server import heartbeat
from ordertrack.server.heartbeat import Heartbeat


class Beating:
    """A connection that is added at one time, and silent from another."""

    def __init__(self, joins: int, silent_from: int = 10_000) -> None:
        self.joins = joins
        self.silent_from = silent_from
        self.alive = True
        self.heard = True
        self.pings: list[int] = []
        self.expired: int | None = None


def test_a_heartbeat_pings_at_its_interval_and_expires_silent_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0

    def expire(one: Beating) -> None:
        one.alive, one.expired = False, now

    beat = Heartbeat(
        25.0,
        20.0,
        ping=lambda one: one.pings.append(now),
        expire=expire,
        pause=lambda: None,
    )
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: float(now))
    crowd = [Beating(joins) for joins in range(60)]
    silent = Beating(joins=7, silent_from=40)
    for now in range(201):
        for one in (*crowd, silent):
            if one.joins == now:
                beat.add(one)
        beat.sweep(float(now))
        for one in (*crowd, silent):
            one.heard = one.heard or now < one.silent_from
    for one in crowd:
        assert one.pings == list(range(one.joins + 25, 201, 25))
        assert one.expired is None
    assert silent.pings == [32, 57]
    assert silent.expired == 77


@pytest.mark.safety("exception-in-the-loop")
def test_an_exception_for_one_connection_costs_no_other_its_pings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now)

    def ping(one: Beating) -> None:
        if one is crowd[1]:
            raise RuntimeError("cannot be pinged")
        one.pings.append(int(now))

    def expire(one: Beating) -> None:
        if one is crowd[3] and now < 60:
            raise RuntimeError("cannot be expired yet")
        one.alive, one.expired = False, int(now)

    crowd = [Beating(0) for _ in range(5)]
    beat = Heartbeat(25.0, 20.0, ping=ping, expire=expire, pause=lambda: None)
    for one in crowd:
        beat.add(one)
    for now in (25.0, 26.0, 45.0, 50.0, 70.0, 75.0):
        beat.sweep(now)
        crowd[0].heard = True
    assert [one.expired for one in crowd] == [None, 26, 45, 70, 45]
    assert crowd[0].pings == [25, 50, 75]


@pytest.mark.parametrize(("interval", "timeout"), [(1.0, 1.0), (1.0, 0.05), (0.2, 0.0)])
def test_an_interval_that_is_too_short_is_refused(interval: float, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be"):
        Heartbeat(interval, timeout, ping=id, expire=id, pause=int)


def test_a_heartbeat_says_how_often_it_has_to_be_swept() -> None:
    assert Heartbeat(25.0, 20.0, ping=id, expire=id, pause=int).period == 1.0
    assert Heartbeat(0.3, 0.2, ping=id, expire=id, pause=int).period == 0.05


def test_due_entries_are_taken_in_chunks_with_pauses_between() -> None:
    queue = deque((float(n), n) for n in range(1000))
    pauses: list[int] = []
    due = heartbeat.take_due(queue, 599.0, lambda: pauses.append(len(queue)))
    taken = [number for _, number in due]
    assert taken == list(range(600))
    assert pauses == [744, 488]
