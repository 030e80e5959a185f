"""Creates demo data: three accounts, and orders in every status with the history that led there.

All of it is appended to the log like any other change, but backdated, which needs the owner of the
tables. `services.audit` finds no fault with it.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session as Transaction

from ordertrack import eventlog
from ordertrack.db import transaction
from ordertrack.errors import Conflict, Forbidden
from ordertrack.lifecycle import INITIAL, MAIN_FLOW, Status
from ordertrack.models import Order, OrderEvent, User
from ordertrack.policy import Actor, DriverScope, Role
from ordertrack.services import accounts, owner
from ordertrack.services.accounts import Account

PEOPLE = (
    ("Chandra", "customer@example.org", Role.USER),
    ("Dewi", "driver@example.org", Role.DRIVER),
    ("Amir", "admin@example.org", Role.ADMIN),
)

# The orders' last statuses, the oldest order first: much is completed, some was cancelled.
_DONE = (Status.COMPLETED, Status.COMPLETED, Status.CANCELLED, Status.COMPLETED, Status.COMPLETED)
_ENDS = (*(_DONE * 4), *([Status.SHIPPED] * 5), *([Status.PROCESSING] * 5), *([Status.PENDING] * 6))

_GOODS = (
    "2 kg espresso beans, dark roast",
    "12 bottles of oat milk",
    "Birthday cake, lemon, for 10 people",
    "Office chair, grey, assembled",
    "3 boxes of A4 paper",
    "Bicycle repair kit and two tubes, 28 inch",
    "Fruit basket for the front desk",
    "Desk lamp, warm light",
    "Two monitor arms",
    "40 sandwiches, half of them vegetarian",
    "Rubber plant, 120 cm, with pot",
    "First-aid kit, refill",
)
_ON_THE_WAY = ("Loaded, second stop of the tour", "In the van", None, None)
_HANDED_OVER = ("Left with the neighbour at number 14", "Signed at the front desk", None, None)


@dataclass(frozen=True, slots=True)
class Demo:
    """The accounts that were created, all with one password, and the number of orders."""

    people: list[Account]
    orders: int


def make(password: str, *, beside_others: bool = False) -> Demo:
    """Create the demo data.

    Raises `Conflict` when it exists already, or when there are other users and not *beside_others*;
    `Forbidden` when the database does not let us backdate orders.
    """
    _require_owner()
    addresses = [email for _, email, _ in PEOPLE]
    with transaction() as t:
        present = set(t.scalars(select(func.lower(User.email)).where(User.email.in_(addresses))))
        others = t.scalar(select(func.count()).select_from(User)) or 0
    if present:
        raise Conflict(f"The demo is here already: {', '.join(sorted(present))} exist.")
    if others and not beside_others:
        raise Conflict(f"This database has {others} users; the demo is for an empty one.")
    people = [accounts.register(name, email, password, role) for name, email, role in PEOPLE]
    customer, driver, admin = (Actor(one.id, one.name, one.role, DriverScope.ALL) for one in people)
    with _backdating() as t:
        number = _place_orders(t, customer, driver, admin)
    return Demo(people, number)


def _require_owner() -> None:
    with owner.transaction() as t:
        owns = t.scalar(
            text(
                "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class"
                " WHERE oid = CAST('orders' AS regclass)"
            )
        )
    if not owns:
        raise Forbidden(
            "The demo backdates its orders, which needs the owner of the tables: set MIGRATE_DSN."
        )


@contextmanager
def _backdating() -> Iterator[Transaction]:
    """A transaction that may set the times of changes; changes by others wait until it ends."""
    with owner.transaction() as t:
        t.execute(text("ALTER TABLE orders DISABLE TRIGGER orders_stamp"))
        yield t
        t.execute(text("ALTER TABLE orders ENABLE TRIGGER orders_stamp"))


def _place_orders(t: Transaction, customer: Actor, driver: Actor, admin: Actor) -> int:
    # The same data every time, so that people can talk about it.
    chance = random.Random(7)  # noqa: S311 (nothing secret)
    now = datetime.now(UTC)
    for number, end in enumerate(_ENDS):
        # From ten days ago to some minutes ago, denser towards the present.
        age = timedelta(hours=0.07 * (len(_ENDS) - 1 - number) ** 2.3, minutes=12)
        story = _Story(t, customer, driver, admin, chance, _clock(now - age, now, chance))
        story.tell(_GOODS[number % len(_GOODS)], end, number)
    return len(_ENDS)


def _clock(start: datetime, now: datetime, chance: random.Random) -> Iterator[datetime]:
    """Moments from *start* on, minutes to hours apart, never in the future."""
    moment = start
    while True:
        yield moment
        moment += min(timedelta(minutes=chance.uniform(8, 200)), (now - moment) / 2)


@dataclass(frozen=True, slots=True)
class _Story:
    """Appends one order's history, with times from *clock*."""

    t: Transaction
    customer: Actor
    driver: Actor
    admin: Actor
    chance: random.Random
    clock: Iterator[datetime]

    def tell(self, description: str, end: Status, number: int) -> None:
        order = self._place(description)
        if number % 7 == 3:
            self._edit(order, f"{description}, please ring twice")
        if end is Status.CANCELLED:
            self._cancel(order, by_admin=number % 2 == 0)
        elif end is not INITIAL:
            self._deliver(order, end)

    def _place(self, description: str) -> int:
        customer, began = self.customer, next(self.clock)
        order = Order(
            customer_id=customer.id, description=description, created_at=began, updated_at=began
        )
        self.t.add(order)
        self.t.flush()
        self.t.execute(
            insert(OrderEvent).values(
                order_id=order.id,
                version=1,
                type="created",
                status=INITIAL.value,
                actor_id=customer.id,
                actor_name=customer.name,
                actor_role=customer.role.value,
                changes={"description": description},
                customer_id=customer.id,
            )
        )
        return order.id

    def _append(
        self, order_id: int, actor: Actor, type: str, setting: dict[str, Any], **more: Any
    ) -> None:
        setting = {**setting, "updated_at": next(self.clock)}
        eventlog.append(self.t, order_id, actor, type, setting=setting, **more)

    def _edit(self, order_id: int, description: str) -> None:
        told = {"description": description}
        self._append(order_id, self.customer, "description_changed", told, changes=told)

    def _cancel(self, order_id: int, *, by_admin: bool) -> None:
        if by_admin:
            self._move(order_id, self.driver, Status.PROCESSING)
            self._move(order_id, self.admin, Status.CANCELLED, "Out of stock; told the customer")
        else:
            self._move(order_id, self.customer, Status.CANCELLED, "Ordered twice by mistake")

    def _deliver(self, order_id: int, end: Status) -> None:
        shown = {"driver": {"id": str(self.driver.id), "name": self.driver.name}}
        setting = {"driver_id": self.driver.id}
        self._append(order_id, self.admin, "driver_assigned", setting, changes=shown)
        for status in MAIN_FLOW[1 : MAIN_FLOW.index(end) + 1]:
            notes = {Status.SHIPPED: _ON_THE_WAY, Status.COMPLETED: _HANDED_OVER}.get(status)
            note = self.chance.choice(notes) if notes else None
            self._move(order_id, self.driver, status, note)

    def _move(self, order_id: int, actor: Actor, status: Status, note: str | None = None) -> None:
        self._append(order_id, actor, "status_changed", {"status": status.value}, note=note)
