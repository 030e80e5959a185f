"""The pure parts of the transport, in memory: frames, backlog, heartbeat."""

from collections import deque
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordertrack.server import heartbeat, ws_frames
from ordertrack.server.counters import counters
from ordertrack.server.heartbeat import Heartbeat
from ordertrack.server.send_queue import SendQueue
from ordertrack.server.ws_frames import Parser, close_frame, encode, read_close, text_frame
from tests.server.wire import frame

messages = st.lists(
    st.one_of(
        st.tuples(st.just(ws_frames.TEXT), st.text(max_size=200)),
        st.tuples(st.just(ws_frames.BINARY), st.binary(max_size=300)),
    ),
    max_size=6,
)


def read(parser: Parser, *data: bytes) -> list[ws_frames.Received]:
    """What comes of `data`, fed in these pieces."""
    events = []
    for piece in data:
        parser.feed(piece)
        while (event := parser.next()) is not None:
            events.append(event)
    return events


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


@given(messages, st.lists(st.integers(0, 10_000), max_size=12))
def test_however_the_bytes_are_cut_the_messages_are_the_same(
    sent: list[ws_frames.Received], cuts: list[int]
) -> None:
    parser = Parser(65_536)
    data = b"".join(
        frame(opcode, payload.encode() if isinstance(payload, str) else payload)
        for opcode, payload in sent
    )
    assert read(parser, *pieces(data, cuts)) == sent
    assert parser.error is None


@given(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=5))
def test_however_a_message_is_fragmented_it_is_the_same(payload: bytes, cuts: list[int]) -> None:
    parts = pieces(payload, cuts) or [b""]
    wire = [
        frame(ws_frames.BINARY if n == 0 else 0, part, fin=n == len(parts) - 1)
        for n, part in enumerate(parts)
    ]
    events = read(Parser(500), frame(ws_frames.PING).join(wire))
    whole = [event for event in events if event[0] == ws_frames.BINARY]
    assert whole == [(ws_frames.BINARY, payload)]
    assert len(events) == 2 * len(parts) - 1, "every frame is answered, so that it can be counted"


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_no_bytes_make_the_parser_raise_or_hoard(noise: list[bytes]) -> None:
    parser = Parser(100)
    for piece in noise:
        read(parser, piece)
        assert parser.held <= (2 * 100 + 14 if parser.error is None else 0)


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 70_000])
def test_a_frame_says_how_long_it_is(size: int) -> None:
    made = encode(ws_frames.BINARY, b"x" * size)
    header = len(made) - size
    assert made[:1] == b"\x82"
    assert header == (2 if size < 126 else 4 if size < 65_536 else 10)


def test_a_close_frame_keeps_within_its_bounds_and_can_be_read() -> None:
    made = close_frame(1008, "ü" * 100)
    assert len(made) == 2 + 124
    assert read_close(made[2:]) == (1008, "ü" * 61)
    assert read_close(b"") == (1005, "")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.data())
def test_a_backlog_gives_back_what_it_was_given_whatever_is_taken(
    sizes: list[int], data: Any
) -> None:
    before = counters.queued_bytes
    backlog = SendQueue(0.0)
    given_bytes = b""
    for number, size in enumerate(sizes):
        piece = bytes([number % 256]) * size
        backlog.append(piece, float(number))
        given_bytes += piece
    got = b""
    while backlog.frames:
        head = bytes(backlog.head())
        count = data.draw(st.integers(0, len(head)))
        backlog.sent(count)
        got += head[:count]
        if not count:
            break
    rest = backlog.discard()
    assert given_bytes.startswith(got)
    if rest is not None:
        assert given_bytes[len(got) :].startswith(bytes(rest)), "a cut frame can be completed"
    assert counters.queued_bytes == before


class Beating:
    """A connection that joins at a time, and falls silent at another."""

    def __init__(self, joins: int, silent_from: int = 10_000) -> None:
        self.joins = joins
        self.silent_from = silent_from
        self.alive = True
        self.heard = True
        self.pings: list[int] = []
        self.expired: int | None = None


