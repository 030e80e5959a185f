"""Housekeeping: old rows are deleted in batches, by one process at a time; others are kept."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from ordertrack.services import housekeeping
from ordertrack.services.housekeeping import Housekeeper
from tests.cli.conftest import Own, opened
from tests.support.databases import Postgres
from tests.support.servers import Server
from tests.support.waiting import eventually


@pytest.fixture
def own(fresh_database: Callable[[], str]) -> Iterator[Own]:
    with opened(fresh_database()) as made:
        yield made


def aged(postgres: Postgres, own: Own, sql: str) -> None:
    """Run *sql*, which makes old rows, as a superuser with the triggers disabled."""
    connection = psycopg2.connect(postgres.as_superuser(own.dsn))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("ALTER TABLE access_changes DISABLE TRIGGER ALL")
            cursor.execute(sql)
            cursor.execute("ALTER TABLE access_changes ENABLE TRIGGER ALL")
            for name in ("rows", "deletes", "table"):
                cursor.execute(
                    "ALTER TABLE access_changes"
                    f" ENABLE ALWAYS TRIGGER access_changes_append_only_{name}"
                )
    finally:
        connection.close()


def count(postgres: Postgres, own: Own, table: str) -> int:
    found: int = postgres.execute(f"SELECT count(*) FROM {table}", dsn=own.dsn)[0][0]
    return found


def turn(own: Own) -> int:
    with own.app.app_context():
        return housekeeping.run()


def test_old_rows_are_deleted_and_others_are_kept(own: Own, postgres: Postgres) -> None:
    admin, person = own.people.admin(), own.people.customer()
    person.api.post("/api/orders", json={"description": "x"}, headers={"Idempotency-Key": "young"})
    person.api.post("/api/orders", json={"description": "y"}, headers={"Idempotency-Key": "old"})
    expired, ended, young = (person.signed_in_again() for _ in range(3))
    for one in (ended, young):
        one.api.post("/api/logout")
    admin.api.patch(f"/api/admin/users/{person.id}", json={"role": "driver"})
    assert turn(own) == 0
    sessions = f"SELECT id FROM sessions WHERE user_id = {person.id} ORDER BY id"
    _, expired_id, ended_id, young_id = (row[0] for row in postgres.execute(sessions, dsn=own.dsn))
    aged(
        postgres,
        own,
        f"""UPDATE sessions SET expires_at = now() - interval '8 days' WHERE id = {expired_id};
            UPDATE sessions SET revoked_at = now() - interval '8 days' WHERE id = {ended_id};
            UPDATE idempotency_keys SET created_at = now() - interval '8 days' WHERE key = 'old';
            UPDATE access_changes SET created_at = now() - interval '32 days'
             WHERE session_id = {ended_id} OR reason = 'role_changed'""",
    )
    before = dict(housekeeping.stats.deleted)
    assert turn(own) == 4
    assert {
        table: number - before[table] for table, number in housekeeping.stats.deleted.items()
    } == {"sessions": 2, "idempotency_keys": 1, "access_changes": 1}
    left = [row[0] for row in postgres.execute(sessions, dsn=own.dsn)]
    assert {expired_id, ended_id, young_id} & set(left) == {young_id}
    changes = postgres.execute("SELECT reason, session_id FROM access_changes", dsn=own.dsn)
    assert sorted(changes) == [("role_changed", None), ("signed_out", young_id)]
    assert expired.api.get("/api/me").code == "invalid_token"
    assert turn(own) == 0


def test_many_old_rows_are_deleted_in_batches(
    own: Own, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 10)
    monkeypatch.setattr(housekeeping, "MAX_BATCHES", 3)
    person = own.people.customer()
    aged(
        postgres,
        own,
        f"""INSERT INTO sessions (user_id, expires_at)
            SELECT {person.id}, now() - interval '8 days' FROM generate_series(1, 45)""",
    )
    assert [turn(own) for _ in range(3)] == [30, 15, 0]


def test_one_process_at_a_time_does_housekeeping(own: Own, postgres: Postgres) -> None:
    person = own.people.customer()
    aged(
        postgres,
        own,
        f"""INSERT INTO sessions (user_id, expires_at)
            VALUES ({person.id}, now() - interval '8 days')""",
    )
    other = psycopg2.connect(own.dsn)
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [housekeeping._LOCK])
            assert turn(own) == 0
            other.rollback()
        assert turn(own) == 1
    finally:
        other.close()


def test_old_rows_are_found_by_an_index(own: Own, postgres: Postgres) -> None:
    """However many rows there are, a run that deletes nothing reads none of them."""
    for table, conditions in housekeeping._DELETED.items():
        for condition in conditions:
            connection = psycopg2.connect(own.dsn)
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SET enable_seqscan = off")
                    cursor.execute(f"EXPLAIN SELECT ctid FROM {table} WHERE {condition} LIMIT 500")
                    plan = "\n".join(row[0] for row in cursor.fetchall())
            finally:
                connection.close()
            assert "Index" in plan, plan
            assert "Filter" not in plan, plan


class FailsOnce:
    """A context in which the first run fails, and later ones do not."""

    def __init__(self, own: Own) -> None:
        self._own = own
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("no context today")
        return self._own.app.app_context()


def test_housekeeping_logs_an_error_and_runs_again_until_it_is_stopped(
    own: Own, caplog: pytest.LogCaptureFixture
) -> None:
    context = FailsOnce(own)
    turns, failures = housekeeping.stats.runs, housekeeping.stats.failures
    keeper = Housekeeper(context, period=0.01)
    with caplog.at_level(logging.ERROR):
        keeper.start()
        eventually(lambda: housekeeping.stats.runs >= turns + 2)
    keeper.stop(timeout=20)
    assert not keeper._thread.is_alive()
    assert housekeeping.stats.failures == failures + 1
    assert "housekeeping failed" in caplog.text


def test_a_server_counts_its_housekeeping(server: Server) -> None:
    shown = server.api.get("/metrics").text
    for name in ("turns_total", "failures_total", 'deleted_total{table="sessions"}'):
        assert f"ordertrack_housekeeping_{name} " in shown
