"""Results as a Markdown page, a chart, and every round's figures as JSON."""

import json
from pathlib import Path

from benchmarks import chart, machine
from benchmarks.load import BUSY, DISTURBED
from benchmarks.run import Outcome, Results
from benchmarks.scenarios import Promise, Scenario


def failures(results: Results) -> list[str]:
    """What went wrong, one line each: a server that failed, a stream that was not whole."""
    return [
        f"{scenario.name}, {_label(outcome)}: {failure}"
        for scenario, outcomes in results.scenarios
        for outcome in outcomes
        for failure in outcome.failures
    ]


def save(results: Results, stem: Path, *, quick: bool) -> list[Path]:
    """Write `stem`.md, .svg and .json; the paths."""
    stem.parent.mkdir(exist_ok=True)
    page, picture, data = (stem.with_name(f"{stem.name}.{end}") for end in ("md", "svg", "json"))
    page.write_text(markdown(results, quick=quick, picture=picture.name))
    picture.write_text(chart.svg(results))
    data.write_text(json.dumps(_data(results), indent=1) + "\n")
    return [page, picture, data]


def markdown(results: Results, *, quick: bool, picture: str | None = None) -> str:
    lines = [f"# Benchmarks, {results.began:%d %B %Y}", ""]
    if quick:
        lines += ["A quick run: small, short, and of no use but to see that it works.", ""]
    lines += [
        (
            f"{machine.describe()}; PostgreSQL {results.postgres}. Load average before the run:"
            f" {results.load_before:.2f}. Medians (lowest–highest) of interleaved rounds; server"
            f" under test on core {machine.SERVER_CORE}, database and load generator on core"
            f" {machine.LOAD_CORE}. How to read this: [README](../README.md)."
        ),
        "",
    ]
    if picture:
        lines += [f"![Chart]({picture})", ""]
    lines += _promises(results)
    for scenario, outcomes in results.scenarios:
        lines += _scenario(scenario, outcomes)
    lines += ["## Versions", ""]
    lines += [f"- {title}: {version}" for title, version in results.versions.items()]
    lines += [f"- PostgreSQL {results.postgres}", ""]
    if results.skipped:
        lines += ["## Left out", ""]
        lines += [f"- {name}: {why.splitlines()[0]}" for name, why in results.skipped.items()]
        lines.append("")
    if failed := failures(results):
        lines += ["## Failed", "", *(f"- {line.splitlines()[0]}" for line in failed), ""]
    else:
        lines += [_PROOF, ""]
    return "\n".join(lines)


_PROOF = (
    "Every client's stream of every order was checked in every run: not one event lost, repeated or"
    " out of order, not one wrong answer."
)


def _promises(results: Results) -> list[str]:
    rows = []
    for scenario, outcomes in results.scenarios:
        for promise in scenario.promises:
            ours = _find(outcomes, "ordertrack", promise.ours)
            theirs = _best(scenario, promise, outcomes)
            if ours and (theirs or not promise.against):
                rows.append(_promise(scenario, promise, ours, theirs))
    if not rows:
        return []
    head = ["Row", "OrderTrack", "against", "its figure", "ratio", "target", "beyond", ""]
    return ["## Targets", "", *_table(head, rows), ""]


def _best(scenario: Scenario, promise: Promise, outcomes: list[Outcome]) -> Outcome | None:
    """The case that the promise is about: of several contenders the one that does best."""
    found = [_find(outcomes, contender, promise.theirs) for contender in promise.against]
    ran = [outcome for outcome in found if outcome]
    measured = [outcome for outcome in ran if outcome.median(promise.figure)]
    best = min if scenario.less_is_better(promise.figure) else max
    return best(
        measured or ran, key=lambda outcome: outcome.median(promise.figure) or 0, default=None
    )


