"""What each page, endpoint and background read costs on a large database, and by which plan.

    python -m tests.faults.by_hand.plans 10000000 --events 10 --folder /var/tmp/large

Makes that many orders, with so many events each, in a PostgreSQL of its own: some 3 GB and two
minutes for each million orders with ten events. Migrates it as it is then, with all rows in place.

The first time says what a read costs from a disk, by the clock. The best of three more, from
memory, is shown and judged: the time for which PostgreSQL's process was running, whatever else the
machine did meanwhile. Exits with 1 when a read takes more than 50 ms.

With --folder the tables stay there, and the next run uses them. As root, PostgreSQL runs as the
user `postgres`; POSTGRES_BINARIES names the folder of initdb, if not Debian's for PostgreSQL 15.
"""

import argparse
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2

from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.lifecycle import Status
from ordertrack.services import orders
from tests.support import reads
from tests.support.bulk import Size, fill
from tests.support.databases import migrate, settings_for
from tests.support.plans import Plan, recorded, recording
from tests.support.reads import Callers, Read

BINARIES = Path(os.environ.get("POSTGRES_BINARIES", "/usr/lib/postgresql/15/bin"))

# Of the database's time, for all statements of one page or answer, from memory.
MOST_MS = 50.0

# How often each is measured after its first time. The least counts.
TIMES = 3

OPTIONS = (
    "-c listen_addresses= -c max_connections=40 -c shared_buffers=1GB -c max_wal_size=4GB"
    " -c fsync=off -c full_page_writes=off -c synchronous_commit=off"
    " -c wal_level=minimal -c max_wal_senders=0"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("orders", type=int, help="how many; a multiple of a thousand")
    parser.add_argument("--events", type=int, default=10, help="of each order (10)")
    parser.add_argument("--folder", type=Path, help="where the tables stay")
    arguments = parser.parse_args()
    size = Size(arguments.orders // 1000 * 1000, arguments.events)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="ordertrack-plans-", dir="/var/tmp"))
    try:
        with cluster(folder) as dsn:
            prepare(dsn, size)
            return report(measured(dsn, size))
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A superuser's DSN of a PostgreSQL 15 in *folder*, made there unless it is there."""
    as_root = os.geteuid() == 0
    owner = pwd.getpwnam("postgres") if as_root else pwd.getpwuid(os.geteuid())
    folder.mkdir(exist_ok=True)
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    data = folder / "cluster"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [BINARIES / program, "--pgdata", data, *arguments],
            check=True,
            cwd=folder,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            user=owner.pw_uid if as_root else None,
            group=owner.pw_gid if as_root else None,
            extra_groups=[] if as_root else None,
            stdout=subprocess.DEVNULL,
        )

    if not data.exists():
        run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8",
            "--locale=C.UTF-8", "--no-sync")  # fmt: skip
        # Four billion transactions lie behind it, so that the log's can be spread over many.
        run("pg_resetwal", "--epoch=1")
    run("pg_ctl", "start", "--wait", "--log", str(folder / "log"), "--options",
        f"{OPTIONS} -k {folder}")  # fmt: skip
    try:
        yield f"host={folder} port=5432 user=postgres dbname=postgres"
    finally:
        run("pg_ctl", "stop", "--wait", "--mode=fast")


def prepare(dsn: str, size: Size) -> None:
    """Make the tables, unless they are there. The newest migration finds them full."""
    if "orders" not in _tables(dsn):
        migrate(dsn, "0001")
        began = time.monotonic()
        fill(dsn, size)
        print(f"filled in {time.monotonic() - began:.0f} s", flush=True)
    began = time.monotonic()
    migrate(dsn)
    print(f"migrated in {time.monotonic() - began:.0f} s", flush=True)
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")


def _tables(dsn: str) -> list[str]:
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return [name for (name,) in cursor.fetchall()]


def measured(dsn: str, size: Size) -> Iterator[tuple[str, float, list[Plan]]]:
    """Each read's name, its first time in ms, and the plans of its best."""
    app = create_app(settings_for(dsn))
    callers = reads.log_in(dsn)
    with app.app_context():
        with recorded(db.engine) as plans:
            asked = (
                *reads.list_reads(callers, size),
                *reads.order_reads(callers, size),
                *reads.other_reads(callers, size),
                *writes(callers),
            )
            yield from _repeatedly(asked, plans)
        plans = []
        # As the relay connects.
        settings = "-c jit=off -c enable_seqscan=off -c plan_cache_mode=force_generic_plan"
        with closing(
            psycopg2.connect(dsn, options=settings, cursor_factory=recording(plans))
        ) as connection:
            connection.autocommit = True
            yield from _repeatedly(_relay_reads(connection.cursor()), plans)


def _relay_reads(cursor: object) -> Iterator[tuple[str, Read]]:
    [(_, opening), *rest] = reads.tail_reads(cursor, 500)
    opening()  # prepares, which can be done once
    yield from rest


def writes(callers: Callers) -> Iterator[tuple[str, Read]]:
    """The paths that must not become slower by what makes reading fast."""

    def place() -> int:
        return orders.create(callers.customer, "a lamp").id

    yield "place", place
    placed = [place() for _ in range(TIMES + 1)]
    yield (
        "move",
        lambda: orders.change_status(callers.admin, placed.pop(), Status.PROCESSING),
    )


def _repeatedly(
    asked: Iterable[tuple[str, Read]], plans: list[Plan]
) -> Iterator[tuple[str, float, list[Plan]]]:
    for name, read in asked:
        runs = []
        for _ in range(TIMES + 1):
            plans.clear()
            read()
            runs.append(list(plans))
        yield name, sum(plan.ms for plan in runs[0]), min(runs[1:], key=busy)


def busy(plans: list[Plan]) -> float:
    return sum(plan.busy_ms for plan in plans)


def report(found: Iterable[tuple[str, float, list[Plan]]]) -> int:
    slow = []
    for name, first, plans in found:
        total = busy(plans)
        buffers = sum(plan.buffers for plan in plans)
        print(f"{name}: {total:.1f} ms (at first {first:.1f}), {buffers} buffers")
        for plan in plans:
            print(f"    {plan.busy_ms:7.1f} ms {plan.buffers:6} buffers  {plan.shape}", flush=True)
        if total > MOST_MS:
            slow.append(f"{name}: {total:.1f} ms")
    print("\n".join(["", f"over {MOST_MS:.0f} ms:", *slow] if slow else ["", "all within 50 ms"]))
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
