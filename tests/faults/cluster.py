"""A PostgreSQL that a test has for itself, to kill it."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT, make_dsn, parse_dsn

from ordertrack import embedded
from ordertrack.embedded import EmbeddedPostgres
from tests.support.databases import execute, migrate


class Cluster:
    """A running PostgreSQL with one migrated database.

    dsn             that database, as the application's role
    superuser_dsn   the same, as superuser
    """

    def __init__(self, running: EmbeddedPostgres) -> None:
        self._running = running
        self.dsn = running.dsn
        self.superuser_dsn = make_dsn(
            running.superuser_dsn, dbname=parse_dsn(running.dsn)["dbname"]
        )
        migrate(self.dsn)

    def connect(self) -> Any:
        """A superuser's connection in autocommit."""
        connection = psycopg2.connect(self.superuser_dsn)
        connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        return connection

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, committed; its rows."""
        return execute(self.superuser_dsn, sql, *values)

    def execute_elsewhere(self, sql: str) -> None:
        """As `execute`, from the maintenance database."""
        execute(self._running.superuser_dsn, sql)

    def _processes(self) -> list[psutil.Process]:
        pid_file = self._running.data_dir / "postgres" / "postmaster.pid"
        postmaster = psutil.Process(int(pid_file.read_text().split()[0]))
        return [postmaster, *postmaster.children(recursive=True)]

    def kill(self) -> None:
        """kill -9, all of it."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def suspend(self) -> None:
        """Make it hang: connections stay open, and nothing is answered."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    @contextlib.contextmanager
    def commits_waiting(self) -> Iterator[None]:
        """Commits reach the disk, and then wait for a standby that does not exist: `at_commit`."""
        self._require_standby("nobody")
        try:
            yield
        finally:
            self._require_standby("")

    def _require_standby(self, name: str) -> None:
        # On one connection that writes nothing: this must not wait itself.
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            cursor.execute("ALTER SYSTEM SET synchronous_standby_names = %s", [name])
            cursor.execute("SELECT pg_reload_conf()")

    def at_commit(self) -> list[int]:
        """The process ids of backends that have committed and wait before they say so."""
        rows = self.execute("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        return [pid for (pid,) in rows]

    def ensure_running(self) -> None:
        self._running.ensure_running()

    def backends(self, application: str = "%") -> list[int]:
        """The process ids of client backends whose application_name is LIKE *application*."""
        rows = self.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid() AND application_name LIKE %s ORDER BY pid",
            application,
        )
        return [pid for (pid,) in rows]


@contextlib.contextmanager
def running_cluster(**settings: str) -> Iterator[Cluster]:
    """A fresh cluster; *settings* are PostgreSQL's own."""
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-faults-"))
    try:
        with embedded.start(folder) as running:
            # Processes are killed here, not the machine, so the system's cache keeps every write.
            for name, value in {"fsync": "off", **settings}.items():
                execute(running.superuser_dsn, f"ALTER SYSTEM SET {name} = '{value}'")
            execute(running.superuser_dsn, "SELECT pg_reload_conf()")
            cluster = Cluster(running)
            yield cluster
            cluster.ensure_running()  # so that it stops in order
    finally:
        shutil.rmtree(folder)
