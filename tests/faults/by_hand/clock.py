"""Two servers whose clocks are an hour ahead and an hour behind: the order of events is the same.

    python -m tests.faults.by_hand.clock

Needs libfaketime (Debian's package faketime). Versions, statuses and times come from the database's
clock and its locks, so only tokens are touched: one server takes the other's for expired or for not
yet valid, as it must.
"""

import random
import sys
from pathlib import Path

from tests.faults.cluster import Cluster, running_cluster
from tests.support.servers import Server, running_server
from tests.support.watchers import raw_watching

CHANGES = 200


def library() -> str:
    found = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if found is None:
        sys.exit("libfaketime is not installed")
    return str(found)


def main() -> int:
    with running_cluster() as cluster:
        preload = {"LD_PRELOAD": library(), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        with (
            running_server(cluster.dsn, FAKETIME="+1h", **preload) as ahead,
            running_server(cluster.dsn, FAKETIME="-1h", **preload) as behind,
        ):
            return scenario(cluster, [ahead, behind])


def scenario(cluster: Cluster, servers: list[Server]) -> int:
    # One person, signed in at each, because neither believes the other's tokens.
    at_first = servers[0].people.admin()
    people = [at_first, at_first.at(servers[1].transport).signed_in_again()]
    order = at_first.order()
    with (
        raw_watching(servers[0], order, people[0].token, after=1) as first,
        raw_watching(servers[1], order, people[1].token, after=1) as second,
    ):
        for number in range(CHANGES):
            random.choice(people).edit(order, f"change {number}")
        received = [first.take(CHANGES), second.take(CHANGES)]
    trail = at_first.history(order)
    good = [event["version"] for event in trail] == list(range(1, CHANGES + 2))
    times = [event["updated_at"] for event in trail]
    good &= times == sorted(times)
    good &= received == [trail[1:], trail[1:]]
    print(f"{len(trail)} events, dense, by the database's clock, the same on both: {good}")
    foreign = people[0].at(servers[1].transport).api.get("/api/me")
    print(f"a token from an hour ahead: {foreign.status_code} {foreign.code}")
    now = cluster.execute("SELECT now()")[0][0]
    print(f"the database's clock says {now:%H:%M}, the last event {times[-1]}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