def _promise(
    scenario: Scenario, promise: Promise, ours: Outcome, theirs: Outcome | None
) -> list[str]:
    mine = ours.median(promise.figure)
    its = theirs.median(promise.figure) if theirs else 1.0
    row = ", ".join(filter(None, (scenario.name, promise.figure, ours.case.label)))
    against = _label(theirs) if theirs else ""
    if not mine or not its:
        return [row, "failed" if not mine else "", against, "", "", "", "", "✗"]
    less, unit = scenario.less_is_better(promise.figure), scenario.figures[promise.figure]
    ratio = mine / its

    def holds(bound: float | None) -> bool:
        return bound is not None and (ratio <= bound if less else ratio >= bound)

    def shown(bound: float | None) -> str:
        if bound is None:
            return ""
        return f"{'≤' if less else '≥'} {bound} {'×' if theirs else unit}"

    missed = "✗" if promise.target is not None else ""
    return [
        row,
        _number(mine, unit) + (" †" if ours.is_load_bound else ""),
        against,
        (_number(its, unit) + (" †" if theirs.is_load_bound else "")) if theirs else "",
        f"**{ratio:.2f} ×**" if theirs else "",
        shown(promise.target),
        shown(promise.beyond),
        "✓✓" if holds(promise.beyond) else "✓" if holds(promise.target) else missed,
    ]


def _scenario(scenario: Scenario, outcomes: list[Outcome]) -> list[str]:
    head = ["", *scenario.figures, "load generator", "its core", "intruders"]
    rows = []
    for outcome in outcomes:
        cells = [_label(outcome)]
        for figure, unit in scenario.figures.items():
            median = outcome.median(figure)
            if median is None:
                cells.append("–" if outcome.rounds else "failed")
                continue
            low, high = outcome.spread(figure)
            several = len(outcome.rounds) > 1
            cells.append(_number(median, unit) + (f" ({_range(low, high)})" if several else ""))
        rows.append(
            [
                *cells,
                _share(outcome.load_cpu) + (" †" if outcome.is_load_bound else ""),
                _share(outcome.load_core_busy),
                _share(outcome.intruders) + (" ‡" if outcome.is_disturbed else ""),
            ]
        )
    lines = [f"## {scenario.name}", "", f"{scenario.title}.", "", *_table(head, rows), ""]
    if any(outcome.is_load_bound for outcome in outcomes):
        lines += [f"† The load generator used more than {BUSY:.0%} of its core.", ""]
    if any(outcome.is_disturbed for outcome in outcomes):
        lines += [f"‡ Other processes took more than {DISTURBED:.0%} of the server's core.", ""]
    return lines


def _find(outcomes: list[Outcome], contender: str, label: str) -> Outcome | None:
    for outcome in outcomes:
        if (outcome.case.contender, outcome.case.label) == (contender, label):
            return outcome
    return None


def _label(outcome: Outcome) -> str:
    return ", ".join(filter(None, (outcome.title, outcome.case.label)))


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _number(value: float, unit: str) -> str:
    return plain(value) + ("" if unit.startswith("/") else f" {unit}")


def plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _range(low: float, high: float) -> str:
    return f"{plain(low)}–{plain(high)}"


def _share(shares: list[float]) -> str:
    return f"{sorted(shares)[len(shares) // 2]:.0%}" if shares else ""


def durations(results: Results) -> str:
    """How long each scenario took, beside what was expected."""
    rows = []
    for scenario, outcomes in results.scenarios:
        expected = sum(outcome.case.seconds * len(outcome.took) for outcome in outcomes)
        took = sum(sum(outcome.took) for outcome in outcomes)
        rows.append([scenario.name, f"{took:.0f} s", f"{expected:.0f} s"])
    return "\n".join(_table(["Row", "took", "expected"], rows))


def _data(results: Results) -> dict[str, object]:
    return {
        "when": results.began.isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "postgres": results.postgres,
        "versions": results.versions,
        "load_before": results.load_before,
        "scenarios": [
            {
                "name": scenario.name,
                "cases": [
                    {
                        "contender": outcome.case.contender,
                        "label": outcome.case.label,
                        "rounds": outcome.rounds,
                        "load_cpu": outcome.load_cpu,
                        "load_core_busy": outcome.load_core_busy,
                        "intruders": outcome.intruders,
                        "took": [round(seconds, 1) for seconds in outcome.took],
                    }
                    for outcome in outcomes
                ],
            }
            for scenario, outcomes in results.scenarios
        ],
    }
