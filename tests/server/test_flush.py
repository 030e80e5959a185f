"""Flushes leave time for everything else, and frames that wait for many sockets are joined once."""

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordertrack.server import loop as loop_module
from ordertrack.server.loop import FLUSH_SHARE, FLUSH_STEP, LONGEST_FLUSH, Loop
from ordertrack.server.send_queue import Frames, joined, longer, parts

SECONDS_PER_FLUSH = 0.00001


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeHub:
    """Runs what was scheduled when the test says so, as eventlet's hub does once a turn."""

    def __init__(self) -> None:
        self.scheduled: deque[Callable[[], None]] = deque()

    def schedule_call_global(self, _seconds: float, call: Callable[[], None]) -> None:
        self.scheduled.append(call)

    def turn(self) -> None:
        self.scheduled.popleft()()


class FakeSocket:
    descriptor = 0

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.number = number

    def flush(self) -> None:
        self.world.clock.now += SECONDS_PER_FLUSH
        if self.number in self.world.broken:
            raise RuntimeError("injected")
        self.world.flushed.append(self.number)

    def abort(self) -> None:
        self.world.aborted.append(self.number)

    def on_readable(self) -> None: ...

    def on_writable(self) -> None: ...


class World:
    """A loop with a clock that only flushes advance, and the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        monkeypatch.setattr(loop_module, "monotonic", self.clock)
        self.hub = FakeHub()
        self.loop = Loop()
        self.loop._hub = self.hub
        self.flushed: list[int] = []
        self.aborted: list[int] = []
        self.broken: set[int] = set()

    def ask(self, *numbers: int) -> None:
        for number in numbers:
            self.loop.flush_soon(FakeSocket(self, number))

    def answer(self, *numbers: int) -> None:
        for number in numbers:
            self.loop.flush_first(FakeSocket(self, number))

    def turn(self) -> int:
        """Let the loop flush; how many it flushed."""
        before = len(self.flushed)
        self.hub.turn()
        return len(self.flushed) - before


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_all_are_flushed_in_the_order_in_which_they_asked(world: World) -> None:
    world.ask(*range(1000))
    turns = 0
    while world.hub.scheduled:
        assert world.turn(), "every turn flushes some"
        turns += 1
    assert turns > 10
    assert world.flushed == list(range(1000))
    world.ask(7)
    assert world.turn() == 1, "an idle loop begins again"


@pytest.mark.parametrize("elsewhere", [0.002, 0.006])
def test_a_turn_flushes_for_a_share_of_the_time_that_was_spent_elsewhere(
    world: World, elsewhere: float
) -> None:
    world.ask(*range(3000))
    for _ in range(3):
        world.clock.now += elsewhere
        expected = elsewhere * FLUSH_SHARE / SECONDS_PER_FLUSH
        assert expected <= world.turn() <= expected + FLUSH_STEP


def test_a_turn_is_bounded_however_long_the_others_took(world: World) -> None:
    world.ask(*range(3000))
    world.clock.now += 60
    assert world.turn() <= LONGEST_FLUSH / SECONDS_PER_FLUSH + FLUSH_STEP


def test_a_socket_that_cannot_be_flushed_is_aborted_and_the_others_are_flushed(
    world: World,
) -> None:
    world.broken = {0, FLUSH_STEP - 1, FLUSH_STEP, 99}
    world.ask(*range(100))
    while world.hub.scheduled:
        world.hub.turn()
    assert world.aborted == sorted(world.broken)
    assert world.flushed == [n for n in range(100) if n not in world.broken]


def test_answers_leave_in_the_next_turn_whatever_else_waits(world: World) -> None:
    world.ask(*range(3000))
    world.turn()
    before = len(world.flushed)
    world.answer(5000, 5001, 5002)
    world.broken = {5001}
    world.ask(4000)
    assert world.turn() > 2, "the others are not held up either"
    assert world.flushed[before : before + 3] == [5000, 5002, before]
    assert world.aborted == [5001]


def test_an_answer_begins_the_flushing_of_an_idle_loop(world: World) -> None:
    for number in range(3):
        world.answer(number)
        assert world.turn() == 1
    assert not world.hub.scheduled


FRAMES = [bytes([65 + number]) * (number + 1) for number in range(4)]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([*range(4), None])), max_size=60))
def test_whatever_waits_where_each_socket_gets_its_own_frames_in_order(
    steps: list[tuple[int, Any]],
) -> None:
    """A step is a socket and the frame that is enqueued for it, or None: it is flushed."""
    waiting: dict[int, Frames] = {}
    expected: dict[int, list[bytes]] = {}
    for socket, which in [*steps, *((socket, None) for socket in range(4))]:
        if which is not None:
            frame = FRAMES[which]
            before = waiting.get(socket)
            waiting[socket] = frame if before is None else longer(before, frame)
            expected.setdefault(socket, []).append(frame)
        elif socket in waiting:
            frames = waiting.pop(socket)
            assert parts(frames) == expected[socket]
            assert joined(frames) == b"".join(expected.pop(socket))


def test_sockets_with_the_same_frames_share_them_and_their_join() -> None:
    first, second, third = (bytes([number]) * 100 for number in range(3))
    waiting: list[Frames] = [first] * 5
    for frame in (second, third):
        waiting = [longer(frames, frame) for frames in waiting]
    assert len({id(frames) for frames in waiting}) == 1
    assert len({id(joined(frames)) for frames in waiting}) == 1


def test_very_many_frames_may_wait() -> None:
    frames: Frames = b"0"
    for _ in range(200_000):
        frames = longer(frames, b"1")
    assert joined(frames) == b"0" + b"1" * 200_000
