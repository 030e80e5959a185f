"""The history check finds each kind of violation, put alone into a history that was good."""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults import history as history_check
from tests.faults.history import Leg, Outcome, Write, violations


@dataclass
class History:
    trails: dict[str, list[dict[str, Any]]]
    writes: list[Write]
    legs: list[Leg]

    def violations(self) -> list[str]:
        return violations(self.trails, self.writes, self.legs)


def event(version: int, type: str, status: str, before: str | None, mark: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "order_id": "1",
        "version": version,
        "type": type,
        "status": status,
        "previous_status": before,
        "actor": {"id": "1", "name": "Ann", "role": "admin"},
        "note": None,
        "updated_at": f"2025-07-28T10:00:0{version}Z",
    }
    if type == "status_changed":
        return {**shown, "note": mark}
    return {**shown, "changes": {"description": mark}}


def write(mark: str, sent: float, version: int, target: str | None = None) -> Write:
    return Write(mark, sent, "1", target, sent + 0.5, Outcome.ACKNOWLEDGED, version)


@pytest.fixture
def history() -> History:
    """Three changes of one order; a watcher that was cut off after the first, one that was not."""
    trail = [
        event(1, "created", "Pending", None, "a"),
        event(2, "description_changed", "Pending", "Pending", "b"),
        event(3, "status_changed", "Processing", "Pending", "c"),
    ]
    return History(
        {"1": trail},
        [
            write("a", 1.0, 1),
            write("b", 2.0, 2),
            write("c", 3.0, 3, "Processing"),
            write("c again", 4.0, 3, "Processing"),
            Write("never heard of", 5.0, "1"),
            Write("not allowed", 6.0, "1", "Completed", 6.5, Outcome.REFUSED),
        ],
        [
            Leg("first", "1", 0, deepcopy(trail[:1])),
            Leg("first", "1", 1, deepcopy(trail[1:]), complete=True),
            Leg("second", "1", 0, deepcopy(trail), complete=True),
            Leg("feed", "1", None, deepcopy(trail[1:]), complete=True),
        ],
    )


def test_a_history_without_violations_passes(history: History) -> None:
    assert history.violations() == []


def lose_an_acknowledged_write(h: History) -> None:
    h.writes.append(write("d", 7.0, 4))


def answer_a_status_that_never_was(h: History) -> None:
    h.writes.append(write("d", 7.0, 3, "Cancelled"))


def do_a_write_twice(h: History) -> None:
    h.trails["1"].append(event(4, "description_changed", "Processing", "Processing", "b"))
    for leg in h.legs[1:]:
        leg.events.append(deepcopy(h.trails["1"][-1]))


def do_an_unanswered_write_twice(h: History) -> None:
    h.writes[1].outcome = Outcome.UNKNOWN
    do_a_write_twice(h)


def do_what_was_refused(h: History) -> None:
    h.writes[2].outcome = Outcome.REFUSED


def do_it_to_another_order(h: History) -> None:
    h.writes[1].order_id = "2"


def answer_before_what_came_earlier_was_sent(h: History) -> None:
    h.writes[1].sent, h.writes[1].answered = 9.0, 9.5


def answer_an_old_state(h: History) -> None:
    h.writes[3].version = 2
    h.writes[3].target = "Pending"


def skip_a_version(h: History) -> None:
    del h.trails["1"][1]


def forget_what_was_before(h: History) -> None:
    h.trails["1"][2]["previous_status"] = "Shipped"


def take_an_illegal_step(h: History) -> None:
    h.trails["1"][2]["status"] = "Completed"


def change_the_status_by_an_edit(h: History) -> None:
    h.trails["1"][1]["status"] = "Processing"


def begin_in_the_middle(h: History) -> None:
    h.trails["1"][0]["type"] = "status_changed"


def invent_a_type(h: History) -> None:
    h.trails["1"][1]["type"] = "imagined"


def leave_out_the_actor(h: History) -> None:
    del h.trails["1"][1]["actor"]


def put_in_the_event_of_another_order(h: History) -> None:
    h.trails["1"][1]["order_id"] = "2"


def go_on_after_a_deletion(h: History) -> None:
    h.trails["1"][1]["type"] = "deleted"


def drop_an_event(h: History) -> None:
    del h.legs[2].events[1]


def drop_the_last_event(h: History) -> None:
    del h.legs[2].events[-1]


def drop_the_first_event_after_coming_back(h: History) -> None:
    del h.legs[1].events[0]


def repeat_an_event(h: History) -> None:
    h.legs[2].events.insert(1, h.legs[2].events[0])


def repeat_what_was_seen_before_the_cut(h: History) -> None:
    h.legs[1].events.insert(0, h.trails["1"][0])


def swap_two_events(h: History) -> None:
    h.legs[2].events.reverse()


def change_an_event_on_its_way(h: History) -> None:
    h.legs[2].events[1]["note"] = "something else"


def announce_what_rolled_back(h: History) -> None:
    h.legs[0].events = [*h.trails["1"], event(4, "deleted", "Processing", "Processing", "d")]


def leave_a_gap_in_the_feed(h: History) -> None:
    h.legs[3].events = [h.trails["1"][0], h.trails["1"][2]]


@pytest.mark.parametrize(
    "spoil",
    [
        lose_an_acknowledged_write,
        answer_a_status_that_never_was,
        do_a_write_twice,
        do_an_unanswered_write_twice,
        do_what_was_refused,
        do_it_to_another_order,
        answer_before_what_came_earlier_was_sent,
        answer_an_old_state,
        skip_a_version,
        forget_what_was_before,
        take_an_illegal_step,
        change_the_status_by_an_edit,
        begin_in_the_middle,
        invent_a_type,
        leave_out_the_actor,
        put_in_the_event_of_another_order,
        go_on_after_a_deletion,
        drop_an_event,
        drop_the_last_event,
        drop_the_first_event_after_coming_back,
        repeat_an_event,
        repeat_what_was_seen_before_the_cut,
        swap_two_events,
        change_an_event_on_its_way,
        announce_what_rolled_back,
        leave_a_gap_in_the_feed,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_the_check_finds_the_violation(history: History, spoil: Callable[[History], None]) -> None:
    spoil(history)
    assert history.violations()


def test_the_check_takes_no_rule_from_the_code_under_test() -> None:
    source = Path(history_check.__file__).read_text()
    assert not re.search(r"^\s*(from|import) ordertrack", source, re.MULTILINE)
