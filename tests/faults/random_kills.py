"""Kills servers, database and connections at random while writers write and watchers watch.

The history check then compares what all clients saw with the audit trail. Everything random comes
from one seed, except the scheduling of threads and processes: the same seed kills the same kinds of
things in the same order, at about the same moments.
"""

import contextlib
import gc
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import psycopg2
import requests

from tests.faults.cluster import Cluster
from tests.faults.history import Outcome, violations
from tests.faults.watchers import (
    FeedWatcher,
    OrdersWatcher,
    ResumingRawWatcher,
    ResumingWatcher,
)
from tests.faults.writers import Orders, Writer
from tests.support.people import Person
from tests.support.servers import Server, running_server
from tests.support.tcp_proxy import DOWN, UP, TcpProxy
from tests.support.waiting import eventually

WRITERS = 8
WATCHERS = {OrdersWatcher: 10, ResumingRawWatcher: 8, FeedWatcher: 2}

# Of each kind in a hundred kills.
SHARES = {
    "kill -9 of a server": 36,
    "SIGTERM of a server": 10,
    "kill -9 of a database backend": 12,
    "termination of a database backend": 8,
    "termination of database backends at their COMMIT": 8,
    "kill -9 of all of PostgreSQL": 10,
    "cut of connections": 16,
}

# The promises' own bounds, in seconds.
RECOVERY = 10.0
EXIT = 10.0

# What a server may log when it fails to start: its database was being killed at that moment.
EXCUSES = (
    "DB_DSN names a database that cannot be used",
    "The database cannot answer right now",
    "the relay cannot reach the database",
)

# Words that no fault excuses in a server's log.
ALARMS = ("unexpected error", "Traceback", "CRITICAL")


class SupervisedServer:
    """A server at one address, behind a proxy: whenever it ends, it is started again."""

    def __init__(self, name: str, dsn: str, **settings: str) -> None:
        self.name = name
        self.proxy = TcpProxy(1)
        self.server: Server | None = None
        self.starts = 0
        self.faults: list[str] = []
        self.expected_to_end = False
        self._dsn = dsn
        self._settings = settings
        self._stopping = False
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._supervisor.start()

    def _supervise(self) -> None:
        while not self._stopping:
            try:
                with running_server(self._dsn, **self._settings) as server:
                    self.starts += 1
                    self.expected_to_end = False
                    self.proxy.target = server.port
                    self.server = server
                    code = server.process.wait()
                    self.server = None
                    self._check_the_end(server, code)
            except Exception as error:  # noqa: BLE001 (it starts again, as under any supervisor)
                said = "\n".join([repr(error), str(error), *getattr(error, "__notes__", ())])
                if not any(excuse in said for excuse in EXCUSES):
                    self.faults.append(f"{self.name} did not start: {said[-3000:]}")
                time.sleep(0.1)

    def _check_the_end(self, server: Server, code: int) -> None:
        if not self.expected_to_end:
            self.faults.append(f"{self.name} ended by itself with {code}:\n{server.log[-3000:]}")
        self.faults += [
            f"{self.name} logged: {server.log[max(0, at - 200) : at + 3000]}"
            for alarm in ALARMS
            if (at := server.log.find(alarm)) >= 0
        ]

    def kill(self) -> bool:
        """kill -9; whether it was running."""
        server = self.server
        if server is None:
            return False
        self.expected_to_end = True
        server.process.kill()
        eventually(lambda: self.server is not server)
        return True

    def terminate(self) -> bool:
        """SIGTERM, and check how it ends; whether it was running."""
        server = self.server
        if server is None:
            return False
        self.expected_to_end = True
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(60)
        took = time.monotonic() - began
        if code != 0 or took > EXIT:
            self.faults.append(f"{self.name} took {took:.1f} s to end with {code} after SIGTERM")
        eventually(lambda: self.server is not server)
        return True

    def is_ready(self) -> bool:
        server = self.server
        if server is None:
            return False
        try:
            return requests.get(f"{server.url}/readyz", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def close(self) -> None:
        self._stopping = True
        self.terminate()
        self._supervisor.join(30)
        self.proxy.close()


@dataclass
class Report:
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    writes: Counter[str] = field(default_factory=Counter)
    orders: int = 0
    events: int = 0
    received: int = 0
    legs: int = 0
    unavailable: int = 0
    slowest_answer: float = 0.0
    slowest_recovery: float = 0.0
    convergence: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        kinds = "".join(f"\n    {number:4}  {kind}" for kind, number in self.kills.most_common())
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in self.writes.items())
        return (
            f"random kills, seed {self.seed}: {self.kills.total()} kills in {self.seconds:.0f} s"
            f"{kinds}\n"
            f"  {self.orders} orders, {self.events} events; writes: {outcomes};"
            f" 503 answered {self.unavailable} times\n"
            f"  {self.received} events received on {self.legs} subscriptions\n"
            f"  slowest answer {self.slowest_answer:.2f} s, slowest recovery"
            f" {self.slowest_recovery:.2f} s, all caught up {self.convergence:.2f} s after the last"
            f" write\n  violations: {len(self.findings)}"
            + "".join(f"\n    {finding}" for finding in self.findings[:20])
        )


