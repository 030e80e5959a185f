"""Checks the histories of a run, as clients saw them, against the promises of docs/protocol.md.

It is the oracle of the fault tests, so it takes no rule from the code under test: the lifecycle and
the shape of an event are written down here a second time, and nothing of `ordertrack` is imported.
It is pure, and linear in the number of events and of writes.

A run yields the audit trail of every order, the requests and answers of each writer, and the events
that each watcher received. `violations` describes in sentences what contradicts these rules:

- trail: the versions are dense from 1; every event has the documented members and a known type,
  continues from the status before it and takes a step of the lifecycle; none follows a deletion;
- writes: an acknowledged write is in a trail exactly once, an unanswered one at most once, a
  refused one never; a write that was answered before another was sent has the lower version; no
  answer shows an older state than an answer that was read before the request was sent;
- streams: each leg of a watcher (one subscription on one connection) is the trail from the client's
  cursor on, without a gap or a repeat; a leg that is marked complete reaches the end of the trail.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Event = Mapping[str, Any]  # as the protocol shows it

STEPS = {
    ("Pending", "Processing"),
    ("Pending", "Cancelled"),
    ("Processing", "Shipped"),
    ("Processing", "Cancelled"),
    ("Shipped", "Completed"),
}

TYPES = {"created", "status_changed", "description_changed", "driver_assigned", "deleted"}

# Every event has these. `changes` is a further one, when more than the status changed.
MEMBERS = {
    "order_id",
    "version",
    "type",
    "status",
    "previous_status",
    "actor",
    "note",
    "updated_at",
}


class Outcome(StrEnum):
    ACKNOWLEDGED = "acknowledged"  # a 2xx was read
    REFUSED = "refused"  # a 4xx was read, and no attempt before it is in doubt
    UNKNOWN = "unknown"


@dataclass
class Write:
    """One change that a writer wanted, with all its attempts.

    mark      is found in the event: its note, or its description
    target    the status wanted, for a status change
    sent      when it was first sent; answered: when its last answer was read (same clock)
    version   the order's version in the answer
    """

    mark: str
    sent: float
    order_id: str | None = None
    target: str | None = None
    answered: float | None = None
    outcome: Outcome = Outcome.UNKNOWN
    version: int | None = None


@dataclass
class Leg:
    """What one subscription on one connection brought, in order: missed events, then live ones.

    after      the version from which the client wanted to go on; None for a feed, which starts
               anywhere
    complete   whether the watcher was given the time to hear of everything
    """

    watcher: str
    order_id: str
    after: int | None
    events: list[Event] = field(default_factory=list)
    complete: bool = False


def violations(
    trails: Mapping[str, Sequence[Event]], writes: Sequence[Write], legs: Iterable[Leg]
) -> list[str]:
    """Everything that contradicts the promise; empty when it was kept."""
    found: list[str] = []
    for order_id, trail in trails.items():
        found += _in_trail(order_id, trail)
    found += _in_writes(trails, writes)
    for leg in legs:
        found += _in_leg(leg, trails.get(leg.order_id, ()))
    return found


def _in_trail(order_id: str, trail: Sequence[Event]) -> Iterator[str]:
    before: str | None = None
    deleted = False
    for version, event in enumerate(trail, 1):
        where = f"order {order_id}, version {event.get('version')}"
        if missing := MEMBERS - set(event):
            yield f"{where} has no {', '.join(sorted(missing))}"
            return
        if event["order_id"] != order_id:
            yield f"{where} says that it is of order {event['order_id']}"
        if event["type"] not in TYPES:
            yield f"{where} has the unknown type {event['type']}"
        if deleted:
            yield f"{where} comes after the order was deleted"
        deleted = event["type"] == "deleted"
        if event["version"] != version:
            yield f"{where} stands in the place of version {version}"
        if event["previous_status"] != before:
            yield f"{where} says that it was {event['previous_status']}, but it was {before}"
        if event["type"] == "created":
            legal = version == 1 and event["status"] == "Pending"
        elif before is None:
            legal = False
        elif event["type"] == "status_changed":
            legal = (before, event["status"]) in STEPS
        else:
            legal = event["status"] == before
        if not legal:
            yield f"{where}: {event['type']} from {before} to {event['status']} is not legal"
        before = event["status"]


def mark_of(event: Event) -> str | None:
    """What a writer wrote into its change to know it again."""
    if event["type"] == "status_changed":
        return event["note"]
    return event.get("changes", {}).get("description")


def _in_writes(trails: Mapping[str, Sequence[Event]], writes: Sequence[Write]) -> Iterator[str]:
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for order_id, trail in trails.items():
        for event in trail:
            if (mark := mark_of(event)) is not None:
                places[mark].append((order_id, event["version"]))

    done: dict[str, dict[int, Write]] = defaultdict(dict)
    for write in writes:
        there = places.get(write.mark, [])
        yield from _in_write(write, there, trails)
        for order_id, version in there:
            done[order_id][version] = write
    for order_id, by_version in done.items():
        yield from _in_order(order_id, [by_version[version] for version in sorted(by_version)])
    yield from _in_answers(writes)


def _in_write(
    write: Write, places: list[tuple[str, int]], trails: Mapping[str, Sequence[Event]]
) -> Iterator[str]:
    if len(places) > 1:
        yield f"{write.mark} was done {len(places)} times: {places}"
    elif places and write.outcome is Outcome.REFUSED:
        yield f"{write.mark} was refused, and yet it was done: {places[0]}"
    elif not places and write.outcome is Outcome.ACKNOWLEDGED and not _no_op(write, trails):
        yield f"{write.mark} was acknowledged at version {write.version} and is lost"
    if places and write.order_id not in (None, places[0][0]):
        yield f"{write.mark} was meant for order {write.order_id} and is in {places[0]}"


def _in_order(order_id: str, in_version_order: list[Write]) -> Iterator[str]:
    """Real time: what was answered before something else was sent has the lower version."""
    latest: Write | None = None  # the one sent last among those of lower versions
    for write in in_version_order:
        if latest and write.answered is not None and write.answered < latest.sent:
            yield (
                f"order {order_id}: {write.mark} was answered before {latest.mark} was sent,"
                " and has the higher version"
            )
        if latest is None or write.sent > latest.sent:
            latest = write


def _no_op(write: Write, trails: Mapping[str, Sequence[Event]]) -> bool:
    """Whether the order had the wanted status already at the version that was answered."""
    trail = trails.get(write.order_id or "", ())
    version = write.version or 0
    return (
        write.target is not None
        and 0 < version <= len(trail)
        and trail[version - 1]["status"] == write.target
    )


def _in_answers(writes: Sequence[Write]) -> Iterator[str]:
    """Answers never go back: each shows at least what had been answered when it was sent."""
    answered = [write for write in writes if write.version is not None and write.order_id]
    moments = [(write.sent, 1, write) for write in answered]
    moments += [(write.answered or 0.0, 0, write) for write in answered]
    newest: dict[str, int] = defaultdict(int)
    floor: dict[str, int] = {}
    for _, is_sending, write in sorted(moments, key=lambda moment: moment[:2]):
        order_id, version = write.order_id or "", write.version or 0
        if is_sending:
            floor[write.mark] = newest[order_id]
        else:
            if version < floor.get(write.mark, 0):
                yield f"{write.mark} was answered version {version} after {floor[write.mark]} was"
            newest[order_id] = max(newest[order_id], version)


def _in_leg(leg: Leg, trail: Sequence[Event]) -> Iterator[str]:
    who = f"{leg.watcher}, order {leg.order_id}"
    after = leg.after
    if after is None:
        after = leg.events[0]["version"] - 1 if leg.events else len(trail)
    for version, event in enumerate(leg.events, after + 1):
        if event["version"] != version:
            yield f"{who}: version {event['version']} came where {version} was due"
            return
        if version > len(trail):
            yield f"{who}: version {version} came, and is not in the trail"
            return
        if event != trail[version - 1]:
            yield f"{who}: version {version} came as {event}, and is {trail[version - 1]}"
    reached = after + len(leg.events)
    if leg.complete and reached != len(trail):
        yield f"{who}: version {reached} was the last that came, of {len(trail)}"
