"""An order's progress through the main flow, as its page shows it."""

from datetime import UTC, datetime
from itertools import pairwise

from ordertrack.eventlog import Event
from ordertrack.lifecycle import MAIN_FLOW, TRANSITIONS, Status
from ordertrack.web.pages.progress import steps


def story(*statuses: Status) -> list[Event]:
    """The events of an order that went through *statuses*, with an edit after each."""
    events: list[Event] = []

    def add(type: str, status: Status, previous: Status | None) -> None:
        number = len(events) + 1
        events.append(
            Event(
                number,
                1,
                number,
                type,
                status.value,
                previous.value if previous else None,
                7,
                "Ana",
                "user",
                None,
                None,
                7,
                None,
                datetime(2025, 7, 28, 10, number, tzinfo=UTC),
            )
        )

    add("created", statuses[0], None)
    for before, after in pairwise(statuses):
        add("description_changed", before, before)
        add("status_changed", after, before)
    return events


def progress(*statuses: Status) -> list[tuple[str, str]]:
    return [(step.status.value, step.progress.value) for step in steps(story(*statuses))]


def test_one_step_is_current_those_before_it_are_done_and_those_after_it_upcoming() -> None:
    for number in range(1, len(MAIN_FLOW) + 1):
        states = ["done"] * (number - 1) + ["current"] + ["upcoming"] * (len(MAIN_FLOW) - number)
        assert progress(*MAIN_FLOW[:number]) == [
            (status.value, state) for status, state in zip(MAIN_FLOW, states, strict=True)
        ]


def test_a_cancelled_order_shows_after_which_step_it_was_cancelled() -> None:
    for status in MAIN_FLOW:
        if Status.CANCELLED not in TRANSITIONS[status]:
            continue
        way = MAIN_FLOW[: MAIN_FLOW.index(status) + 1]
        shown = progress(*way, Status.CANCELLED)
        assert shown[len(way)] == ("Cancelled", "current")
        assert [state for _, state in shown[: len(way)]] == ["done"] * len(way)
        assert {state for _, state in shown[len(way) + 1 :]} == {"skipped"}


def test_each_step_that_was_reached_has_the_event_that_set_it() -> None:
    shown = steps(story(*MAIN_FLOW[:3]))
    assert [step.event.status if step.event else None for step in shown] == [
        "Pending",
        "Processing",
        "Shipped",
        None,
    ]
