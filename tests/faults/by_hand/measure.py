"""How late a change is heard of, what waiting for it costs, and what wake-ups do to the writers.

    python -m tests.faults.by_hand.measure

Prints Markdown. Nothing here is a test: a busy machine makes every number worse.
"""

import contextlib
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2
import websocket
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from ordertrack.log_tail import Tail
from tests.faults.cluster import Cluster, running_cluster
from tests.support.events import insert_order
from tests.support.servers import Server, running_server
from tests.support.watchers import RawWatcher, raw_watching

CHANGES = 500
IDLE_SECONDS = 20.0
WRITERS = 16
WRITE_SECONDS = 6.0


def milliseconds(values: list[float], share: float) -> str:
    ordered = sorted(values)
    return f"{ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000:.1f}"


# --- commit → receipt -----------------------------------------------------------------------------


def latencies(dsn: str) -> None:
    """From the event's own time, taken by the database before the commit, to its receipt."""
    with running_server(dsn) as here, running_server(dsn) as there:
        admin = here.people.admin()
        order = admin.order()
        heard: dict[str, list[float]] = {"same process": [], "other process": []}
        with contextlib.ExitStack() as stack:
            for server, waits in zip((here, there), heard.values(), strict=True):
                stack.enter_context(listening(server, admin.token, order["id"], waits))
            for number in range(CHANGES):
                admin.edit(order, f"change {number}")
                time.sleep(0.02)
            time.sleep(1)
        print(f"\n| commit → receipt, {CHANGES} changes, ms | median | p99 | longest |")
        print("|---|---|---|---|")
        for where, waits in heard.items():
            assert len(waits) == CHANGES
            print(
                f"| {where} | {milliseconds(waits, 0.5)} | {milliseconds(waits, 0.99)}"
                f" | {milliseconds(waits, 1)} |"
            )


@contextlib.contextmanager
def listening(server: Server, token: str, order_id: str, waits: list[float]) -> Iterator[None]:
    def listen(raw: RawWatcher) -> None:
        with contextlib.suppress(websocket.WebSocketException, EOFError, OSError):
            while True:
                event = raw.next()
                sent = datetime.fromisoformat(event["updated_at"])
                waits.append(time.time() - sent.timestamp())

    with raw_watching(server, order_id, token, after=1) as raw:
        thread = threading.Thread(target=listen, args=[raw], daemon=True)
        thread.start()
        yield
    thread.join(5)


# --- at rest --------------------------------------------------------------------------------------


def idle(dsn: str) -> None:
    with running_server(dsn) as server:
        server.people.admin()
        time.sleep(3)
        before = cpu_seconds(server.process.pid)
        time.sleep(IDLE_SECONDS)
        used = cpu_seconds(server.process.pid) - before
        print(f"\nA process at rest uses {100 * used / IDLE_SECONDS:.2f} % of a core.")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


# --- wake-ups -------------------------------------------------------------------------------------

WRITE = """
    WITH o AS (UPDATE orders SET version = version + 1 WHERE id = %s RETURNING *)
    INSERT INTO order_events (order_id, version, type, status, previous_status, actor_id,
                              actor_name, actor_role, customer_id)
    SELECT id, version, 'description_changed', status, status, customer_id, 'Ann', 'admin',
           customer_id FROM o RETURNING version
"""


@dataclass
class Run:
    """Sixteen writers, each on an order of its own, and one reader."""

    cluster: Cluster
    in_transaction: bool = False
    coalesced: bool = False
    poll: float = 0.5
    commits: list[int] = field(default_factory=list)
    committed: dict[tuple[int, int], float] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    reads: int = 0
    _dirty: threading.Event = field(default_factory=threading.Event)
    _woken: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    def go(self) -> None:
        orders = [insert_order(self.cluster.superuser_dsn) for _ in range(WRITERS)]
        writers = [self._thread(self._write, order) for order in orders]
        others = [self._thread(self._read), self._thread(self._listen)]
        if self.coalesced:
            others.append(self._thread(self._notify))
        time.sleep(WRITE_SECONDS)
        self._over.set()
        self._dirty.set()
        for thread in [*writers, *others]:
            thread.join(10)

    def _thread(self, work: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        thread.start()
        return thread

    def _connect(self) -> Any:
        connection = psycopg2.connect(self.cluster.superuser_dsn)
        connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        return connection

    def _write(self, order: int) -> None:
        sql = f"{WRITE}, pg_notify('woken', '')" if self.in_transaction else WRITE
        number = 0
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            while not self._over.is_set():
                cursor.execute(sql, [order])
                self.committed[order, cursor.fetchone()[0]] = time.monotonic()
                number += 1
                self._dirty.set()
        self.commits.append(number)

    def _notify(self) -> None:
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            while not self._over.is_set():
                self._dirty.wait()
                self._dirty.clear()
                cursor.execute("NOTIFY woken")

    def _listen(self) -> None:
        with contextlib.closing(self._connect()) as connection:
            connection.cursor().execute("LISTEN woken")
            while not self._over.is_set():
                if select.select([connection], [], [], 0.1)[0]:
                    connection.poll()
                    connection.notifies.clear()
                    self._woken.set()

    def _read(self) -> None:
        tail = Tail()
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SET enable_seqscan = off")
            tail.open(cursor)
            while not self._over.is_set():
                _, found = tail.read(cursor)
                now = time.monotonic()
                self.reads += 1
                for event in found:
                    # Who reads before the writer's thread had its turn was not late at all.
                    at = self.committed.get((event.order_id, event.version), now)
                    self.waits.append(max(0.0, now - at))
                if self.in_transaction or self.coalesced:
                    self._woken.wait(self.poll)
                    self._woken.clear()
                else:
                    time.sleep(self.poll)


def wake_ups() -> None:
    for fsync in ("on", "off"):
        with running_cluster(fsync=fsync) as cluster:
            ways = {
                "NOTIFY in each transaction": Run(cluster, in_transaction=True),
                "NOTIFY outside, coalesced": Run(cluster, coalesced=True),
                "polling every 500 ms": Run(cluster, poll=0.5),
                "polling every 50 ms": Run(cluster, poll=0.05),
                "polling every 5 ms": Run(cluster, poll=0.005),
            }
            print(
                f"\n| {WRITERS} writers, fsync {fsync} | commits/s | heard after, ms: median | p99",
                end="",
            )
            print(" | reads/s |\n|---|---|---|---|---|")
            for name, run in ways.items():
                run.go()
                print(
                    f"| {name} | {sum(run.commits) / WRITE_SECONDS:,.0f}"
                    f" | {milliseconds(run.waits, 0.5)} | {milliseconds(run.waits, 0.99)}"
                    f" | {run.reads / WRITE_SECONDS:,.0f} |"
                )


if __name__ == "__main__":
    with running_cluster(fsync="on") as started:
        latencies(started.dsn)
        idle(started.dsn)
    wake_ups()
