"""`python -m benchmarks`: see README.md."""

import argparse
import sys
from pathlib import Path

from benchmarks import report, run, tools
from benchmarks.scenarios import Scenario, all_scenarios

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    options = _parse()
    scenarios = all_scenarios(quick=getattr(options, "quick", False))
    if options.command == "list":
        for scenario in scenarios:
            who = dict.fromkeys(case.contender for case in scenario.cases)
            takes = f"about {_seconds(scenario, 3):.0f} s for three rounds"
            print(f"{scenario.name:20} {scenario.title}\n{'':20} {', '.join(who)}; {takes}")
        print(f"\nAll: about {sum(_seconds(one, 3) for one in scenarios) / 60:.0f} minutes.")
        return 0
    chosen = [s for s in scenarios if s.name in options.scenarios or "all" in options.scenarios]
    try:
        results = run.run(chosen, options.rounds, options.peers)
    except tools.MissingTool as missing:
        print(missing, file=sys.stderr)
        return 1
    print(report.markdown(results, quick=options.quick))
    print(report.durations(results), file=sys.stderr)
    if options.save:
        stem = RESULTS / f"{results.began:%Y-%m-%d}{'-quick' if options.quick else ''}"
        for path in report.save(results, stem, quick=options.quick):
            print(f"wrote {path}")
    return 1 if report.failures(results) else 0


def _seconds(scenario: Scenario, rounds: int) -> float:
    """About how long that many rounds of it take."""
    return sum(
        case.seconds * min(scenario.rounds(rounds), case.max_rounds) for case in scenario.cases
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what can be measured, and whom it compares")
    command = commands.add_parser("run", help="measure")
    names = [scenario.name for scenario in all_scenarios()]
    command.add_argument("scenarios", nargs="+", choices=["all", *names], metavar="SCENARIO|all")
    command.add_argument("--rounds", type=int, default=3, help="at least; medians are shown (3)")
    command.add_argument("--quick", action="store_true", help="small and short: does it work?")
    command.add_argument(
        "--peers",
        nargs="*",
        choices=[kind.name for kind in run.CONTENDERS],
        help="beside OrderTrack (all)",
    )
    command.add_argument("--save", action="store_true", help="write into benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
