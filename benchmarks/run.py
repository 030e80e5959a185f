"""Running scenarios: rounds interleaved, so that a slow minute of the machine hits everybody."""

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from benchmarks import cluster, load, machine, tools
from benchmarks.contenders import (
    CLimit,
    Contender,
    Express,
    ExpressTransaction,
    FastAPI,
    Fastify,
    Go,
    OrderTrack,
    StartFailed,
    StockFlask,
)
from benchmarks.pgbench import PgBench
from benchmarks.progress import Progress
from benchmarks.scenarios import Case, Figures, Scenario

CONTENDERS: tuple[type[Contender], ...] = (
    OrderTrack, Express, ExpressTransaction, Fastify, Go, FastAPI, StockFlask, CLimit, PgBench,
)  # fmt: skip


@dataclass
class Outcome:
    """What one case of a scenario yielded, a value per round."""

    case: Case
    title: str
    rounds: list[Figures] = field(default_factory=list)
    load_cpu: list[float] = field(default_factory=list)  # share of a core, per round
    load_core_busy: list[float] = field(default_factory=list)
    intruders: list[float] = field(default_factory=list)  # share of the server's core
    failures: list[str] = field(default_factory=list)
    took: list[float] = field(default_factory=list)  # seconds, start and stop included

    def median(self, figure: str) -> float | None:
        values = [figures[figure] for figures in self.rounds if figure in figures]
        return statistics.median(values) if values else None

    def spread(self, figure: str) -> tuple[float, float]:
        values = [figures[figure] for figures in self.rounds]
        return min(values), max(values)

    @property
    def is_disturbed(self) -> bool:
        return bool(self.intruders) and statistics.median(self.intruders) > load.DISTURBED

    @property
    def is_load_bound(self) -> bool:
        return bool(self.load_cpu) and statistics.median(self.load_cpu) > load.BUSY


@dataclass
class Results:
    scenarios: list[tuple[Scenario, list[Outcome]]]
    skipped: dict[str, str]  # contender → why
    versions: dict[str, str]  # contender → of what it runs on
    began: datetime
    postgres: str
    load_before: float  # the machine's load average, not counting us


def run(scenarios: Sequence[Scenario], rounds: int, peers: Sequence[str] | None) -> Results:
    """Measure. `peers` names the contenders beside OrderTrack; None means all that can run here."""
    began, load_before = datetime.now().astimezone(), machine.load_average()
    tools.load_generator()
    wanted = {case.contender for scenario in scenarios for case in scenario.cases}
    if peers is not None:
        wanted &= {"ordertrack", *peers}
    # The database inherits the core that we are on.
    with machine.pinned([machine.LOAD_CORE]), cluster.running() as postgres:
        ready, skipped = _prepare(wanted, postgres)
        plan = [
            (
                scenario,
                [
                    Outcome(case, ready[case.contender].title)
                    for case in scenario.cases
                    if case.contender in ready
                ],
            )
            for scenario in scenarios
        ]
        turns = list(_turns(plan, rounds))
        with Progress(len(turns)) as progress:
            for scenario, outcome in turns:
                what = f"{scenario.name}: {outcome.title} {outcome.case.label}".rstrip()
                progress.begin(what)
                _take_turn(scenario, outcome, ready[outcome.case.contender])
                progress.advance(f"{what}  {_said(scenario, outcome)}")
        versions = {contender.title: contender.version() for contender in ready.values()}
        return Results(plan, skipped, versions, began, postgres.version, load_before)


def _prepare(
    wanted: set[str], postgres: cluster.Cluster
) -> tuple[dict[str, Contender], dict[str, str]]:
    ready, skipped = {}, {}
    for kind in CONTENDERS:
        if kind.name in wanted:
            contender = kind(postgres)
            try:
                contender.install()
                contender.prepare()
            except (tools.MissingTool, StartFailed) as error:
                skipped[kind.name] = str(error)
                print(f"{kind.title} is left out: {error}", file=sys.stderr)
            else:
                ready[kind.name] = contender
    return ready, skipped


def _turns(
    plan: list[tuple[Scenario, list[Outcome]]], rounds: int
) -> Iterator[tuple[Scenario, Outcome]]:
    for scenario, outcomes in plan:
        for number in range(scenario.rounds(rounds)):
            for outcome in outcomes:
                if number < outcome.case.max_rounds:
                    yield scenario, outcome


def _take_turn(scenario: Scenario, outcome: Outcome, contender: Contender) -> None:
    began = time.monotonic()
    try:
        figures, steps = _measure(scenario, outcome.case, contender)
    except (load.LoadFailed, StartFailed) as error:
        outcome.failures.append(str(error))
        print(f"{scenario.name}, {outcome.title}: {error}", file=sys.stderr)
        return
    finally:
        outcome.took.append(time.monotonic() - began)
    outcome.rounds.append(figures)
    if steps:
        outcome.load_cpu.append(float(steps[-1].figures["load_cpu"]))
        outcome.load_core_busy.append(steps[-1].load_core_busy)
        if not outcome.case.all_cores:
            outcome.intruders.append(steps[-1].intruders)


def _measure(
    scenario: Scenario, case: Case, contender: Contender
) -> tuple[Figures, list[load.Step]]:
    if isinstance(contender, PgBench):
        connections, seconds = (float(word) for word in case.steps[0].split()[1:3])
        rate = contender.changes_per_second(case.orders, int(connections), seconds)
        return {"requests/s": rate}, []
    if contender.database:
        contender.cluster.set_durable(contender.database, case.durable)
    cores = machine.all_cores() if case.all_cores else ()
    measured = case.orders * case.repeats
    fresh = measured + case.warm_up_orders
    with contender.under_test(fresh, case.processes, cores) as target:

        def drive(steps: Sequence[str], first: int, count: int) -> list[load.Step]:
            some = target.with_orders(target.orders[first : first + count])
            return load.run(some, steps, watch=case.watch, protocol=case.protocol)

        if case.warm_up:
            drive(case.warm_up, measured, case.warm_up_orders)
        steps = []
        for first in range(0, measured, case.orders):
            steps += drive(case.steps, first, case.orders)
    return scenario.measure(steps), steps


def _said(scenario: Scenario, outcome: Outcome) -> str:
    if not outcome.rounds:
        return f"FAILED: {outcome.failures[-1].splitlines()[0]}"
    figures = outcome.rounds[-1]
    return ", ".join(
        f"{name} {figures[name]:,.4g} {unit}" if not unit.startswith("/") else
        f"{figures[name]:,.0f} {name}"
        for name, unit in scenario.figures.items() if name in figures
    )  # fmt: skip
