"""Every stopped connection is closed, so that its client resumes, even if closing another fails."""

import logging

import pytest

from ordertrack.realtime.setup import close_each


class Connection:
    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.closed: list[tuple[int, str]] = []

    def close(self, code: int, reason: str) -> None:
        if self.fails:
            raise RuntimeError("made up by the test")
        self.closed.append((code, reason))


def test_a_connection_that_cannot_be_closed_does_not_keep_the_others_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They get no events any more: left open, they would show an old state for ever."""
    connections = [Connection(fails=number % 2 == 0) for number in range(10)]
    with caplog.at_level(logging.ERROR):
        close_each(list(connections), 0.0)  # type: ignore[arg-type]
    assert [connection.closed for connection in connections if not connection.fails] == [
        [(1012, "resume")]
    ] * 5
    assert len(caplog.records) == 5