class RandomKills:
    """Two servers, eight writers and twenty watchers on *cluster*, and the kills among them.

    pause    how long a writer waits between two changes, in seconds, on average
    shares   how often each kind of kill happens, relative to the others
    """

    def __init__(
        self,
        cluster: Cluster,
        seed: int,
        *,
        pause: float = 0.02,
        shares: Mapping[str, int] = SHARES,
    ) -> None:
        self._cluster = cluster
        self._shares = shares
        self._chance = random.Random(seed)
        self._report = Report(seed)
        self._orders = Orders(alive=24)
        self._assigned = 0
        self.servers = [
            SupervisedServer(name, cluster.dsn, ACCESS_TOKEN_SECONDS="86400")
            for name in ("left", "right")
        ]
        admin = self._admin()
        self._owner = admin.id
        urls = [supervised.proxy.url for supervised in self.servers]
        self.writers = [
            Writer(f"writer {n}", urls, admin.token, self._orders, seed * 100 + n, pause)
            for n in range(WRITERS)
        ]
        self.watchers: list[ResumingWatcher] = []
        for kind, number in WATCHERS.items():
            for n in range(number):
                extra = [self._pick] if kind is ResumingRawWatcher else []
                self.watchers.append(kind(f"{kind.__name__} {n}", self._port, admin.token, *extra))

    def _admin(self) -> Person:
        def ready() -> Server | None:
            return self.servers[0].server

        server = eventually(ready, 60)
        assert server is not None
        return server.people.admin()

    def _pick(self) -> str | None:
        return self._orders.pick(random.Random())

    def _port(self) -> int:
        return random.choice(self.servers).proxy.port

    def run(self, kills: int) -> Report:
        """Kill *kills* times at random moments, then check all histories against the trail."""
        left = iter(range(kills))
        return self.run_while(lambda: next(left, None) is not None)

    def run_while(self, more: Callable[[], bool]) -> Report:
        """As `run`, for as long as *more* says so."""
        began = time.monotonic()
        for supervised in self.servers:
            eventually(supervised.is_ready, 60)
        for thread in [*self.writers, *self.watchers]:
            thread.start()
        while more():
            self._let_them_work()
            self._kill_something()
        self._let_them_work()
        self._end()
        self._report.seconds = time.monotonic() - began
        return self._report

    def close(self) -> None:
        for thread in [*self.writers, *self.watchers]:
            thread.stop()
        self._cluster.ensure_running()
        for supervised in self.servers:
            supervised.close()
        # Connections that were cut warn here, where that is expected.
        gc.collect()

    def _let_them_work(self) -> None:
        before = self._acknowledged()
        time.sleep(self._chance.uniform(0.05, 0.6))
        self._assign()
        try:
            eventually(lambda: self._acknowledged() >= before + 5, 20, every=0.02)
        except AssertionError:
            self._report.findings.append("no write was acknowledged for 20 s")

    def _acknowledged(self) -> int:
        return sum(writer.acknowledged for writer in self.writers)

    def _assign(self) -> None:
        """Give each new order two watchers."""
        new = self._orders.all[self._assigned :]
        self._assigned += len(new)
        many = [one for one in self.watchers if isinstance(one, OrdersWatcher)]
        for order_id in new:
            for watcher in self._chance.sample(many, 2):
                watcher.want(order_id)

    # --- the kills --------------------------------------------------------------------------------

    def _kill_something(self) -> None:
        kind = self._chance.choices(list(self._shares), list(self._shares.values()))[0]
        ways: dict[str, Callable[[], None]] = {
            "kill -9 of a server": lambda: self._end_a_server(SupervisedServer.kill),
            "SIGTERM of a server": lambda: self._end_a_server(SupervisedServer.terminate),
            "kill -9 of a database backend": lambda: self._end_a_backend(kill=True),
            "termination of a database backend": lambda: self._end_a_backend(kill=False),
            "termination of database backends at their COMMIT": self._end_commits,
            "kill -9 of all of PostgreSQL": self._kill_postgresql,
            "cut of connections": self._cut_connections,
        }
        ways[kind]()
        self._report.kills[kind] += 1

    def _end_a_server(self, way: Callable[[SupervisedServer], bool]) -> None:
        supervised = self._chance.choice(self.servers)
        eventually(lambda: way(supervised), 60)

    def _end_a_backend(self, *, kill: bool) -> None:
        backends = self._cluster.backends("ordertrack%")
        pid = self._chance.choice(backends) if backends else None
        if pid is None:
            return
        if not kill:
            self._cluster.execute("SELECT pg_terminate_backend(%s)", pid)
            return
        # PostgreSQL takes every other backend down too, and recovers.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._await_recovery()

    def _end_commits(self) -> None:
        """Twice: what waits behind the first writes makes groups."""
        with self._cluster.commits_waiting():
            for _ in range(2):
                eventually(self._cluster.at_commit, 20)
                time.sleep(self._chance.uniform(0, 0.2))
                for pid in self._cluster.at_commit():
                    self._cluster.execute("SELECT pg_terminate_backend(%s)", pid)

    def _kill_postgresql(self) -> None:
        self._cluster.kill()
        time.sleep(self._chance.uniform(0, 0.5))
        self._cluster.ensure_running()
        self._await_recovery()

    def _await_recovery(self) -> None:
        """Servers that survived become ready again by themselves, in time."""
        servers = [one for one in self.servers if one.server is not None]
        began = time.monotonic()
        eventually(self._database_answers, 30)
        if not servers:
            return
        eventually(lambda: any(supervised.is_ready() for supervised in servers), 60)
        took = time.monotonic() - began
        self._report.slowest_recovery = max(self._report.slowest_recovery, took)
        if took > RECOVERY:
            self._report.findings.append(f"ready {took:.1f} s after the database was")

    def _database_answers(self) -> bool:
        try:
            return bool(self._cluster.execute("SELECT 1"))
        except psycopg2.Error:
            return False

    def _cut_connections(self) -> None:
        proxy = self._chance.choice(self.servers).proxy
        direction = self._chance.choice([UP, DOWN])
        for connection in proxy.connections:
            if self._chance.random() < 0.5:
                connection.cut_after(self._chance.randrange(0, 600), direction)

    # --- the end ----------------------------------------------------------------------------------

    def _end(self) -> None:
        report = self._report
        for writer in self.writers:
            writer.stop()
        for writer in self.writers:
            writer.join(60)
        ended = time.monotonic()
        for supervised in self.servers:
            eventually(supervised.is_ready, 60)
        self._assign()
        trails = self._trails()
        versions = {order_id: len(trail) for order_id, trail in trails.items()}
        for watcher in self.watchers:
            try:
                eventually(lambda one=watcher: one.reached(versions), 20)  # type: ignore[misc]
            except AssertionError:
                report.findings.append(f"{watcher.name} has not caught up after 20 s")
        report.convergence = time.monotonic() - ended
        for watcher in self.watchers:
            watcher.stop()
        for watcher in self.watchers:
            watcher.join(20)

        writes = [write for writer in self.writers for write in writer.writes]
        legs = [leg for watcher in self.watchers for leg in watcher.complete()]
        report.findings += violations(trails, writes, legs)
        for part in [*self.writers, *self.watchers, *self.servers]:
            report.findings += part.faults
        report.writes = Counter(outcome.value for outcome in (write.outcome for write in writes))
        report.orders = len(trails)
        report.events = sum(versions.values())
        report.legs = len(legs)
        report.received = sum(len(leg.events) for leg in legs)
        report.unavailable = sum(writer.unavailable for writer in self.writers)
        report.slowest_answer = max(writer.slowest for writer in self.writers)
        assert report.writes[Outcome.ACKNOWLEDGED] > 0

    def _trails(self) -> dict[str, list[dict[str, object]]]:
        """The trail of every order of this run, also of those whose creation was not answered."""
        server = next(one.server for one in self.servers if one.server is not None)
        auditor = server.people.admin()
        ids = self._cluster.execute(
            "SELECT id FROM orders WHERE customer_id = %s ORDER BY id", int(self._owner)
        )
        return {str(order_id): auditor.history(order_id) for (order_id,) in ids}
