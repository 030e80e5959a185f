"""The log is append-only: no gaps in versions, nothing rewritten, names and roles of that time."""

from itertools import product
from typing import Any

import psycopg2
import pytest

from tests.support.databases import Postgres, as_owner
from tests.support.people import People

REWRITES = {
    "UPDATE": "UPDATE {table} SET created_at = now()",
    "UPDATE of one row": "UPDATE {table} SET xid = xid WHERE id = (SELECT max(id) FROM {table})",
    "DELETE": "DELETE FROM {table}",
    "TRUNCATE": "TRUNCATE {table}",
    "TRUNCATE CASCADE": "TRUNCATE {table} CASCADE",
    "TRUNCATE of what it refers to": "TRUNCATE users CASCADE",
    "upsert": """INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM {table} LIMIT 1
                 ON CONFLICT (id) DO UPDATE SET created_at = now()""",
    "MERGE": """MERGE INTO {table} t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE""",
}


def rows(postgres: Postgres, dsn: str, table: str) -> list[tuple[Any, ...]]:
    return postgres.execute(f"SELECT t::text FROM {table} t ORDER BY id", dsn=dsn)


@pytest.fixture(scope="module")
def log(postgres: Postgres, database: str, people: People) -> str:
    """The shared database, with something in both tables that only grow."""
    owner = people.customer()
    owner.edit(owner.order(), "changed")
    owner.api.post("/api/logout")
    return database


@pytest.mark.safety("tampering")
@pytest.mark.parametrize("role", ["the server", "the owner", "a superuser", "a replica"])
@pytest.mark.parametrize(
    ("table", "rewrite"), list(product(["order_events", "access_changes"], REWRITES))
)
def test_the_log_cannot_be_rewritten(
    postgres: Postgres, log: str, table: str, rewrite: str, role: str
) -> None:
    statement = REWRITES[rewrite].format(table=table)
    before = rows(postgres, log, table)
    dsn = {"the server": log, "the owner": as_owner(log)}.get(role, postgres.as_superuser(log))
    refusal = "permission denied" if role == "the server" else "append-only"
    if role == "the server" and table == "access_changes" and rewrite in ("DELETE", "MERGE"):
        refusal = "append-only"  # old sign-outs may go, and these are not
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            if role == "a replica":
                # Ordinary triggers sleep then.
                cursor.execute("SET session_replication_role = replica")
            with pytest.raises(psycopg2.errors.InsufficientPrivilege, match=refusal):
                cursor.execute(statement)
    finally:
        connection.close()
    assert rows(postgres, log, table) == before


def test_a_version_is_used_once(postgres: Postgres, log: str, people: People) -> None:
    order = people.customer().order()
    with pytest.raises(psycopg2.errors.UniqueViolation, match="uq_order_events_order_id_version"):
        postgres.execute(
            "INSERT INTO order_events (order_id, version, type, status, actor_id, actor_name,"
            " actor_role, customer_id) VALUES (%s, 1, 'created', 'Pending', 1, 'x', 'user', 1)",
            order["id"],
            dsn=log,
        )


@pytest.mark.parametrize(
    ("column", "value"), [("type", "imagined"), ("status", "Lost"), ("version", "0")]
)
def test_invalid_values_are_not_stored(
    postgres: Postgres, log: str, people: People, column: str, value: str
) -> None:
    order = people.customer().order()
    values = {"version": "9", "type": "created", "status": "Pending"} | {column: value}
    with pytest.raises(psycopg2.errors.CheckViolation, match=f"ck_order_events_{column}"):
        postgres.execute(
            "INSERT INTO order_events (order_id, version, type, status, actor_id, actor_name,"
            " actor_role, customer_id) VALUES (%s, %s, %s, %s, 1, 'x', 'user', 1)",
            order["id"],
            *values.values(),
            dsn=log,
        )


def test_refused_changes_leave_no_gap_in_the_versions(people: People) -> None:
    owner, driver, admin = people.customer(), people.driver(), people.admin()
    order = owner.order()
    path = f"/api/orders/{order['id']}"
    for step in ("Processing", "Shipped", "Completed"):
        assert owner.api.put(f"{path}/status", json={"status": step}).status_code == 403
        assert driver.api.put(f"{path}/driver", json={"driver_id": None}).status_code == 403
        assert admin.api.put(f"{path}/driver", json={"driver_id": owner.id}).status_code == 422
        stale = {"If-Match": '"99"'}
        assert admin.api.delete(path, headers=stale).status_code == 412
        driver.move(order, step)
    assert [event["version"] for event in owner.history(order)] == [1, 2, 3, 4]
    assert owner.read(order)["version"] == 4


def test_the_log_keeps_the_actors_name_and_role_of_that_time(
    postgres: Postgres, database: str, people: People
) -> None:
    admin, driver = people.admin(), people.driver("Dewi")
    order = people.customer().order()
    driver.move(order, "Processing")
    postgres.execute(
        "UPDATE users SET name = 'Dewi Married' WHERE id = %s", driver.id, dsn=database
    )
    admin.api.patch(f"/api/admin/users/{driver.id}", json={"role": "admin"})
    driver.move(order, "Shipped")
    admin.api.patch(f"/api/admin/users/{driver.id}", json={"active": False})
    actors = [event["actor"] for event in admin.history(order)[1:]]
    assert actors == [
        {"id": driver.id, "name": "Dewi", "role": "driver"},
        {"id": driver.id, "name": "Dewi Married", "role": "admin"},
    ]


def test_each_event_keeps_its_customer_and_driver(
    postgres: Postgres, database: str, people: People
) -> None:
    admin, owner = people.admin(), people.customer()
    first, second = people.driver(), people.driver()
    order = owner.order()
    admin.assign(order, first)
    admin.assign(order, second)
    admin.assign(order, None)
    found = postgres.execute(
        "SELECT customer_id::text, driver_id::text FROM order_events WHERE order_id = %s"
        " ORDER BY version",
        order["id"],
        dsn=database,
    )
    assert found == [
        (owner.id, None),
        (owner.id, first.id),
        (owner.id, second.id),
        (owner.id, None),
    ]
