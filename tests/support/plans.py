"""Records the query plan of each statement that the application runs.

with recorded(db.engine) as plans:
    api.get("/api/orders")
assert plans[0].rows_read("orders") <= 51
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2.extensions
from sqlalchemy import Engine, event

_WORTH_A_PLAN = re.compile(r"[\s(]*(WITH|SELECT|UPDATE|INSERT|EXECUTE)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """One statement: its text, the nodes of its plan, and its times.

    ``ms`` is by the clock, ``busy_ms`` the time for which PostgreSQL's process was running, which
    is less where the machine has other things to do. Where Linux does not tell, both are the same.
    """

    sql: str
    root: dict[str, Any]
    ms: float
    busy_ms: float

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """All nodes that were executed."""
        return [node for node in _nodes(self.root) if node["Actual Loops"]]

    @property
    def buffers(self) -> int:
        """Pages that were looked at."""
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])

    @property
    def shape(self) -> str:
        """The scans, such as ``Index Scan (ix_orders_live_status) × 2``."""
        found: dict[str, int] = {}
        for node in self.nodes:
            if "Scan" in node["Node Type"] and node["Node Type"] not in _NO_TABLE:
                where = node.get("Index Name") or node.get("Relation Name")
                name = f"{node['Node Type']} ({where})"
                found[name] = found.get(name, 0) + 1
        return ", ".join(f"{name} × {n}" if n > 1 else name for name, n in found.items())

    def rows_read(self, table: str) -> int:
        """Rows of *table* that were looked at, whether they were wanted or not."""
        return sum(
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
             + node.get("Rows Removed by Index Recheck", 0)) * node["Actual Loops"]
            for node in self.nodes
            if node.get("Relation Name") == table
        )  # fmt: skip

    def scanned_whole(self, *tables: str) -> set[str]:
        """Those of *tables* that were read from one end to the other."""
        return {
            node["Relation Name"]
            for node in self.nodes
            if node["Node Type"] == "Seq Scan" and node["Relation Name"] in tables
        }


# Scans of intermediate results.
_NO_TABLE = ("CTE Scan", "Subquery Scan", "Function Scan", "Values Scan", "Bitmap Heap Scan")


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def explain(connection: Any, sql: Any, values: Any = None) -> Plan:
    """The plan of one statement, which is run and undone. *connection* is psycopg2's."""
    cursor = connection.cursor(cursor_factory=psycopg2.extensions.cursor)
    text = cursor.mogrify(sql, values).decode() if values else str(sql)
    begin, end = "SAVEPOINT explaining", "ROLLBACK TO explaining"
    if connection.autocommit:
        begin, end = "BEGIN", "ROLLBACK"
    cursor.execute(begin)
    before = _running_ms(connection.info.backend_pid)
    try:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {text}")
        after = _running_ms(connection.info.backend_pid)
        found = cursor.fetchone()[0]
    finally:
        cursor.execute(end)
    [top] = json.loads(found) if isinstance(found, str) else found
    ms = top["Planning Time"] + top["Execution Time"]
    busy = ms if before is None or after is None else after - before
    return Plan(" ".join(text.split()), top["Plan"], ms, busy)


def _running_ms(pid: int) -> float | None:
    """How long a process of this machine has been running on a processor so far."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6
    except OSError:
        return None


def recording(plans: list[Plan]) -> type[psycopg2.extensions.cursor]:
    """A class of cursors that explain every statement beside running it."""

    class Recording(psycopg2.extensions.cursor):
        def execute(self, sql: Any, values: Any = None) -> None:
            if _WORTH_A_PLAN.match(str(sql)):
                plans.append(explain(self.connection, sql, values))
            super().execute(sql, values)

    return Recording


@contextmanager
def recorded(engine: Engine) -> Iterator[list[Plan]]:
    """Explains every statement that goes through the engine's pool meanwhile."""
    plans: list[Plan] = []
    recorder = recording(plans)

    def connected(connection: Any, _: object) -> None:
        connection.cursor_factory = recorder

    engine.dispose()  # connections that are open already would not be recorded
    event.listen(engine, "connect", connected)
    try:
        yield plans
    finally:
        event.remove(engine, "connect", connected)
        engine.dispose()
