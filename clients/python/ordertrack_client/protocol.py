"""The objects of the protocol, as types. The server may add members at any time."""

from typing import Any, NotRequired, TypedDict


class Person(TypedDict):
    id: str
    name: str


class Actor(Person):
    role: str


class Event(TypedDict):
    """One change of one order. ``version`` counts an order's events 1, 2, 3 … without gaps."""

    order_id: str
    version: int
    type: str
    status: str
    previous_status: str | None
    actor: Actor
    note: str | None
    updated_at: str
    changes: NotRequired[dict[str, Any]]


class Order(TypedDict):
    """An order as of ``version``."""

    id: str
    description: str
    status: str
    version: int
    customer: Person
    driver: Person | None
    created_at: str
    updated_at: str
    next_statuses: list[str]


class History(TypedDict):
    """A page of an order's events; ``version`` is the order's latest."""

    events: list[Event]
    version: int
    has_more: bool


class Problem(TypedDict, total=False):
    """An error (RFC 9457). ``code`` is stable, ``detail`` is for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retry_after: int


class ProblemError(Exception):
    """An HTTP answer that is an error."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.get("detail") or problem.get("title") or problem.get("code"))
        self.problem = problem
