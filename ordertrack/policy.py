"""Decides what a user may see of an order and change in it. Pure functions.

REST, pages, Socket.IO and raw sockets all use these functions. Statements that must contain the
rule (lists, the status change) have it in SQL, from `ordertrack.services.callers`; the
authorisation matrix in the tests checks both against the same table.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ordertrack import lifecycle
from ordertrack.lifecycle import Standing, Status


class Role(StrEnum):
    USER = "user"
    DRIVER = "driver"
    ADMIN = "admin"


class DriverScope(StrEnum):
    """The orders that drivers see and move: all (the default), or those assigned to them."""

    ALL = "all"
    ASSIGNED = "assigned"


@dataclass(frozen=True, slots=True)
class Caller:
    """The user and session that a verified token proves, and what drivers may see on this server.

    It says nothing about the user's role, which the database knows: `services.callers` looks it up.
    """

    user_id: int
    session_id: int
    scope: DriverScope


@dataclass(frozen=True, slots=True)
class Actor:
    """A caller as the database knows them in the present transaction."""

    id: int
    name: str
    role: Role
    scope: DriverScope

    @property
    def is_staff(self) -> bool:
        return self.role is not Role.USER

    @property
    def sees_all(self) -> bool:
        """Whether they see every order, their own or not."""
        return self.role is Role.ADMIN or (
            self.role is Role.DRIVER and self.scope is DriverScope.ALL
        )


class OrderFacts(Protocol):
    """The facts about an order on which rights depend."""

    @property
    def customer_id(self) -> int: ...
    @property
    def driver_id(self) -> int | None: ...
    @property
    def status(self) -> str: ...
    @property
    def is_deleted(self) -> bool: ...


def standings(actor: Actor, order: OrderFacts) -> frozenset[Standing]:
    """What *actor* is to *order*. When it is empty, the order does not exist for them."""
    held = set()
    if actor.role is Role.ADMIN:
        held.add(Standing.ADMIN)
    if actor.role is Role.DRIVER and (actor.sees_all or order.driver_id == actor.id):
        held.add(Standing.DRIVER)
    if order.customer_id == actor.id:
        held.add(Standing.OWNER)
    return frozenset(held)


def can_see(actor: Actor, order: OrderFacts) -> bool:
    """Whether the order exists for *actor*."""
    return not order.is_deleted and bool(standings(actor, order))


def can_read_history(actor: Actor, order: OrderFacts) -> bool:
    """A deleted order keeps its history, which only admins may read."""
    if order.is_deleted:
        return actor.role is Role.ADMIN
    return can_see(actor, order)


def can_ever_edit(held: frozenset[Standing]) -> bool:
    """Whether some status lets them edit and delete: owners and admins, but no other driver."""
    return bool(held & {Standing.OWNER, Standing.ADMIN})


def can_edit(held: frozenset[Standing], status: Status) -> bool:
    """The owner may while the order is Pending, an admin until it is final.

    Never in a status that only a newer release knows, because it may be final.
    """
    if Standing.ADMIN in held:
        return status in lifecycle.TRANSITIONS and status not in lifecycle.TERMINAL
    return Standing.OWNER in held and status == lifecycle.INITIAL


def can_delete(held: frozenset[Standing], status: Status) -> bool:
    """The owner may while the order is Pending, an admin always."""
    if Standing.ADMIN in held:
        return True
    return Standing.OWNER in held and status == lifecycle.INITIAL
