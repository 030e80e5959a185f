"""The limit of a status change: PostgreSQL's own load generator, with no server in between."""

import base64
import itertools
import json
import re
import subprocess
import tempfile
from pathlib import Path

from benchmarks import machine, tools
from benchmarks.cluster import Cluster
from benchmarks.contenders import Contender, OrderTrack, StartFailed, clean_environment

# One change in one statement: the session, the caller's rights and the order's status are checked,
# the order is moved, its event appended, and what the answer needs is read. OrderTrack's statement
# was this, word for word, until it changed several orders at once. It is kept here, so that the
# limit stays the same when OrderTrack's own statements change.
_MOVE = """
    WITH actor AS (
        SELECT u.id, u.name, u.role, (u.role = 'admin' OR u.role = 'driver') AS sees_all
          FROM users u JOIN sessions s ON s.user_id = u.id
         WHERE u.id = :user AND u.active AND s.id = :session AND s.revoked_at IS NULL),
    free AS (SELECT id FROM orders WHERE id = CAST(:order AS bigint) FOR NO KEY UPDATE SKIP LOCKED),
    o AS (
        UPDATE orders o
           SET status = '{target}', previous_status = o.status, version = o.version + 1
          FROM actor a, free
         WHERE o.id = free.id AND o.deleted_at IS NULL
           AND (a.role = 'admin' AND o.status = ANY (ARRAY['{previous}'])
                OR a.role = 'driver' AND o.status = ANY (ARRAY['{previous}'])
                   AND (a.sees_all OR o.driver_id = a.id)
                OR o.customer_id = a.id AND o.status = ANY (CAST(ARRAY[] AS text[])))
        RETURNING o.*),
    event AS (
        INSERT INTO order_events (order_id, version, type, status, previous_status, actor_id,
                                  actor_name, actor_role, note, customer_id, driver_id)
        SELECT o.id, o.version, 'status_changed', o.status, o.previous_status, a.id,
               a.name, a.role, NULL, o.customer_id, o.driver_id
          FROM o CROSS JOIN actor a)
    SELECT a.id AS actor_id, a.name AS actor_name, a.role AS actor_role,
           o.id, o.description, o.status, o.version, o.created_at, o.updated_at, o.deleted_at,
           o.deleted_at IS NOT NULL AS is_deleted,
           o.customer_id, (SELECT c.name FROM users c WHERE c.id = o.customer_id) AS customer_name,
           o.driver_id, (SELECT d.name FROM users d WHERE d.id = o.driver_id) AS driver_name
      FROM o CROSS JOIN actor a;
"""
_STATUSES = ("Pending", "Processing", "Shipped", "Completed")


class PgBench(Contender):
    """PostgreSQL's own load generator with one statement for each status change."""

    name = "pgbench"
    title = "pgbench, one statement"

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
        token = self._store.tokens[0].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(token + "==="))
        variables = {
            "n": -1,
            "first": fresh[0][0],
            "connections": connections,
            "user": claims["sub"],
            "session": claims["sid"],
        }
        with tempfile.TemporaryDirectory() as folder:
            (path := Path(folder) / "move.sql").write_text(_script())
            command = [
                str(self.cluster.binaries / "pgbench"), "-n", "-M", "prepared",
                "-c", str(connections), "-T", str(max(1, round(seconds))), "-f", str(path),
                *(f"-D{name}={value}" for name, value in variables.items()),
            ]  # fmt: skip
            with machine.pinned([machine.SERVER_CORE]):
                done = subprocess.run(
                    command,
                    env=clean_environment() | self._store.database.libpq_environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
        rate = re.search(r"tps = ([0-9.]+)", done.stdout)
        ran = re.search(r"actually processed: ([0-9]+)", done.stdout)
        if done.returncode or not rate or not ran:
            raise StartFailed(f"pgbench failed:\n{done.stdout}{done.stderr}")
        [(changed,)] = self._store.database.execute(
            "SELECT count(*) FROM order_events WHERE order_id >= %s AND type = 'status_changed'",
            [fresh[0][0]],
        )
        if changed != int(ran[1]):
            raise StartFailed(f"pgbench: {ran[1]} statements made {changed} changes")
        return float(rate[1])


def _script() -> str:
    """Connection c moves the orders c, c + connections, … one after the other, three steps each."""
    script = [
        r"\set n :n + 1",
        r"\set order :first + :client_id + :connections * (:n / 3)",
        r"\set step :n % 3",
    ]
    for step, (previous, target) in enumerate(itertools.pairwise(_STATUSES)):
        move = " ".join(_MOVE.format(previous=previous, target=target).split())
        script += [rf"\if :step = {step}", move, r"\endif"]
    return "\n".join(script) + "\n"
