"""Fixtures of the fault suite."""

from collections.abc import Iterator

import pytest

from tests.faults.cluster import Cluster, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL that tests may kill; they leave it running."""
    # The writer's delay: what is not committed reaches the disk late, so that a crash loses it.
    with running_cluster(wal_writer_delay="10s") as started:
        yield started
