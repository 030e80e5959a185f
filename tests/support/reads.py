"""The reads of the application, each with a name, for query plans on the tables of `bulk`."""

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice

import psycopg2

from ordertrack.lifecycle import Status
from ordertrack.log_tail import Cursor, Tail
from ordertrack.policy import Caller, DriverScope
from ordertrack.services import accounts, audit, callers, order_lists, orders
from ordertrack.services.order_query import Filters
from tests.support.bulk import ABSENT, ADMINS, COMMON, DRIVERS, RARE, Size

Read = Callable[[], object]


@dataclass(frozen=True)
class Callers:
    """Users of `bulk`, with a session each."""

    admin: Caller
    driver: Caller
    customer: Caller


def session_of(dsn: str, user_id: int) -> Caller:
    """A new session of a user."""
    with closing(psycopg2.connect(dsn)) as connection, connection:
        cursor = connection.cursor()
        cursor.execute(
            "INSERT INTO sessions (user_id, expires_at) VALUES (%s, now() + interval '1 day')"
            " RETURNING id",
            [user_id],
        )
        return Caller(user_id, cursor.fetchone()[0], DriverScope.ALL)


def log_in(dsn: str) -> Callers:
    """Sessions for an admin, a driver, and a customer with many orders."""
    ids = (1, ADMINS + 5, ADMINS + DRIVERS + 1)
    return Callers(*(session_of(dsn, user_id) for user_id in ids))


def filters(driver_id: int) -> dict[str, Filters]:
    """The filters of staff, by name."""
    year_ago = datetime.now(UTC) - timedelta(days=365)
    long_ago = datetime.now(UTC) - timedelta(days=1000)
    return {
        "everything": Filters(),
        **{f"status {status}": Filters(status=status) for status in Status},
        "driver": Filters(driver_id=driver_id),
        "driver with few": Filters(driver_id=ADMINS + DRIVERS),
        "driver, Cancelled": Filters(driver_id=driver_id, status=Status.CANCELLED),
        "driver, Shipped": Filters(driver_id=driver_id, status=Status.SHIPPED),
        "nobody's": Filters(unassigned=True),
        "nobody's, Completed": Filters(unassigned=True, status=Status.COMPLETED),
        "customer with many": Filters(customer_id=ADMINS + DRIVERS + 1),
        "customer with few": Filters(customer_id=ADMINS + DRIVERS + 777),
        "since a year": Filters(created_from=year_ago),
        "before a year ago": Filters(created_before=year_ago),
        "long ago, Pending": Filters(created_before=long_ago, status=Status.PENDING),
        "long ago, driver": Filters(created_before=long_ago, driver_id=driver_id),
        "a day long ago": Filters(
            created_from=long_ago, created_before=long_ago + timedelta(days=1)
        ),
        "common text": Filters(text=COMMON),
        "rare text": Filters(text=RARE),
        "absent text": Filters(text=ABSENT),
        "two letters": Filters(text="qz"),
        "common syllables": Filters(text="or the and"),
        "rare word": Filters(words=RARE),
        "absent word": Filters(words=ABSENT),
        "number": Filters(words="#4711"),
        "digits": Filters(words="4711"),
        "name": Filters(words="farida"),
        "rare customer": Filters(customer="user4711@"),
        "common customer": Filters(customer="example"),
        "absent customer": Filters(customer=ABSENT),
        "deleted": Filters(deleted=True),
        "deleted, absent text": Filters(deleted=True, words=ABSENT),
        "deleted, Shipped": Filters(deleted=True, status=Status.SHIPPED),
    }


def list_reads(asking: Callers, size: Size) -> Iterator[tuple[str, Read]]:
    """Lists: of REST, the board, drivers and customers, also from the middle."""
    admin, driver = asking.admin, asking.driver
    narrowed_driver = replace(driver, scope=DriverScope.ASSIGNED)
    middle = size.orders // 2
    for name, narrowed in filters(driver.user_id).items():
        for before in (None, middle):
            yield (
                f"list: {name}{', from the middle' if before else ''}",
                lambda n=narrowed, b=before: order_lists.staff_page(admin, n, before=b, limit=100),
            )
        yield (
            f"board: {name}",
            lambda n=narrowed: order_lists.board(admin, n, before=None, limit=50),
        )
        if not narrowed.deleted:
            yield (
                f"assigned only: {name}",
                lambda n=narrowed: order_lists.board(narrowed_driver, n, before=None, limit=50),
            )
    yield "export: two batches", lambda: list(islice(order_lists.export(admin, Filters()), 1500))
    for text in (None, ABSENT):
        for status in (None, Status.PENDING):
            yield (
                f"own: {text or 'everything'}, {status or 'any'}",
                lambda t=text, s=status: order_lists.own_page(
                    asking.customer, Filters(text=t, status=s), before=None, limit=100
                ),
            )
    for mine in (True, False):
        for scope in DriverScope:
            yield (
                f"deliveries: {'mine' if mine else 'all'}, {scope}",
                lambda m=mine, s=scope: order_lists.waiting(replace(driver, scope=s), mine=m),
            )


def order_reads(asking: Callers, size: Size) -> Iterator[tuple[str, Read]]:
    """One order, its history, its page, and catching up with two hundred."""
    admin, middle = asking.admin, size.orders // 2
    many: dict[int, int | None] = {middle + n * 7: 1 for n in range(200)}
    yield "order", lambda: orders.get(admin, middle)
    yield "history", lambda: orders.history(admin, middle, after=0, limit=100)
    yield "order page", lambda: orders.page(admin, middle)
    yield "trail page", lambda: orders.history_page(admin, middle)
    yield "200 subscriptions", lambda: orders.catch_up(admin, many)
    yield "caller", lambda: callers.identify(admin)


def other_reads(asking: Callers, size: Size) -> Iterator[tuple[str, Read]]:
    """People, and the audit of a batch of orders."""
    admin = asking.admin
    yield "users: first page", lambda: accounts.list_users(admin, limit=101)
    yield (
        "users: from the middle",
        lambda: accounts.list_users(admin, after=size.users // 2, limit=101),
    )

    def audit_a_batch() -> None:
        # The generated events are not valid; only how they are read is of interest.
        with suppress(audit.LogDamaged):
            next(audit.verify())

    yield "audit: a batch", audit_a_batch


def tail_reads(cursor: object, transactions: int) -> Iterator[tuple[str, Read]]:
    """The relay's reads, on a DB-API cursor in autocommit: of nothing, and of *transactions*."""
    tail = Tail()
    yield "tail: open", lambda: tail.open(cursor)
    yield "tail: nothing new", lambda: tail.read(cursor)

    def behind() -> None:
        assert tail.position is not None
        tail.position = Cursor(max(tail.position.last - transactions, 3), frozenset())
        tail.read(cursor)

    yield f"tail: {transactions} transactions behind", behind
