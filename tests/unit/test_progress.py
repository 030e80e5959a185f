"""The line of an order's stops, drawn from its events."""

from datetime import UTC, datetime
from itertools import pairwise

from ordertrack.eventlog import Event
from ordertrack.lifecycle import MAIN_FLOW, STEPS, Status
from ordertrack.web.pages.progress import stops


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


def places(*statuses: Status) -> list[tuple[str, str]]:
    return [(stop.status.value, stop.place.value) for stop in stops(story(*statuses))]


def test_an_order_stands_at_one_stop_with_the_rest_behind_and_ahead() -> None:
    for number in range(1, len(MAIN_FLOW) + 1):
        assert places(*MAIN_FLOW[:number]) == [
            (status.value, "behind" if n < number - 1 else "here" if n == number - 1 else "ahead")
            for n, status in enumerate(MAIN_FLOW)
        ]


def test_a_cancelled_order_shows_where_it_stopped() -> None:
    for status in MAIN_FLOW:
        if Status.CANCELLED not in STEPS[status]:
            continue
        way = MAIN_FLOW[: MAIN_FLOW.index(status) + 1]
        shown = places(*way, Status.CANCELLED)
        assert shown[len(way)] == ("Cancelled", "here")
        assert [place for _, place in shown[: len(way)]] == ["behind"] * len(way)
        assert {place for _, place in shown[len(way) + 1 :]} == {"skipped"}


def test_each_stop_that_was_reached_knows_when_and_by_whom() -> None:
    line = stops(story(*MAIN_FLOW[:3]))
    assert [stop.event.status if stop.event else None for stop in line] == [
        "Pending",
        "Processing",
        "Shipped",
        None,
    ]
