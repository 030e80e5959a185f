"""Random kills lose no event, repeat none and reorder none.

A longer run, or the one that failed: FAULTS_KILLS=500 FAULTS_SEED=4711 pytest <this file>
"""

import os
import random

import pytest

from tests.faults.cluster import running_cluster
from tests.faults.random_kills import RandomKills


# Connections that a fault breaks in the middle of something are left to the garbage collector.
@pytest.mark.safety("server-killed", "database-killed")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_random_kills_lose_repeat_and_reorder_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kills = int(os.environ.get("FAULTS_KILLS", "50"))
    seed = int(os.environ.get("FAULTS_SEED", "0")) or random.randrange(1, 1_000_000)
    with capsys.disabled():
        print(f"\nrandom kills with seed {seed} …", flush=True)  # noqa: T201 (also when it never ends)
    with running_cluster() as cluster:
        run = RandomKills(cluster, seed)
        try:
            report = run.run(kills)
        finally:
            run.close()
    with capsys.disabled():
        print(report, flush=True)  # noqa: T201
    assert report.findings == []
    assert report.kills.total() == kills
