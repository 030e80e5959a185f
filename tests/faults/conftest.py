"""Fixtures of the fault suite."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.faults.cluster import Cluster, running_cluster
from tests.faults.watchers import ResumingRawWatcher
from tests.support.people import Person
from tests.support.servers import Server, running_server
from tests.support.waiting import eventually


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL that tests may kill; they leave it running."""
    # The writer's delay: what is not committed reaches the disk late, so that a crash loses it.
    with running_cluster(wal_writer_delay="10s") as started:
        yield started


@pytest.fixture(scope="session")
def _shared_server(cluster: Cluster) -> Iterator[Server]:
    with running_server(cluster.dsn, script="tests/faults/faulty_server.py") as started:
        yield started


@pytest.fixture
def lasting_server(_shared_server: Server) -> Server:
    """A server that tests share: they leave it running, and nothing armed."""
    # Its database may have been killed since; who asks first is told so.
    eventually(lambda: _shared_server.api.get("/readyz").status_code == 200)
    return _shared_server


@pytest.fixture
def start(cluster: Cluster) -> Iterator[Callable[..., Server]]:
    """Starts servers on `cluster`, with faults to be armed: ``start(DB_POOL_SIZE="3")``."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(
            running_server(cluster.dsn, script="tests/faults/faulty_server.py", **settings)
        )


@pytest.fixture
def watch() -> Iterator[Callable[[Server, Person, str], ResumingRawWatcher]]:
    """Starts watchers of one order over raw sockets, from its first event on."""
    started: list[ResumingRawWatcher] = []

    def watch(server: Server, person: Person, order_id: str) -> ResumingRawWatcher:
        watcher = ResumingRawWatcher(
            f"watcher {len(started)}", lambda: server.port, person.token, lambda: order_id
        )
        watcher.start()
        started.append(watcher)
        return watcher

    yield watch
    for watcher in started:
        watcher.stop()
    for watcher in started:
        watcher.join(10)
