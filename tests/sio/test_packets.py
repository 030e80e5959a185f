"""Our reading and writing of Socket.IO packets, against python-socketio's."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from socketio.packet import Packet

from ordertrack.sio import packets

Result = tuple[Any, ...] | str

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
namespaces = st.sampled_from(["/", "/a", "/admin"])
ids = st.none() | st.integers(0, 10**20)

# Pieces of packets, whole and broken, in any order.
pieces = st.lists(
    st.sampled_from(
        (
            "0", "1", "2", "3", "4", "5", "12", "-", "/a", ",", "?", "[", "]", "{", "}", "{}", '"',
            '["e"]', '{"token":"x"}', "1-", "9" * 15, "9" * 16, "9" * 101, "1.5", "NaN", "-1", " ",
            "\n", "\ufeff", "²", "[1,{}]", "[[", "null", '["e",1e999]', "٣", "\\ud800",
        )
    ),
    max_size=7,
).map("".join)  # fmt: skip


def read_by_library(text: str) -> Result:
    try:
        read = Packet(encoded_packet=text)
    except (ValueError, IndexError, TypeError, RecursionError) as error:
        return type(error).__name__
    return (read.packet_type, read.namespace or "/", read.id, repr(read.data))


def read(text: str) -> Result:
    try:
        kind, namespace, number, data = packets.decode(text)
    except (ValueError, IndexError, TypeError, RecursionError) as error:
        return type(error).__name__
    return (kind, namespace, number, repr(data))


@given(pieces)
@example("")
@example('0{"token":"x"}')
@example('20["e"]')
@example('2007["e"]')
@example('2["e"]]')
@example('21-["e"]')
@example(f'2["e",{"9" * 100}]')
@example(f'2["e",{"9" * 101}]')
@example("2" + "[" * 100_000)
@example("2٣[]")
def test_whatever_arrives_is_read_as_the_library_reads_it(text: str) -> None:
    assert read(text) == read_by_library(text)


@given(st.integers(0, 4), namespaces, ids, values)
@example(0, "/", None, {"sid": "x"})
@example(3, "/", 0, [])
@example(4, "/a", None, {"message": "é \u2028 \U0001f600"})
def test_packets_are_written_as_the_library_writes_them(
    kind: int, namespace: str, number: int | None, data: Any
) -> None:
    written = packets.encode(kind, namespace, data, number)
    assert written == Packet(kind, data=data, namespace=namespace, id=number).encode()
    assert read(written) == read_by_library(written)


@pytest.mark.parametrize("data", [b"x", [bytearray(b"x")], {"a": [b""]}, [object()], [{1, 2}]])
def test_what_is_no_text_is_left_to_the_library(data: Any) -> None:
    with pytest.raises(TypeError):
        packets.encode(3, "/", data, 1)
