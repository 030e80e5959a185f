"""A quick benchmark runs to its end, and the load generator counts the faults of a server."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks import load, report, run, tools
from benchmarks.contenders import ServerProcess, free_port
from benchmarks.scenarios import all_scenarios
from tests.support import missing


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile anew, and leave the user's cache alone."""
    if sys.platform != "linux":
        missing.cannot("no Linux", "the load generator uses its epoll")
    missing.program("gcc", "apt install gcc libc6-dev")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_a_scenario_runs_against_the_server_and_reports_every_stream_whole(tmp_path: Path) -> None:
    fan_out = [scenario for scenario in all_scenarios(quick=True) if scenario.name == "fan-out"]
    results = run.run(fan_out, rounds=1, peers=[])
    assert not report.failures(results), report.failures(results)
    [(_, [outcome])] = results.scenarios
    assert outcome.rounds[0]["deliveries/s"] > 0
    page, picture, data = report.save(results, tmp_path / "smoke", quick=True)
    assert "OrderTrack" in page.read_text()
    assert picture.read_text().startswith("<svg")
    assert '"fan-out"' in data.read_text()


def test_placed_and_moved_orders_are_counted_and_the_database_alone_is_the_limit() -> None:
    rows = [row for row in all_scenarios(quick=True) if row.name in ("put", "post")]
    results = run.run(rows, rounds=1, peers=["pgbench"])
    assert not report.failures(results), report.failures(results)
    rates = {
        (scenario.name, outcome.case.contender): outcome.rounds[0]["requests/s"]
        for scenario, outcomes in results.scenarios
        for outcome in outcomes
    }
    assert rates.keys() == {("put", "ordertrack"), ("put", "pgbench"), ("post", "ordertrack")}
    assert all(rates.values())


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("none", {}),
        # One client does not get, gets twice or gets late version 3 of each of ten orders.
        ("drop", {"missing": 10, "skipped": 10}),
        ("repeat", {"repeated": 10}),
        ("reorder", {"late": 10, "skipped": 10}),
    ],
)
def test_the_load_generator_counts_the_faults_of_a_faulty_server(
    tmp_path: Path, fault: str, found: dict[str, int]
) -> None:
    with (tmp_path / "log").open("w+") as log:
        command = [str(tools.c_limit()), str(port := free_port()), fault]
        server = ServerProcess(command, {}, port, log)
        try:
            server.wait_until_ready("/")
            target = load.Target([port], ["none"], [(n, 1) for n in range(1, 11)], [server.pid])
            steps = ("connect 20 20", "change 2 30 0")
            changed = load.run(target, steps, watch="all", check=False)[-1]
            again = target.with_orders([(n, 1) for n in range(11, 21)])
            with pytest.raises(load.LoadFailed) if found else nullcontext():
                load.run(again, steps, watch="all")
        finally:
            server.stop()
    assert {name: n for name, n in changed.figures["faults"].items() if n} == found
    assert changed.figures["errors"] == 0
