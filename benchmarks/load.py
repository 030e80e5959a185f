"""Running the load generator: its plan, its steps, and what the server used meanwhile."""

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import machine, tools

# Above this share of its core the figure may be the load generator's, not the server's.
BUSY = 0.8

# Above this share of the server's core in other hands a figure says more about them.
DISTURBED = 0.05


class LoadFailed(Exception):
    """The load generator met errors, or a stream was not dense, in order, each event once."""


@dataclass(frozen=True)
class Target:
    """Where the load goes: the servers' ports, tokens of staff, and orders at their versions."""

    ports: Sequence[int]
    tokens: Sequence[str]
    orders: Sequence[tuple[int, int]]
    pids: Sequence[int]

    def with_orders(self, orders: Sequence[tuple[int, int]]) -> "Target":
        return replace(self, orders=orders)


@dataclass(frozen=True)
class Step:
    """One step's result. `figures` is what the load generator printed (see loadgen/load.c)."""

    figures: dict[str, Any]
    server_cpu: float  # seconds
    load_core_busy: float  # share of the core that the load generator and the database are on
    intruders: float  # share of the server's core that went to others: noise
    pss_before: int
    pss_after: int

    @property
    def seconds(self) -> float:
        return float(self.figures["seconds"])

    @property
    def is_load_bound(self) -> bool:
        return float(self.figures["load_cpu"]) > BUSY

    @property
    def faults(self) -> int:
        return int(self.figures["errors"] + sum(self.figures["faults"].values()))


def write_plan(
    target: Target, steps: Sequence[str], *, watch: str, protocol: str, limit: float
) -> str:
    lines = [f"server 127.0.0.1 {port}" for port in target.ports]
    lines += [f"token {token}" for token in target.tokens]
    lines += [f"order {order} {version}" for order, version in target.orders]
    lines += [f"watch {watch}", f"protocol {protocol}", f"limit {limit}", *steps]
    return "\n".join(lines) + "\n"


def run(
    target: Target,
    steps: Sequence[str],
    *,
    watch: str = "own",
    protocol: str = "socketio",
    limit: float = 60,
    check: bool = True,
) -> list[Step]:
    """Run the steps of a plan (`loadgen/plan.h`) and read the servers' use of CPU and memory.

    Raises `LoadFailed` when anything went wrong; with `check` off, faults are only reported.
    """
    generator = tools.load_generator()
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan"
        plan.write_text(write_plan(target, steps, watch=watch, protocol=protocol, limit=limit))
        with (Path(folder) / "errors").open("w+") as errors:
            with machine.pinned([machine.LOAD_CORE]):
                process = subprocess.Popen(
                    [generator, plan],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            try:
                results = [_step(process, target.pids) for _ in steps]
                process.wait(10)
            except (EOFError, OSError) as error:
                errors.seek(0)
                raise LoadFailed(f"the load generator gave up:\n{errors.read()}") from error
            finally:
                process.kill()
                process.communicate()
            errors.seek(0)
            said = errors.read().strip()
    for result in results:
        if check and result.faults:
            raise LoadFailed(f"{json.dumps(result.figures)}\n{said}")
    return results


def _step(process: "subprocess.Popen[str]", pids: Sequence[int]) -> Step:
    _line(process)  # {"begin": …}
    pss_before = machine.pss_bytes(pids)
    began = time.monotonic()
    before = _usage(pids)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    figures = json.loads(_line(process))
    after = _usage(pids)
    elapsed = max(time.monotonic() - began, 0.001)
    cpu, server_core, load_core = (now - then for then, now in zip(before, after, strict=True))
    return Step(
        figures,
        server_cpu=cpu,
        load_core_busy=min(load_core / elapsed, 1.0),
        intruders=max(server_core - cpu, 0.0) / elapsed,
        pss_before=pss_before,
        pss_after=machine.pss_bytes(pids),
    )


def _usage(pids: Sequence[int]) -> tuple[float, float, float]:
    """Seconds so far: of the servers, of the core that they are on, of the other core."""
    return (
        machine.cpu_seconds(pids),
        machine.busy_seconds(machine.SERVER_CORE),
        machine.busy_seconds(machine.LOAD_CORE),
    )


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise EOFError
    return line
