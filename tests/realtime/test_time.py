"""What depends on time: draining, and whether the relay counts as following. The clock is fake."""

from types import SimpleNamespace
from typing import Any

import pytest

from ordertrack.realtime import relay
from ordertrack.realtime.relay import Relay
from ordertrack.server import loop as event_loop_module
from ordertrack.server import websocket
from ordertrack.server.admission import Admission
from ordertrack.server.loop import Loop


class Clock:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (event_loop_module, websocket):
            patch.setattr(module, "monotonic", lambda: self.now)
        patch.setattr(event_loop_module, "pause", lambda: None)
        patch.setattr(event_loop_module, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.safety("drain")
def test_draining_closes_connections_evenly_over_the_time_given(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[float] = []
    sockets: dict[int, Any] = {}

    def leave(number: int, code: int, _reason: str) -> None:
        assert code == 1012
        closed.append(clock.now - 1000.0)
        del sockets[number]

    for number in range(8):
        sockets[number] = SimpleNamespace(close=lambda *given, n=number: leave(n, *given))
    loop = Loop()
    loop.sockets = sockets
    monkeypatch.setattr(websocket, "event_loop", loop)
    monkeypatch.setattr(websocket, "admission", Admission())
    websocket.close_all(1012, "server restarting", 4.0)
    assert websocket.admission.is_draining
    assert closed == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]


@pytest.mark.safety("relay-connection-lost")
def test_a_relay_whose_turn_takes_too_long_does_not_count_as_following(clock: Clock) -> None:
    poll = 0.25

    def nothing(*_: object) -> None: ...

    following = Relay(
        "",
        publish=nothing,
        revoke=nothing,
        before_read=nothing,
        after_read=nothing,
        on_gap=nothing,
        poll=poll,
    )
    assert not following.is_following  # nothing was read yet
    following._last_turn = clock.now
    clock.now += poll + relay._LONGEST_TURN - 0.01
    assert following.is_following
    clock.now += 0.02
    assert not following.is_following
