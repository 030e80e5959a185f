"""The relay delivers every event, also when its connection or its process is killed."""

import contextlib
from collections.abc import Callable

import pytest
import requests

from tests.faults.cluster import Cluster
from tests.faults.history import violations
from tests.faults.watchers import ResumingRawWatcher
from tests.support.people import Person
from tests.support.servers import Server
from tests.support.waiting import eventually

Start = Callable[..., Server]
Watch = Callable[[Server, Person, str], ResumingRawWatcher]


def is_ready(server: Server) -> bool:
    return server.api.get("/readyz").status_code == 200


@pytest.mark.safety("killed-before-the-push")
@pytest.mark.parametrize("point", ["before-hint", "before-push"])
def test_a_server_killed_between_commit_and_push_leaves_the_push_to_the_other_server(
    start: Start, watch: Watch, point: str
) -> None:
    doomed, other = start(), start()
    admin = doomed.people.admin()
    order = admin.order()
    at_doomed, at_other = watch(doomed, admin, order["id"]), watch(other, admin, order["id"])
    eventually(lambda: at_doomed.reached({order["id"]: 1}) and at_other.reached({order["id"]: 1}))

    doomed.api.post(f"/fault/arm?point={point}")
    with contextlib.suppress(requests.ConnectionError):  # before the hint is before the answer
        admin.move(order, "Processing")
    assert doomed.process.wait(10) < 0

    # Without reconnecting, and within one poll at the latest: the hint may be lost, too.
    eventually(lambda: at_other.reached({order["id"]: 2}), 2)
    assert at_other.connections == 1
    # Its own watchers get it as soon as they reconnect, to whichever server.
    at_doomed.port = lambda: other.port
    eventually(lambda: at_doomed.seen[order["id"]] == 2, 5)
    trail = admin.at(other.transport).history(order)
    assert violations({order["id"]: trail}, [], [*at_doomed.complete(), *at_other.complete()]) == []


@pytest.mark.safety("relay-connection-lost")
def test_a_relay_whose_connection_is_killed_twenty_times_loses_no_event(
    cluster: Cluster, start: Start, watch: Watch
) -> None:
    server = start()
    admin = server.people.admin()
    order = admin.order()
    watcher = watch(server, admin, order["id"])
    for number in range(20):
        admin.edit(order, f"before {number}")
        for pid in cluster.backends("ordertrack relay"):
            cluster.execute("SELECT pg_terminate_backend(%s)", pid)
        version = admin.edit(order, f"after {number}")["version"]
        eventually(lambda v=version: watcher.reached({order["id"]: v}), 2)  # type: ignore[misc]
    eventually(lambda: is_ready(server), 2)
    assert watcher.connections == 1
    assert violations({order["id"]: admin.history(order)}, [], watcher.complete()) == []


@pytest.mark.safety("relay-connection-lost")
def test_a_relay_that_cannot_reach_the_database_is_not_ready(
    cluster: Cluster, start: Start
) -> None:
    server = start()
    name = cluster.execute("SELECT current_database()")[0][0]
    cluster.execute_elsewhere(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    try:
        cluster.execute_elsewhere(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'ordertrack%'"
        )
        eventually(lambda: server.api.get("/readyz").status_code == 503)
        assert server.api.get("/readyz").headers["Retry-After"]
        assert server.api.get("/healthz").status_code == 200
    finally:
        cluster.execute_elsewhere(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    eventually(lambda: is_ready(server), 2)


def test_a_relay_that_fails_for_good_ends_the_process(start: Start) -> None:
    server = start()
    admin = server.people.admin()
    server.api.post("/fault/arm?point=relay")
    admin.order()
    assert server.process.wait(10) == 70
    assert "the relay failed" in server.log


@pytest.mark.safety("late-commits")
def test_a_foreign_transaction_held_open_delays_nothing(
    cluster: Cluster, start: Start, watch: Watch
) -> None:
    server = start()
    admin = server.people.admin()
    foreign = cluster.connect()
    try:
        foreign.cursor().execute("BEGIN; SELECT pg_current_xact_id()")
        order = admin.order()
        watcher = watch(server, admin, order["id"])
        for number in range(50):
            version = admin.edit(order, f"edit {number}")["version"]
            eventually(lambda v=version: watcher.reached({order["id"]: v}), 2)  # type: ignore[misc]
    finally:
        foreign.close()
