"""Who is sent away is closed, whatever happens to the others."""

import logging

import pytest

from ordertrack.realtime.setup import hang_up


class Connection:
    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.closed: list[tuple[int, str]] = []

    def hang_up(self, code: int, reason: str) -> None:
        if self.fails:
            raise RuntimeError("made up by the test")
        self.closed.append((code, reason))


def test_one_that_cannot_be_closed_does_not_leave_the_others_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They have been silenced already: left open, they would never hear of anything again."""
    connections = [Connection(fails=number % 2 == 0) for number in range(10)]
    with caplog.at_level(logging.ERROR):
        hang_up(list(connections), 0.0)  # type: ignore[arg-type]
    assert [connection.closed for connection in connections if not connection.fails] == [
        [(1012, "resume")]
    ] * 5
    assert len(caplog.records) == 5
