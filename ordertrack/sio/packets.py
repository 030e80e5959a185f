"""Reads and writes Socket.IO packets that hold no binary data, as text.

python-socketio's `Packet` makes a JSON codec for each packet and searches its data for bytes, which
takes longer than the rest of an event's dispatch. What is not of the usual form is left to it:
tests/sio/test_packets.py holds both to the same results.

The protocol: https://socket.io/docs/v4/socket-io-protocol/#packet-encoding
"""

import json
import re
from typing import Any, Final

from socketio.packet import Packet

# A CONNECT, EVENT or ACK of the default namespace with data: its kind, and perhaps its id.
_USUAL: Final = re.compile(r"([023])([0-9]{0,15})(?=[\[{])")

# Digits of an integer. Reading one takes time that grows with their square.
MAX_DIGITS: Final = 100


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("An integer is too large")
    return int(digits)


_DECODER: Final = json.JSONDecoder(parse_int=_bounded_int)
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


def decode(text: str) -> tuple[int, str, int | None, Any]:
    """The kind, namespace, id and data of a packet, without its attachments.

    Raises `ValueError`, `IndexError`, `TypeError` or `RecursionError` for what is none.
    """
    usual = _USUAL.match(text)
    if usual is None:
        packet = Packet(encoded_packet=text)
        return packet.packet_type, packet.namespace or "/", packet.id, packet.data
    kind, number = usual.groups()
    return int(kind), "/", int(number) if number else None, _DECODER.decode(text[usual.end() :])


def encode(kind: int, namespace: str, data: Any, id: int | None = None) -> str:
    """A packet as text. Raises `TypeError` if its data is binary, or is not data at all."""
    prefix = "" if namespace == "/" else f"{namespace},"
    return f"{kind}{prefix}{'' if id is None else id}" + (
        "" if data is None else _ENCODER.encode(data)
    )