def test_a_heartbeat_pings_everybody_at_its_interval_and_expires_the_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0

    def expire(one: Beating) -> None:
        one.alive, one.expired = False, now

    beat = Heartbeat(
        25.0,
        20.0,
        ping=lambda one: one.pings.append(now),
        expire=expire,
        pause=lambda: None,
    )
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: float(now))
    crowd = [Beating(joins) for joins in range(60)]
    silent = Beating(joins=7, silent_from=40)
    for now in range(201):
        for one in (*crowd, silent):
            if one.joins == now:
                beat.add(one)
        beat.sweep(float(now))
        for one in (*crowd, silent):
            one.heard = one.heard or now < one.silent_from
    for one in crowd:
        assert one.pings == list(range(one.joins + 25, 201, 25))
        assert one.expired is None
    assert silent.pings == [32, 57]
    assert silent.expired == 77


@pytest.mark.safety("exception-in-the-loop")
def test_what_one_connection_does_to_a_heartbeat_costs_no_other_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now)

    def ping(one: Beating) -> None:
        if one is crowd[1]:
            raise RuntimeError("cannot be pinged")
        one.pings.append(int(now))

    def expire(one: Beating) -> None:
        if one is crowd[3] and now < 60:
            raise RuntimeError("cannot be expired yet")
        one.alive, one.expired = False, int(now)

    crowd = [Beating(0) for _ in range(5)]
    beat = Heartbeat(25.0, 20.0, ping=ping, expire=expire, pause=lambda: None)
    for one in crowd:
        beat.add(one)
    for now in (25.0, 26.0, 45.0, 50.0, 70.0, 75.0):
        beat.sweep(now)
        crowd[0].heard = True
    assert [one.expired for one in crowd] == [None, 26, 45, 70, 45]
    assert crowd[0].pings == [25, 50, 75]


@pytest.mark.parametrize(("interval", "timeout"), [(1.0, 1.0), (1.0, 0.05), (0.2, 0.0)])
def test_a_heartbeat_that_cannot_be_kept_is_refused(interval: float, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be"):
        Heartbeat(interval, timeout, ping=id, expire=id, pause=int)


def test_a_heartbeat_says_how_often_it_is_to_be_looked_after() -> None:
    assert Heartbeat(25.0, 20.0, ping=id, expire=id, pause=int).period == 1.0
    assert Heartbeat(0.3, 0.2, ping=id, expire=id, pause=int).period == 0.05


def stuck_at(taken: dict[int, int]) -> int | None:
    """When a backlog counts as stuck of which so many bytes are taken at these seconds."""
    backlog = SendQueue(0.0)
    backlog.append(b"x" * 1_000_000, 0.0)
    for second in range(1, 200):
        backlog.sent(taken.get(second, taken.get(0, 0)))
        if backlog.is_stuck(second, 20.0, 100.0):
            backlog.discard()
            return second
    backlog.discard()
    return None


def test_a_backlog_is_stuck_when_hardly_anything_of_it_is_taken() -> None:
    assert stuck_at({}) == 20
    assert stuck_at({0: 99}) == 20, "below the rate"
    assert stuck_at({0: 100}) is None, "as old as it may be, and taken steadily"
    assert stuck_at({3: 900_000}) == 40, "what was taken once counts for one period"


def test_a_backlog_that_is_fresh_is_not_stuck_however_slowly_it_is_read() -> None:
    backlog = SendQueue(0.0)
    for second in range(200):
        backlog.append(b"x", float(second))
        if second >= 10:
            backlog.sent(1)  # what was queued ten seconds ago
        assert not backlog.is_stuck(second, 20.0, 100.0)
    backlog.discard()


def test_what_is_due_is_taken_in_chunks() -> None:
    queue = deque((float(n), n) for n in range(1000))
    pauses: list[int] = []
    taken = list(heartbeat.take_due(queue, 599.0, lambda: pauses.append(len(queue))))
    assert taken == list(range(600))
    assert pauses == [744, 488]


def test_frames_are_text_unless_told_otherwise() -> None:
    assert text_frame("é") == text_frame("é".encode()) == b"\x81\x02\xc3\xa9"
