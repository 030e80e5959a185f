"""WebSocket frames are encoded and parsed as RFC 6455 says, whatever pieces they arrive in."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordertrack.server import ws_frames
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
    """What the parser makes of `data`, fed in these pieces."""
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
def test_messages_are_the_same_however_their_bytes_are_cut(
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
def test_a_message_is_the_same_however_it_is_fragmented(payload: bytes, cuts: list[int]) -> None:
    parts = pieces(payload, cuts) or [b""]
    wire = [
        frame(ws_frames.BINARY if n == 0 else 0, part, fin=n == len(parts) - 1)
        for n, part in enumerate(parts)
    ]
    events = read(Parser(500), frame(ws_frames.PING).join(wire))
    whole = [event for event in events if event[0] == ws_frames.BINARY]
    assert whole == [(ws_frames.BINARY, payload)]
    assert len(events) == 2 * len(parts) - 1, "every frame is returned, so that it can be counted"


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_no_bytes_make_the_parser_raise_or_keep_more_than_its_limit(noise: list[bytes]) -> None:
    parser = Parser(100)
    for piece in noise:
        read(parser, piece)
        assert parser.held <= (2 * 100 + 14 if parser.error is None else 0)


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 70_000])
def test_a_frames_header_has_the_shortest_form_of_its_length(size: int) -> None:
    made = encode(ws_frames.BINARY, b"x" * size)
    header = len(made) - size
    assert made[:1] == b"\x82"
    assert header == (2 if size < 126 else 4 if size < 65_536 else 10)


def test_a_close_frame_is_short_enough_and_can_be_read() -> None:
    made = close_frame(1008, "ü" * 100)
    assert len(made) == 2 + 124
    assert read_close(made[2:]) == (1008, "ü" * 61)
    assert read_close(b"") == (1005, "")
    assert close_frame(1005) == b"\x88\x00"


def test_frames_are_text_unless_told_otherwise() -> None:
    assert text_frame("é") == text_frame("é".encode()) == b"\x81\x02\xc3\xa9"
