"""A PostgreSQL and a standby that streams from it: the operating system's, each to be killed."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psycopg2.extensions import make_dsn

from tests.support.databases import execute
from tests.support.waiting import eventually

BINARIES = Path("/usr/lib/postgresql/15/bin")
DATABASE = ROLE = "ordertrack"
OPTIONS = (
    "-c listen_addresses= -c fsync=off -c max_connections=100 -c unix_socket_permissions=0777"
    # Writes are sent at once, and a promoted standby serves at once.
    " -c wal_writer_delay=10ms -c wal_retrieve_retry_interval=100ms"
)


class Node:
    """One PostgreSQL in *folder*, whose Unix socket is in there too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.superuser_dsn = make_dsn(host=str(folder), user="postgres", dbname=DATABASE)

    def run(self, program: str, *arguments: str) -> None:
        # PostgreSQL refuses root. `postgres` comes with the operating system's package.
        owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        subprocess.run(
            [str(BINARIES / program), *arguments],
            check=True,
            cwd=self.folder,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            user=owner.pw_uid if owner else None,
            group=owner.pw_gid if owner else None,
            extra_groups=[] if owner else None,
            stdout=subprocess.DEVNULL,
        )

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        log = str(self.folder / "log")
        options = f"{OPTIONS} -k {self.folder}"
        self.run("pg_ctl", "start", "-w", "-D", str(self.data), "-l", log, "-o", options)

    def kill(self) -> None:
        """kill -9 the postmaster; its children notice and end."""
        os.kill(int((self.data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def stop(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # it was killed
            self.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.data))

    def execute(self, sql: str, *values: Any, dbname: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run one statement as superuser, committed; its rows."""
        return execute(make_dsn(self.superuser_dsn, dbname=dbname), sql, *values)


class Pair:
    """A primary, and a standby that follows it.

    dsn     both hosts, as the application's role; the second one can be reached by it only after
            `open_the_standby`, so that a test may prepare what a server is to find there
    """

    def __init__(self, folder: Path) -> None:
        self.primary, self.standby = Node(folder / "primary"), Node(folder / "standby")
        self._link = folder / "standby-link"
        hosts = f"{self.primary.folder},{self._link}"
        self.dsn = make_dsn(host=hosts, user=ROLE, dbname=DATABASE)

    def open_the_standby(self) -> None:
        self._link.symlink_to(self.standby.folder)

    def cut(self) -> None:
        """Stop the replication; the standby keeps what it has."""
        self.standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
        self.standby.execute("SELECT pg_reload_conf()")
        receiving = "SELECT 1 FROM pg_stat_wal_receiver"
        eventually(lambda: not self.standby.execute(receiving))

    def catch_up(self) -> None:
        """Wait until the standby has everything."""
        (end,) = self.primary.execute("SELECT pg_current_wal_lsn()::text")[0]
        question = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        eventually(lambda: self.standby.execute(question, end)[0][0])

    def fail_over(self) -> None:
        self.primary.kill()
        self.standby.execute("SELECT pg_promote(wait => true)")


@contextlib.contextmanager
def replicated() -> Iterator[Pair]:
    """A primary with an empty database that the role `ROLE` owns, and its standby."""
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-pair-"))
    folder.chmod(0o755)
    pair = Pair(folder)
    for node in (pair.primary, pair.standby):
        node.folder.mkdir(mode=0o755)
        if os.geteuid() == 0:
            shutil.chown(node.folder, "postgres", "postgres")
    try:
        pair.primary.run(
            "initdb", "-D", str(pair.primary.data), "--username=postgres", "--auth=trust",
            "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync",
        )  # fmt: skip
        pair.primary.start()
        pair.primary.execute(f"CREATE ROLE {ROLE} LOGIN", dbname="postgres")
        pair.primary.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}", dbname="postgres")
        pair.standby.run(
            "pg_basebackup", "-D", str(pair.standby.data), "-R", "-X", "stream", "-c", "fast",
            "-d", f"host={pair.primary.folder} user=postgres", "--no-sync",
        )  # fmt: skip
        pair.standby.start()
        yield pair
    finally:
        for node in (pair.primary, pair.standby):
            if node.data.exists():
                node.stop()
        shutil.rmtree(folder)
