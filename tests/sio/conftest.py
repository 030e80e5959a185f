from collections.abc import Iterator

import pytest

from tests.server.echo import Echo, running


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    """The echo application with bounds that a test can reach."""
    with running(
        origins=["https://shop.example.com"],
        max_queue_bytes=100_000,
        max_queue_seconds=3.0,
        connect_seconds=2.0,
    ) as started:
        yield started
