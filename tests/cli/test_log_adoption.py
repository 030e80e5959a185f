"""A log that was restored from a dump of another PostgreSQL cluster is adopted."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from ordertrack import embedded, log_tail
from ordertrack.app import create_app
from ordertrack.eventlog import Event
from ordertrack.extensions import db
from tests.cli.conftest import Own
from tests.support.databases import Postgres, as_owner, settings_for
from tests.support.http import InProcess
from tests.support.people import People, Person
from tests.support.servers import refusal_to_start

BURN = "DO $$ BEGIN FOR i IN 1..{} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
NEXT = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[Postgres, str]]:
    """Another cluster, and the DSN of its empty database, owned by the application's role."""
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-test-"))
    try:
        with embedded.start(folder) as started:
            yield Postgres(started.superuser_dsn), started.dsn
    finally:
        shutil.rmtree(folder)


class Tail:
    """A relay's view of a database: the events that it would publish."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg2.connect(dsn)
        self._connection.autocommit = True
        self._tail = log_tail.Tail()
        with self._connection.cursor() as cursor:
            self._tail.open(cursor)

    def read(self) -> list[Event]:
        with self._connection.cursor() as cursor:
            _, events = self._tail.read(cursor)
            return events

    def close(self) -> None:
        self._connection.close()


def copy(source: str, target: str) -> None:
    """``pg_dump | psql``, with the pg_dump of the server's own release where it is installed.

    An older pg_dump may not know the catalogues of a later minor release.
    """
    binaries = embedded._packaged_binaries()
    with psycopg2.connect(source) as connection:
        release = connection.server_version // 10_000
    connection.close()
    own = Path(f"/usr/lib/postgresql/{release}/bin/pg_dump")
    dump = subprocess.run(
        [
            own if own.exists() else binaries / "pg_dump",
            "--no-owner",
            "--no-privileges",
            f"--dbname={source}",
        ],
        check=True,
        capture_output=True,
    )
    subprocess.run(
        [binaries / "psql", "-q", "-v", "ON_ERROR_STOP=1", f"--dbname={target}"],
        check=True,
        input=dump.stdout,
        capture_output=True,
    )


def own_on(dsn: str) -> Own:
    app = create_app(settings_for(dsn))
    return Own(dsn, app, People(dsn, InProcess(app)))


def test_a_restored_log_is_adopted_and_no_old_event_is_published(
    own: Own, postgres: Postgres, elsewhere: tuple[Postgres, str]
) -> None:
    other, target = elsewhere
    # Ours is the older cluster: it is ahead of the other one by far.
    [(theirs,)], [(ours,)] = other.execute(NEXT), postgres.execute(NEXT)
    postgres.execute(BURN.format(max(0, theirs - ours) + 2000))
    customer, driver = own.people.customer(), own.people.driver()
    orders = [customer.order(f"order {number}") for number in range(3)]
    driver.move(orders[0], "Processing", "Shipped")
    customer.signed_in_again().api.post("/api/logout")
    # The embedded PostgreSQL has none to restore it into (docs/operations.md).
    superuser = postgres.as_superuser(own.dsn)
    postgres.execute("DROP EXTENSION IF EXISTS pg_trgm CASCADE", dsn=superuser)
    copy(as_owner(own.dsn), target)

    assert "audit adopt" in refusal_to_start(target)

    restored = own_on(target)
    try:
        before = _log(other, target)
        result = restored.flask("audit", "adopt")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("6 rows of the log came from another cluster")
        assert _log(other, target) == before, "only the transaction ids may change"
        assert restored.flask("audit", "verify").stdout.startswith("3 orders, 5 events")
        assert restored.flask("audit", "adopt").stdout.startswith("0 rows")

        tail = Tail(target)
        try:
            other.execute(BURN.format(4000), dsn=target)
            assert tail.read() == []
            again = restored.people.customer().order("placed there")
            assert [event.order_id for event in tail.read()] == [int(again["id"])]
        finally:
            tail.close()
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            other.execute("UPDATE order_events SET note = ''", dsn=other.as_superuser(target))
    finally:
        with restored.app.app_context():
            db.engine.dispose()


def _log(postgres: Postgres, dsn: str) -> list[tuple[Any, ...]]:
    """Every event without its transaction's id."""
    return postgres.execute(
        "SELECT to_jsonb(e) - 'xid' FROM order_events e ORDER BY id", dsn=postgres.as_superuser(dsn)
    )


def test_rows_that_were_appended_here_are_never_adopted(own: Own, postgres: Postgres) -> None:
    customer: Person = own.people.customer()
    for number in range(3):
        customer.order(f"order {number}")
    held = psycopg2.connect(own.dsn)
    try:
        with held.cursor() as cursor:  # an older transaction is open: all later ones lie above it
            cursor.execute("SELECT pg_current_xact_id()")
        customer.order("later")
        assert own.flask("audit", "adopt").stdout.startswith("0 rows")
    finally:
        held.close()
    assert own.flask("audit", "verify").stdout == "4 orders, 4 events: the log is whole.\n"
