"""The way of an order as stops on a line: what is behind it, where it is, what lies ahead. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ordertrack.eventlog import Event
from ordertrack.lifecycle import MAIN_FLOW, Status


class Place(StrEnum):
    BEHIND = "behind"
    HERE = "here"
    AHEAD = "ahead"
    SKIPPED = "skipped"  # would have come, had the order not been cancelled


@dataclass(frozen=True, slots=True)
class Stop:
    """A status on the line, and the event that brought the order there, if it was there."""

    status: Status
    place: Place
    event: Event | None


def stops(events: Sequence[Event]) -> list[Stop]:
    """The four stops of the main flow; for a cancelled order also where it stopped, in its place.

    *events* ascend and hold at least the creation and every change of status.
    """
    arrivals = {
        Status(event.status): event
        for event in events
        if event.type in ("created", "status_changed")
    }
    current = Status(events[-1].status)
    cancelled = current is Status.CANCELLED
    line = []
    for status in MAIN_FLOW:
        if status in arrivals:
            place = Place.HERE if status is current else Place.BEHIND
        else:
            place = Place.SKIPPED if cancelled else Place.AHEAD
        line.append(Stop(status, place, arrivals.get(status)))
    reached = sum(stop.event is not None for stop in line)
    if cancelled:
        line.insert(reached, Stop(current, Place.HERE, arrivals[current]))
    return line
