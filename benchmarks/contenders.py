"""The servers under test: how each is started, and how orders get into its database.

All speak the same part of the protocol (REST reads and status changes, Socket.IO subscriptions), so
that one load generator drives them all. What each peer is: README.md and the sources in `peers/`.
"""

import base64
import hashlib
import hmac
import http.client
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, ClassVar

from benchmarks import machine, tools
from benchmarks.cluster import Cluster, Database
from benchmarks.load import Target
from ordertrack.lifecycle import MAIN_FLOW, Standing, predecessors
from ordertrack.services import order_writes

# The checkout whose server is measured: this one, or another to compare it with.
ROOT = Path(os.environ.get("BENCH_ORDERTRACK") or Path(__file__).resolve().parent.parent)
DRIVERS = 4
START_TIMEOUT = 30


class StartFailed(Exception):
    """A server under test did not come up. Its text ends with what the server said."""


class Contender:
    """A server with a database of its own. Subclasses say how it is installed, filled and run."""

    name: ClassVar[str]
    title: ClassVar[str]
    ready_path: ClassVar[str] = "/api/orders/1"  # any answer means that it serves

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.database: Database | None = None
        self.secret = secrets.token_urlsafe(48)
        self.tokens: list[str] = []

    def install(self) -> None:
        """Build or download what it needs. Raises `tools.MissingTool`."""

    def prepare(self) -> None:
        """Make its database and its users; once, before its first turn."""
        self.database = self.cluster.create_database(f"bench_{self.name}")

    def version(self) -> str:
        """Of the interpreter or compiler behind it, and how it was built."""
        raise NotImplementedError

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        """The command that serves on that port, and its part of the environment."""
        raise NotImplementedError

    def add_orders(self, count: int) -> list[tuple[int, int]]:
        """Add orders that are Pending: their ids, ascending, with their version."""
        raise NotImplementedError

    @contextmanager
    def serving(
        self, processes: int = 1, cores: Sequence[int] = ()
    ) -> Iterator["list[ServerProcess]"]:
        """That many server processes, ready; killed at the end."""
        with tempfile.TemporaryDirectory() as folder:
            servers = []
            try:
                for number in range(processes):
                    command, environment = self.command(port := free_port())
                    log = (Path(folder) / f"{number}.log").open("w+")
                    servers.append(ServerProcess(command, environment, port, log, cores))
                for server in servers:
                    server.wait_until_ready(self.ready_path)
                yield servers
            finally:
                for server in servers:
                    server.stop()

    @contextmanager
    def under_test(
        self, orders: int, processes: int = 1, cores: Sequence[int] = ()
    ) -> Iterator[Target]:
        """Serving, with that many fresh orders, as the load generator wants to know it."""
        fresh = self.add_orders(orders)
        self.cluster.settle()
        with self.serving(processes, cores) as servers:
            yield Target(
                ports=[server.port for server in servers],
                tokens=self.tokens,
                orders=fresh,
                pids=[server.pid for server in servers],
            )


