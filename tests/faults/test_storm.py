"""Nothing is lost, nothing comes twice, nothing out of order, whatever dies.

A longer run, or the one that failed: FAULTS_KILLS=500 FAULTS_SEED=4711 pytest <this file>
"""

import os
import random

import pytest

from tests.faults.cluster import running_cluster
from tests.faults.storm import Storm


# Connections that a fault breaks in the middle of something are left to the garbage collector.
@pytest.mark.safety("server-killed", "database-killed")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_everything_dies_again_and_again_and_the_promise_is_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kills = int(os.environ.get("FAULTS_KILLS", "50"))
    seed = int(os.environ.get("FAULTS_SEED", "0")) or random.randrange(1, 1_000_000)
    with capsys.disabled():
        print(f"\nstorm with seed {seed} …", flush=True)  # noqa: T201 (also when it never ends)
    with running_cluster() as cluster:
        storm = Storm(cluster, seed)
        try:
            report = storm.run(kills)
        finally:
            storm.close()
    with capsys.disabled():
        print(report, flush=True)  # noqa: T201
    assert report.findings == []
    assert report.kills.total() == kills
