"""The send queue keeps order and counts bytes, and tells a stuck client from a slow one."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ordertrack.server.counters import counters
from ordertrack.server.send_queue import SendQueue


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.data())
def test_a_queue_returns_its_bytes_in_order_however_many_are_sent_at_once(
    sizes: list[int], data: Any
) -> None:
    before = counters.queued_bytes
    queue = SendQueue(0.0)
    given_bytes = b""
    for number, size in enumerate(sizes):
        piece = bytes([number % 256]) * size
        queue.append(piece, float(number))
        given_bytes += piece
    got = b""
    while queue.frames:
        head = bytes(queue.head())
        count = data.draw(st.integers(0, len(head)))
        queue.sent(count)
        got += head[:count]
        if not count:
            break
    rest = queue.discard()
    assert given_bytes.startswith(got)
    if rest is not None:
        assert given_bytes[len(got) :].startswith(bytes(rest)), "a cut frame can be completed"
    assert counters.queued_bytes == before


def stuck_at(taken: dict[int, int]) -> int | None:
    """The second at which a queue is stuck, with *taken* bytes sent at each (0: at all others)."""
    queue = SendQueue(0.0)
    queue.append(b"x" * 1_000_000, 0.0)
    for second in range(1, 200):
        queue.sent(taken.get(second, taken.get(0, 0)))
        if queue.is_stuck(second, 20.0, 100.0):
            queue.discard()
            return second
    queue.discard()
    return None


def test_a_queue_is_stuck_when_the_client_reads_below_the_rate() -> None:
    assert stuck_at({}) == 20
    assert stuck_at({0: 99}) == 20, "below the rate"
    assert stuck_at({0: 100}) is None, "old, and read steadily"
    assert stuck_at({3: 900_000}) == 40, "a burst of reading counts for one period"


def test_a_queue_of_recent_frames_is_not_stuck_however_slowly_it_is_read() -> None:
    queue = SendQueue(0.0)
    for second in range(200):
        queue.append(b"x", float(second))
        if second >= 10:
            queue.sent(1)  # what was queued ten seconds ago
        assert not queue.is_stuck(second, 20.0, 100.0)
    queue.discard()
