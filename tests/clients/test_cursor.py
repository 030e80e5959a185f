"""`OrderCursor` under every order of arrival: earlier state + events passed on = fresh state.

The same state machine drives Python's `OrderCursor` and, over a pipe, JavaScript's.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from ordertrack_client import OrderCursor

from tests.support.examples import examples

HERE = Path(__file__).parent

# The server's limits, small enough for a machine to reach them.
REPLAY_LIMIT = 4
PAGE = 3


class AnyCursor(Protocol):
    """What both languages' cursors have in common."""

    seen: int | None
    known: int
    behind: bool

    def take(self, events: list[Any], version: int = 0) -> list[Any]: ...

    def answer(
        self, order: Any, version: int, events: list[Any], *, reset: bool = False
    ) -> tuple[Any, list[Any]]: ...

    def restart(self) -> None: ...


class JavaScriptCursor:
    """The one of order-stream.js, in one process: a new cursor replaces the last one."""

    process: subprocess.Popen[str]

    def __init__(self, after: int | None = None) -> None:
        self._call("new", after)

    def _call(self, *call: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        answer, self.seen, self.known, self.behind = json.loads(self.process.stdout.readline())
        return answer

    def take(self, events: list[Any], version: int = 0) -> list[Any]:
        taken: list[Any] = self._call("take", events, version)
        return taken

    def answer(
        self, order: Any, version: int, events: list[Any], *, reset: bool = False
    ) -> tuple[Any, list[Any]]:
        ack = {"order": order, "version": version, "events": events}
        answer = self._call("answer", {**ack, "reset": True} if reset else ack)
        return answer["order"], answer["events"]

    def restart(self) -> None:
        self._call("restart")


@pytest.fixture(params=["python", "javascript"])
def cursor_class(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "python":
        yield OrderCursor
        return
    request.getfixturevalue("node")
    with subprocess.Popen(
        ["node", "cursor_bridge.js"],  # noqa: S607
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        JavaScriptCursor.process = process
        yield JavaScriptCursor


def event(version: int) -> dict[str, Any]:
    return {"order_id": "1", "version": version, "status": f"as of {version}"}


def order(version: int) -> dict[str, Any]:
    return {"id": "1", "version": version, "status": f"as of {version}"}


class Log:
    """The server, as far as a client sees it: how many events there are, and what it answers."""

    def __init__(self) -> None:
        self.version = 1

    def subscribe(self, after: int | None) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "order": order(self.version), "version": self.version, "events": []
        }  # fmt: skip
        if after is not None and self.version - after > REPLAY_LIMIT:
            answer["reset"] = True
        elif after is not None:
            answer["events"] = [event(number) for number in range(after + 1, self.version + 1)]
        return answer

    def page(self, after: int) -> dict[str, Any]:
        last = min(after + PAGE, self.version)
        return {
            "events": [event(number) for number in range(after + 1, last + 1)],
            "version": self.version,
        }


class Machine(RuleBasedStateMachine):
    """One order, one client, and everything under way between them in any order, any number of
    times, or never: live events, answers to subscriptions, pages of the history.
    """

    cursor_class: Callable[..., AnyCursor]

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.cursor: AnyCursor
        self.under_way: list[tuple[str, Any]] = []

    @initialize(after=st.sampled_from([None, 0, 1]))
    def begin(self, after: int | None) -> None:
        self.cursor = self.cursor_class(after)
        # What the page shows: the state it was given, moved on by each event.
        self.version: int | None = after
        self.status: str | None = None if after is None else f"as of {after}"

    def told(self, state: Any, events: list[Any]) -> None:
        if state is not None:
            assert self.version is None or state["version"] > self.version, "back in time"
            self.version, self.status = state["version"], state["status"]
        for one in events:
            assert self.version is not None, "an event before there was a state"
            assert one["version"] == self.version + 1, "repeated, skipped or out of order"
            self.version, self.status = one["version"], one["status"]

    def arrive(self, kind: str, what: Any) -> None:
        if kind == "live":
            self.told(None, self.cursor.take([what]))
        elif kind == "page":
            self.told(None, self.cursor.take(what["events"], what["version"]))
        else:
            self.told(*self.cursor.answer(**what))

    @rule(number=st.integers(1, 6))
    def change(self, number: int) -> None:
        for _ in range(number):
            self.log.version += 1
            self.under_way.append(("live", event(self.log.version)))

    @rule()
    def subscribe(self) -> None:
        self.under_way.append(("answer", self.log.subscribe(self.cursor.seen)))

    @rule()
    def poll(self) -> None:
        if self.cursor.seen is not None:
            self.under_way.append(("page", self.log.page(self.cursor.seen)))

    @rule(data=st.data(), stays=st.booleans())
    def something_arrives(self, data: st.DataObject, stays: bool) -> None:
        if self.under_way:
            index = data.draw(st.integers(0, len(self.under_way) - 1))
            one = self.under_way[index] if stays else self.under_way.pop(index)
            self.arrive(*one)

    @rule()
    def everything_under_way_is_lost(self) -> None:
        self.under_way.clear()

    @rule()
    def it_catches_up(self) -> None:
        """What both clients do on a new connection, while nothing fails."""
        self.arrive("answer", self.log.subscribe(self.cursor.seen))
        self.converged()

    @rule()
    def it_catches_up_by_polling(self) -> None:
        if self.cursor.seen is None:
            return
        more = True
        while more:
            page = self.log.page(self.cursor.seen)
            self.arrive("page", page)
            more = bool(page["events"])
        self.converged()

    @rule()
    def a_gap_is_closed_when_it_is_noticed(self) -> None:
        if self.cursor.behind:
            self.arrive("answer", self.log.subscribe(self.cursor.seen))
            self.converged()

    def converged(self) -> None:
        assert not self.cursor.behind
        assert (self.version, self.status) == (self.log.version, order(self.log.version)["status"])

    @invariant()
    def the_state_is_one_that_the_order_had(self) -> None:
        assert self.version == self.cursor.seen
        if self.version is not None:
            assert 0 <= self.version <= self.cursor.known <= self.log.version
            assert self.status == f"as of {self.version}"

    def teardown(self) -> None:
        if hasattr(self, "cursor"):
            self.it_catches_up()


def test_whatever_arrives_in_whatever_order_the_state_converges(cursor_class: Any) -> None:
    machine = type("Machine", (Machine,), {"cursor_class": cursor_class})
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples(150), stateful_step_count=40, deadline=None),
    )


