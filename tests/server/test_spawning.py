"""`loop.spawn`: greenlets that are used again, as if each function had one of its own."""

import contextvars
import gc
import weakref
from typing import Any

import eventlet
import greenlet
import pytest

from ordertrack.server import loop

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(autouse=True)
def _without_idle_greenlets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_idle", [])


def run_all() -> None:
    for _ in range(3):
        eventlet.sleep(0)


def test_a_greenlet_runs_one_function_after_the_other() -> None:
    ran: list[Any] = []
    for number in range(3):
        loop.spawn(lambda number: ran.append((number, greenlet.getcurrent())), number)
        run_all()
    assert [number for number, _ in ran] == [0, 1, 2]
    assert len({id(one) for _, one in ran}) == 1


def test_functions_that_wait_run_side_by_side_each_in_its_own() -> None:
    ran: list[Any] = []

    def wait() -> None:
        ran.append(greenlet.getcurrent())
        eventlet.sleep(0.01)
        ran.append(greenlet.getcurrent())

    for _ in range(5):
        loop.spawn(wait)
    eventlet.sleep(0.05)
    assert len(ran) == 10
    assert set(ran[:5]) == set(ran[5:])
    assert len(set(ran)) == 5


def test_no_context_variable_outlives_its_function() -> None:
    seen: list[str] = []

    def look_and_set() -> None:
        seen.append(variable.get())
        variable.set("of the first")

    variable.set("of the one who spawns")
    for _ in range(2):
        loop.spawn(look_and_set)
        run_all()
    assert seen == ["unset", "unset"]


@pytest.mark.parametrize("error", [RuntimeError, eventlet.Timeout])
def test_a_function_that_fails_takes_no_greenlet_with_it(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[Any] = []

    def fail() -> None:
        ran.append(greenlet.getcurrent())
        raise error("expected")

    for _ in range(2):
        loop.spawn(fail)
        run_all()
    assert len(caplog.records) == 2
    assert ran[0] is ran[1]


def test_an_idle_greenlet_keeps_nothing_of_its_function() -> None:
    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)
    loop.spawn(lambda _: None, argument)
    del argument
    run_all()
    gc.collect()
    assert loop._idle
    assert gone() is None


def test_only_so_many_greenlets_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MAX_IDLE", 2)
    ran: list[weakref.ref[Any]] = []
    for _ in range(5):
        loop.spawn(lambda: ran.append(weakref.ref(greenlet.getcurrent())))
    run_all()
    gc.collect()
    assert len(ran) == 5
    assert len([one for one in ran if one() is not None]) == len(loop._idle) == 2
