"""Half an hour of writing, watching and coming and going: nothing may grow.

    python -m tests.faults.by_hand.soak [minutes]

Every minute it prints what each server uses and what PostgreSQL sees of it, and at the end the
history check. Writers write, watchers are cut off and come back about once a second; nobody is
killed, so that what is kept by mistake is seen. Exit 1 if something grew or the check found
something.
"""

import sys
import time

import psutil

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.random_kills import RandomKills

# Of the resident memory, against the mark after the first fifth: caches are warm by then.
GROWTH = 1.15

Sample = tuple[float, int, int]  # MB resident, descriptors, backends in PostgreSQL


def sample(run: RandomKills, cluster: Cluster) -> list[Sample]:
    found = []
    for supervised in run.servers:
        assert supervised.server is not None, "a server ended by itself"
        process = psutil.Process(supervised.server.process.pid)
        found.append(
            (
                process.memory_info().rss / 1e6,
                process.num_fds(),
                len(cluster.backends("ordertrack%")),
            )
        )
    return found


def main(minutes: float) -> int:
    with running_cluster() as cluster:
        run = RandomKills(cluster, 1, pause=0.1, shares={"cut of connections": 1})
        marks: list[list[Sample]] = []
        ends = time.monotonic() + minutes * 60
        due = time.monotonic() + 30

        def look() -> bool:
            nonlocal due
            if time.monotonic() >= due:
                due += max(5.0, minutes * 60 / 30)
                marks.append(sample(run, cluster))
                shown = ";  ".join(f"{m:.0f} MB, {fds} descriptors" for m, fds, _ in marks[-1])
                print(f"{shown};  {marks[-1][0][2]} backends", flush=True)
            return time.monotonic() < ends

        try:
            report = run.run_while(look)
        finally:
            run.close()
    print(report)
    warm = marks[len(marks) // 5]
    grown = [
        f"server {n}: {before[0]:.0f} MB became {after[0]:.0f} MB"
        for n, (before, after) in enumerate(zip(warm, marks[-1], strict=True))
        if after[0] > before[0] * GROWTH
    ]
    print("\n".join(grown) or "nothing grew")
    return 1 if grown or report.findings else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 30))
