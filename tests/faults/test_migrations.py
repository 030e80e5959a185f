"""A long migration that two starting servers begin at once while a third server serves.

Longer, as a large table would take: FAULTS_MIGRATION_SECONDS=30 pytest <this file>
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg2
import pytest

from tests.faults.writers import Orders, Writer
from tests.support.databases import Postgres, as_owner
from tests.support.servers import ROOT, Server, running_server
from tests.support.waiting import eventually

# Longer than the servers' own bound on a wait for the database, which is a second more than this.
STATEMENT_TIMEOUT = 1
SECONDS = int(os.environ.get("FAULTS_MIGRATION_SECONDS", "4"))

MIGRATIONS = {
    "slow": f"""
    op.execute("SELECT pg_sleep({SECONDS}) /* slow */")
""",
    "in_the_way": """
    op.add_column("orders", sa.Column("colour", sa.Text))
""",
    # Waits for every transaction that is older: were those who wait for us in one, for ever.
    "concurrent": """
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("CREATE INDEX CONCURRENTLY ix_colour ON orders (colour)")
""",
}


def folder_with_migrations(folder: Path, head: str) -> Path:
    """A copy of the project's, and `MIGRATIONS` behind its last one, *head*."""
    made = folder / "migrations"
    shutil.copytree(ROOT / "migrations", made, ignore=shutil.ignore_patterns("__pycache__"))
    for name, upgrade in MIGRATIONS.items():
        (made / "versions" / f"{name}.py").write_text(
            f"import sqlalchemy as sa\nfrom alembic import op\n\n"
            f"revision = {name!r}\ndown_revision = {head!r}\n\n\ndef upgrade():{upgrade}"
        )
        head = name
    return made


@pytest.mark.safety("slow-migration")
def test_a_long_migration_by_two_starting_servers_under_traffic_succeeds(
    postgres: Postgres, fresh_database: Callable[[], str], tmp_path: Path
) -> None:
    dsn = fresh_database()

    def rows(sql: str) -> list[tuple[object, ...]]:
        return postgres.execute(sql, dsn=postgres.as_superuser(dsn))

    ((head,),) = rows("SELECT version_num FROM alembic_version")
    settings = {
        "STATEMENT_TIMEOUT_MS": str(STATEMENT_TIMEOUT * 1000),
        "LOCK_TIMEOUT_MS": "500",
        "MIGRATE_DSN": as_owner(dsn),
        "MIGRATIONS": str(folder_with_migrations(tmp_path, str(head))),
    }
    sleeping = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%/* slow */' AND state = 'active'"

    waiting = """SELECT 1 FROM pg_stat_activity WHERE query LIKE 'ALTER TABLE orders ADD%'
                  AND wait_event_type = 'Lock'"""

    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        third = stack.enter_context(running_server(dsn))
        admin = third.people.admin()
        orders = Orders(alive=10)
        writers = [Writer(f"writer {n}", [third.url], admin.token, orders, n, 0.02) for n in (1, 2)]
        for writer in writers:
            writer.start()

        def start() -> Server:
            return stack.enter_context(
                running_server(dsn, script="tests/faults/faulty_server.py", **settings)
            )

        # A report, or a dump, that has the table for long.
        with contextlib.closing(psycopg2.connect(dsn)) as reader:
            reader.cursor().execute("SELECT count(*) FROM orders")
            starting = [pool.submit(start) for _ in range(2)]
            eventually(lambda: rows(sleeping), 30)
            before = sum(writer.acknowledged for writer in writers)
            eventually(lambda: not rows(sleeping), SECONDS + 30, every=0.1)
            # Nobody waited for the migration, and nobody waits now behind the change of the table.
            assert sum(writer.acknowledged for writer in writers) > before
            eventually(lambda: rows(waiting))
            before = sum(writer.acknowledged for writer in writers)
            eventually(lambda: sum(writer.acknowledged for writer in writers) > before + 5)
            assert not any(future.done() for future in starting)
        servers = [third, *(future.result(60) for future in starting)]
        for writer in writers:
            writer.stop()
        for writer in writers:
            writer.join(30)

        assert [fault for writer in writers for fault in writer.faults] == []
        assert rows("SELECT version_num FROM alembic_version") == [("concurrent",)]
        assert rows("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_colour'::regclass") == [
            (True,)
        ]
        name = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert rows(name) == [(0,)]
        order = admin.order()
        for number, server in enumerate(servers):
            admin.at(server.transport).edit(order, f"edit {number}")
        assert [event["version"] for event in admin.history(order)] == [1, 2, 3, 4]
        assert "gave way" in servers[1].log + servers[2].log
