"""The states of an Engine.IO session, without a network."""

from itertools import product
from typing import Any

import pytest

from ordertrack.server import loop
from ordertrack.server.ws_frames import CloseCode, binary_frame, text_frame
from ordertrack.sio.engineio import (
    CLOSE,
    PING,
    UPGRADE,
    UPGRADES,
    EncodedMessage,
    EngineIOSession,
    State,
    Transport,
)
from ordertrack.sio.engineio_server import EngineIOServer

HANDSHAKE = {"REMOTE_ADDR": "127.0.0.1"}
PACKETS = [PING + "probe", UPGRADE, "4hello", PING, b"\x00"]


class WebSocket:
    """Records what a session does with its WebSocket."""

    alive = True

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed: list[int] = []

    def write(self, frame: bytes) -> None:
        self.written.append(frame)

    def close(self, code: int, _reason: str = "") -> None:
        self.closed.append(code)

    def abort(self) -> None:
        self.closed.append(CloseCode.ABNORMAL)


class Handler:
    """Records why sessions ended."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []

    def on_message(self, session: EngineIOSession, data: str) -> None: ...

    def on_disconnect(self, session: EngineIOSession, reason: str | None) -> None:
        self.reasons.append(reason)


@pytest.fixture
def server() -> EngineIOServer:
    made = EngineIOServer()
    made.handler = Handler()
    return made


def polling(server: EngineIOServer) -> EngineIOSession:
    """An open session whose queue is empty."""
    session = EngineIOSession(server, server.generate_id(), dict(HANDSHAKE), Transport.POLLING)
    session.open_polling()
    assert session.fetch().startswith("0{")
    return session


def probing(session: EngineIOSession) -> Any:
    ws = WebSocket()
    opened: Any = ws
    session.on_open(opened)
    return ws


@pytest.mark.parametrize(
    ("transport", "packet"), list(product((Transport.PROBING, Transport.PROBED), PACKETS)), ids=str
)
def test_a_probing_websocket_is_closed_for_every_packet_that_upgrades_does_not_name(
    server: EngineIOServer, transport: Transport, packet: str | bytes
) -> None:
    session = polling(server)
    ws = probing(session)
    if transport is Transport.PROBED:
        session.on_message_in_loop(ws, PING + "probe")
    assert session.transport is transport
    session.on_message_in_loop(ws, packet)
    if (transport, packet) in UPGRADES:
        assert session.transport is UPGRADES[transport, packet]
        assert ws.closed == []
    else:
        assert session.transport is Transport.POLLING
        assert ws.closed == [CloseCode.PROTOCOL_ERROR]
    assert session.state is State.OPEN


def test_a_closing_session_is_closed_when_its_last_packet_is_fetched(
    server: EngineIOServer,
) -> None:
    session = polling(server)
    session.enqueue(EncodedMessage(["2[]"]))
    session.close("because")
    assert session.state is State.CLOSING
    session.enqueue(EncodedMessage(["2[]"]))  # dropped
    session.close("again")
    assert session.fetch() == "42[]"
    assert session.state is State.CLOSING
    assert session.fetch() == CLOSE
    assert session.state is State.CLOSED
    loop.pause()
    assert server.handler.reasons == ["because"]


@pytest.mark.parametrize("transport", [Transport.POLLING, Transport.PROBING])
def test_an_aborted_session_is_closed_at_once(server: EngineIOServer, transport: Transport) -> None:
    session = polling(server)
    ws = probing(session) if transport is Transport.PROBING else None
    session.enqueue(EncodedMessage(["2[]"]))
    session.abort("because")
    assert session.state is State.CLOSED
    assert server.sockets == {}
    assert ws is None or ws.closed == [CloseCode.ABNORMAL]
    loop.pause()
    assert server.handler.reasons == ["because"]


def test_a_binary_message_reaches_each_transport_in_its_own_encoding(
    server: EngineIOServer,
) -> None:
    message = EncodedMessage(['51-["blob",{"_placeholder":true,"num":0}]', b"\x00\x01"])
    staying, moving = polling(server), polling(server)
    for session in (staying, moving):
        session.enqueue(message)
    ws = probing(moving)
    for packet in (PING + "probe", UPGRADE):
        moving.on_message_in_loop(ws, packet)
    text = '451-["blob",{"_placeholder":true,"num":0}]'
    assert ws.written == [text_frame("3probe"), text_frame(text), binary_frame(b"\x00\x01")]
    assert staying.fetch() == text + "\x1ebAAE="