class ServerProcess:
    """A contender's server on one port, pinned to the cores that servers get."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        port: int,
        log: IO[str],
        cores: Sequence[int] = (),
    ) -> None:
        self.port = port
        self._log = log
        self._command = " ".join(command)
        with machine.pinned(cores or [machine.SERVER_CORE]):
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=_clean_environment() | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    def wait_until_ready(self, path: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers(path):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise StartFailed(f"{self._command} does not serve:\n{self._said()}")
            time.sleep(0.02)

    def _answers(self, path: str) -> bool:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            try:
                connection.request("GET", path)
                return connection.getresponse().status < 500
            except OSError:
                return False

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:]

    def stop(self) -> None:
        # At once: its clients are gone, and what it committed is in the database.
        self._process.kill()
        self._process.wait()
        self._log.close()


class OrderTrack(Contender):
    name = "ordertrack"
    title = "OrderTrack"
    ready_path = "/readyz"

    def prepare(self) -> None:
        super().prepare()
        with self.serving() as [server]:
            _register(server.port, "customer")
            for number in range(DRIVERS):
                _register(server.port, f"driver{number}")
            assert self.database is not None
            self.database.execute("UPDATE users SET role = 'driver' WHERE name LIKE 'driver%'")
            self.tokens = [_log_in(server.port, f"driver{n}") for n in range(DRIVERS)]

    def version(self) -> str:
        return machine.python_build(sys.executable)

    def _environment(self, port: int) -> dict[str, str]:
        assert self.database is not None
        return {
            "DB_DSN": self.database.dsn,
            "JWT_SECRET": self.secret,
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "ACCESS_TOKEN_SECONDS": "86400",  # one login lasts a whole run
            "LOG_LEVEL": "WARNING",  # no line per request: none of the peers writes one
            # All clients come as four drivers, which nobody but a benchmark does.
            "MAX_CONNECTIONS": "100000",
            "MAX_CONNECTIONS_PER_USER": "100000",
        }

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "wsgi.py"], self._environment(port)

    def add_orders(self, count: int) -> list[tuple[int, int]]:
        assert self.database is not None
        rows = self.database.execute(
            """
            WITH o AS (
                INSERT INTO orders (customer_id, description)
                SELECT u.id, 'Two boxes of tea, one of rusks'
                  FROM users u, generate_series(1, %s) WHERE u.name = 'customer'
                RETURNING *),
            e AS (
                INSERT INTO order_events (order_id, version, type, status, actor_id, actor_name,
                                          actor_role, customer_id, created_at)
                SELECT o.id, 1, 'created', o.status, o.customer_id, 'customer', 'user',
                       o.customer_id, o.created_at FROM o)
            SELECT id, version FROM o ORDER BY id
            """,
            [count],
        )
        self.database.execute("ANALYZE orders, order_events")
        return [(int(order), int(version)) for order, version in rows]


class Peer(Contender):
    """A peer's tables are those of `peers/schema.sql`; its users need no password, only tokens."""

    def prepare(self) -> None:
        super().prepare()
        assert self.database is not None
        self.database.execute((tools.PEERS / "schema.sql").read_text())
        self.database.execute("INSERT INTO users VALUES (1, 'customer', 'user')")
        for number in range(DRIVERS):
            user = (10 + number, f"driver{number}", "driver")
            self.database.execute("INSERT INTO users VALUES (%s, %s, %s)", user)
            self.tokens.append(_signed(self.secret, *user))

    def add_orders(self, count: int) -> list[tuple[int, int]]:
        assert self.database is not None
        rows = self.database.execute(
            """
            WITH o AS (
                INSERT INTO orders (customer_id, description)
                SELECT 1, 'Two boxes of tea, one of rusks' FROM generate_series(1, %s)
                RETURNING id),
            e AS (
                INSERT INTO order_events (order_id, version, type, status,
                                          actor_id, actor_name, actor_role)
                SELECT id, 1, 'created', 'Pending', 1, 'customer', 'user' FROM o)
            SELECT id FROM o ORDER BY id
            """,
            [count],
        )
        self.database.execute("ANALYZE orders, order_events")
        return [(int(order), 1) for (order,) in rows]

    def environment(self, port: int) -> dict[str, str]:
        assert self.database is not None
        return {
            "PORT": str(port),
            "JWT_SECRET": self.secret,
            **self.database.libpq_environment,
        }


class NodePeer(Peer):
    program: ClassVar[str]  # its file in peers/node

    def install(self) -> None:
        tools.node_peer()

    def version(self) -> str:
        return f"Node {tools.said('node', '--version')}"

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        server = tools.node_peer() / self.program
        return ["node", str(server)], self.environment(port) | {"NODE_ENV": "production"}


class Express(NodePeer):
    name = "node"
    title = "Node: express, pg, socket.io, ws"
    program = "express.js"


class ExpressTransaction(Express):
    """The same, with the status changed in five statements."""

    name = "node-transaction"
    title = "Node: express, pg, five statements"

    def environment(self, port: int) -> dict[str, str]:
        return super().environment(port) | {"CHANGE": "transaction"}


class Fastify(NodePeer):
    name = "fastify"
    title = "Node: fastify, pg"
    program = "fastify.js"


class Go(Peer):
    name = "go"
    title = "Go: gin, pgx, gorilla/websocket"

    def install(self) -> None:
        tools.go_peer()

    def version(self) -> str:
        return tools.said("go", "version")

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        return [str(tools.go_peer())], self.environment(port)


class PythonPeer(Peer):
    source: ClassVar[str]  # its folder in peers/

    def install(self) -> None:
        tools.python_peer(self.source)

    def version(self) -> str:
        return machine.python_build(str(tools.python_peer(self.source)))

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        server = tools.PEERS / self.source / "server.py"
        python = tools.python_peer(self.source)
        return [str(python), "-O", str(server)], self.environment(port)


class FastAPI(PythonPeer):
    name = "fastapi"
    title = "FastAPI, asyncpg, uvicorn"
    source = "fastapi"


class StockFlask(PythonPeer):
    name = "flask"
    title = "stock Flask-SocketIO, ORM"
    source = "flask_stock"


class CLimit(Contender):
    name = "c"
    title = "C: one send() per message"

    def install(self) -> None:
        tools.c_limit()

    def version(self) -> str:
        return tools.said("gcc", "--version").splitlines()[0]

    def prepare(self) -> None:
        self.tokens = ["none"]

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        return [str(tools.c_limit()), str(port)], {}

    def add_orders(self, count: int) -> list[tuple[int, int]]:
        return [(order, 1) for order in range(1, count + 1)]