def test_the_next_event_is_handed_on_and_no_other(cursor_class: Any) -> None:
    cursor = cursor_class(3)
    assert cursor.take([event(3), event(5)]) == []
    assert cursor.behind
    assert cursor.take([event(4), event(4), event(5), event(7)], 8) == [event(4), event(5)]
    assert (cursor.seen, cursor.known, cursor.behind) == (5, 8, True)


def test_before_a_state_is_known_nothing_is_handed_on(cursor_class: Any) -> None:
    cursor = cursor_class()
    assert cursor.take([event(1), event(2)]) == []
    assert not cursor.behind  # there is nothing yet that it could be behind of
    assert cursor.answer(order(1), 1, []) == (order(1), [])
    assert cursor.behind


def test_a_reset_replaces_the_state_unless_it_is_old(cursor_class: Any) -> None:
    cursor = cursor_class(3)
    assert cursor.answer(order(9), 9, [], reset=True) == (order(9), [])
    assert cursor.answer(order(8), 8, [], reset=True) == (None, [])
    assert cursor.seen == 9


def test_after_a_restart_any_state_will_do(cursor_class: Any) -> None:
    cursor = cursor_class(99)
    cursor.restart()
    assert cursor.answer(order(2), 2, []) == (order(2), [])
    assert not cursor.behind
