"""The table of targets: which way each figure should go, and which of several peers counts."""

from datetime import UTC, datetime

import pytest

from benchmarks import report
from benchmarks.run import Outcome, Results
from benchmarks.scenarios import Case, Promise, Scenario, all_scenarios

FIGURES = {"requests/s": "/s", "p99": "ms"}


def outcome(contender: str, **figures: float) -> Outcome:
    case = Case(contender, steps=(), orders=1)
    rates = {name.replace("_", "/"): value for name, value in figures.items()}
    return Outcome(case, contender.title(), rounds=[rates])


def row(promise: Promise, *outcomes: Outcome) -> list[str]:
    """The cells of the promise's row."""
    scenario = Scenario("row", "Row", FIGURES, lambda _: {}, (), (promise,))
    results = Results(
        [(scenario, [*outcomes])], {}, {}, datetime(2026, 1, 1, tzinfo=UTC), "18", 0.0
    )
    lines = report.markdown(results, quick=False).splitlines()
    table = lines[lines.index("## Targets") + 4 :]
    return [cell.strip() for cell in table[0].strip("|").split("|")]


@pytest.mark.parametrize(
    ("ours", "verdict"), [(210.0, "✓✓"), (150.0, "✓"), (90.0, "✗")], ids=["beyond", "met", "missed"]
)
def test_of_a_rate_more_is_better(ours: float, verdict: str) -> None:
    promise = Promise("requests/s", ("node",), 1.3, 2.0)
    cells = row(promise, outcome("ordertrack", requests_s=ours), outcome("node", requests_s=100.0))
    assert cells[-1] == verdict
    assert cells[5:7] == ["≥ 1.3 ×", "≥ 2.0 ×"]


@pytest.mark.parametrize(
    ("ours", "verdict"), [(5.0, "✓✓"), (9.0, "✓"), (11.0, "✗")], ids=["beyond", "met", "missed"]
)
def test_of_a_time_less_is_better_in_the_same_scenario(ours: float, verdict: str) -> None:
    promise = Promise("p99", ("node",), 1.0, 0.6)
    cells = row(promise, outcome("ordertrack", p99=ours), outcome("node", p99=10.0))
    assert cells[-1] == verdict
    assert cells[5:7] == ["≤ 1.0 ×", "≤ 0.6 ×"]


def test_of_several_contenders_the_best_counts() -> None:
    ours = outcome("ordertrack", requests_s=100.0, p99=10.0)
    peers = [
        outcome("node", requests_s=50.0, p99=4.0),
        outcome("fastify", requests_s=80.0, p99=6.0),
    ]
    rate = row(Promise("requests/s", ("node", "fastify"), 1.0), ours, *peers)
    assert (rate[2], rate[4]) == ("Fastify", "**1.25 ×**")
    time = row(Promise("p99", ("node", "fastify"), 1.0), ours, *peers)
    assert (time[2], time[4], time[-1]) == ("Node", "**2.50 ×**", "✗")


def test_a_bound_against_nobody_is_on_the_figure_itself() -> None:
    cells = row(Promise("p99", (), 2.5, 2.0), outcome("ordertrack", p99=2.4))
    assert cells[1:] == ["2.4 ms", "", "", "", "≤ 2.5 ms", "≤ 2.0 ms", "✓"]


def test_a_peer_that_failed_is_not_the_best() -> None:
    ours, failed = outcome("ordertrack", p99=5.0), Outcome(Case("node", (), 1), "Node")
    cells = row(Promise("p99", ("node", "fastify"), 1.0), ours, failed, outcome("fastify", p99=6.0))
    assert (cells[2], cells[-1]) == ("Fastify", "✓")


def test_every_promise_is_about_a_figure_and_cases_that_its_scenario_has() -> None:
    for scenario in all_scenarios():
        cases = {(case.contender, case.label) for case in scenario.cases}
        for promise in scenario.promises:
            assert promise.figure in scenario.figures
            assert ("ordertrack", promise.ours) in cases
            assert promise.target is not None or promise.beyond is None
            theirs = {(contender, promise.theirs) for contender in promise.against}
            assert not theirs or theirs & cases