class PgBench(Contender):
    """PostgreSQL's own load generator with OrderTrack's statement: the limit of a status change."""

    name = "pgbench"
    title = "pgbench, the same statement"

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._store = OrderTrack(cluster)
        self._store.name = self.name  # type: ignore[misc]

    def prepare(self) -> None:
        self._store.prepare()

    def version(self) -> str:
        return tools.said(str(self.cluster.binaries / "pgbench"), "--version")

    def changes_per_second(self, orders: int, connections: int, seconds: float) -> float:
        """Status changes a second, prepared, each connection on orders of its own."""
        fresh = self._store.add_orders(orders)
        self.cluster.settle()
        assert self._store.database is not None
        script = _pgbench_script(self._store.tokens[0], fresh[0][0], connections)
        with tempfile.TemporaryDirectory() as folder:
            (path := Path(folder) / "move.sql").write_text(script)
            command = [
                str(self.cluster.binaries / "pgbench"), "-n", "-M", "prepared", "-D", "n=-1",
                "-c", str(connections), "-T", str(max(1, round(seconds))), "-f", str(path),
            ]  # fmt: skip
            with machine.pinned([machine.SERVER_CORE]):
                done = subprocess.run(
                    command,
                    env=_clean_environment() | self._store.database.libpq_environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
        found = re.search(r"tps = ([0-9.]+)", done.stdout)
        if done.returncode or found is None:
            raise StartFailed(f"pgbench failed:\n{done.stdout}{done.stderr}")
        return float(found[1])


ALL: tuple[type[Contender], ...] = (
    OrderTrack, Express, ExpressTransaction, Fastify, Go, FastAPI, StockFlask, CLimit, PgBench,
)  # fmt: skip


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


def _clean_environment() -> dict[str, str]:
    """Ours, without what would lead a server to another database or setting."""
    foreign = re.compile(r"PG[A-Z]+|DB_|JWT_|FLASK_|PYTHON|NODE_")
    return {name: value for name, value in os.environ.items() if not foreign.match(name)}


def _call(port: int, path: str, body: dict[str, str]) -> dict[str, object]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status >= 300:
            raise StartFailed(f"POST {path} answered {answer.status}: {text}")
        return dict(json.loads(text))


def _credentials(name: str) -> dict[str, str]:
    return {"email": f"{name}@example.com", "password": f"correct horse {name} staple"}


def _register(port: int, name: str) -> None:
    _call(port, "/api/register", {"name": name, **_credentials(name)})


def _log_in(port: int, name: str) -> str:
    return str(_call(port, "/api/login", _credentials(name))["access_token"])


def _signed(secret: str, user: int, name: str, role: str) -> str:
    """A token for a peer (HS256); as long as OrderTrack's."""

    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    claims = {
        "sub": str(user), "name": name, "role": role, "type": "access", "fresh": False,
        "jti": secrets.token_hex(16), "iat": int(time.time()), "exp": int(time.time()) + 86400,
    }  # fmt: skip
    signed = ".".join(encoded(json.dumps(part).encode()) for part in ({"alg": "HS256"}, claims))
    return f"{signed}.{encoded(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))}"


def _pgbench_script(token: str, first_order: int, connections: int) -> str:
    """OrderTrack's own statement with the parameters of a driver's change.

    Connection c moves the orders c, c + connections, … one after the other, three steps each.
    """
    # "PREPARE name (type, …) AS statement", "EXECUTE name (%(name)s, …)"
    head, _, statement = order_writes.MOVE._prepare.partition(" AS ")
    types = re.findall(r"[a-z\[\]]+", head.partition("(")[2])
    names = re.findall(r"%\((\w+)\)s", order_writes.MOVE._execute)
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==="))
    values = {"user": claims["sub"], "session": claims["sid"], "drivers_see_all": "true",
              "if_version": "NULL", "note": "NULL", "id": ":order"}  # fmt: skip
    script = [
        r"\set n :n + 1",
        rf"\set order {first_order} + :client_id + {connections} * (:n / 3)",
        r"\set step :n % 3",
    ]
    for step, target in enumerate(MAIN_FLOW[1:]):
        values["target"] = f"'{target}'"
        for standing in Standing:
            allowed = ",".join(f"'{status}'" for status in predecessors(target, standing))
            values[f"as_{standing}"] = f"ARRAY[{allowed}]"
        sql = statement
        for number, (name, kind) in reversed([*enumerate(zip(names, types, strict=True), 1)]):
            sql = sql.replace(f"${number}", f"CAST({values[name]} AS {kind})")
        script += [rf"\if :step = {step}", " ".join(sql.split()) + ";", r"\endif"]
    return "\n".join(script) + "\n"
