"""One PostgreSQL cluster for a run, with the same settings for all; a database for each contender.

It is OrderTrack's embedded PostgreSQL in a temporary folder on a real disk: commits are durable.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from ordertrack import embedded

# Same for all: no checkpoint in the middle of a measurement, no plan compiled for a point query.
_SETTINGS = {"checkpoint_timeout": "1h", "max_wal_size": "8GB", "jit": "off"}


@dataclass(frozen=True)
class Database:
    name: str
    dsn: str

    @property
    def libpq_environment(self) -> dict[str, str]:
        """PGHOST and its like, for programs that read them."""
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
        options = parse_dsn(self.dsn)
        return {variable: str(options[option]) for option, variable in names.items()}

    def execute(self, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Run it and commit; the rows, if it has any."""
        with closing(psycopg2.connect(self.dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, parameters)
                return cursor.fetchall() if cursor.description else []


class Cluster:
    def __init__(self, superuser_dsn: str, binaries: Path) -> None:
        self._maintenance = Database("postgres", superuser_dsn)
        self.binaries = binaries

    @property
    def version(self) -> str:
        return str(self._maintenance.execute("SHOW server_version")[0][0])

    def create_database(self, name: str) -> Database:
        """An empty one, owned by the role that the servers use."""
        self._maintenance.execute(f'CREATE DATABASE "{name}" OWNER {embedded.NAME}')
        options = dict(parse_dsn(self._maintenance.dsn), user=embedded.NAME, dbname=name)
        return Database(name, make_dsn(**options))

    def set_durable(self, database: Database, durable: bool) -> None:
        """Whether a commit waits for the disk, in connections that are opened from now on."""
        value = "on" if durable else "off"
        self._maintenance.execute(
            f'ALTER DATABASE "{database.name}" SET synchronous_commit={value}'
        )

    def settle(self) -> None:
        """Write out what earlier turns left behind, so that the next one does not pay for it."""
        self._maintenance.execute("CHECKPOINT")

    def configure(self) -> None:
        for name, value in _SETTINGS.items():
            self._maintenance.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self._maintenance.execute("SELECT pg_reload_conf()")


@contextmanager
def running() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-benchmarks-"))
    try:
        with embedded.start(folder) as postgres:
            copies = sorted(folder.glob("postgresql-*/package/*/bin"))
            binaries = copies[0] if copies else embedded._packaged_binaries()
            cluster = Cluster(postgres.superuser_dsn, binaries)
            cluster.configure()
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)
