"""Shows an order's progress: for each step of the main flow, whether it is done. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ordertrack.eventlog import Event
from ordertrack.lifecycle import MAIN_FLOW, Status


class Progress(StrEnum):
    DONE = "done"
    CURRENT = "current"
    UPCOMING = "upcoming"
    SKIPPED = "skipped"  # upcoming, until the order was cancelled


@dataclass(frozen=True, slots=True)
class Step:
    """A status of the main flow, and the event that set it, if the order has had it."""

    status: Status
    progress: Progress
    event: Event | None


def steps(events: Sequence[Event]) -> list[Step]:
    """The four steps of the main flow; of a cancelled order also Cancelled, where it happened.

    *events* ascend and hold at least the creation and every change of status.
    """
    reached = {
        Status(event.status): event
        for event in events
        if event.type in ("created", "status_changed")
    }
    current = Status(events[-1].status)
    cancelled = current is Status.CANCELLED
    shown = []
    for status in MAIN_FLOW:
        if status in reached:
            progress = Progress.CURRENT if status is current else Progress.DONE
        else:
            progress = Progress.SKIPPED if cancelled else Progress.UPCOMING
        shown.append(Step(status, progress, reached.get(status)))
    if cancelled:
        done = sum(step.event is not None for step in shown)
        shown.insert(done, Step(current, Progress.CURRENT, reached[current]))
    return shown
