"""Checks `ordertrack.batching` under eventlet: a program, which test_batching.py runs.

The model below says which batches must run after any sequence of calls, endings and kills.
"""

import eventlet

eventlet.monkey_patch()

import gc  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from typing import Any  # noqa: E402

from eventlet.event import Event  # noqa: E402
from eventlet.hubs import get_hub  # noqa: E402
from greenlet import GreenletExit  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from ordertrack.batching import Batcher  # noqa: E402
from ordertrack.errors import Unavailable  # noqa: E402


class Broken(Exception):
    """What `run` raises on purpose."""


def settle() -> None:
    for _ in range(6):
        eventlet.sleep(0)


class World:
    """A batcher whose batches end when the test says so, and its callers."""

    def __init__(self, **options: Any) -> None:
        self.batcher: Batcher[int, int] = Batcher(self._run, **options)
        self.running: dict[tuple[int, ...], Event] = {}  # by the values of the batch
        self.results: dict[int, object] = {}
        self.callers: dict[int, Any] = {}
        self.then: dict[int, Callable[[], object]] = {}

    def _run(self, values: Sequence[int]) -> list[int | Exception]:
        key = tuple(values)
        assert key not in self.running
        self.running[key] = Event()
        try:
            outcome = self.running[key].wait()
        finally:
            del self.running[key]
        if outcome == "raise":
            raise Broken(*key)
        if outcome == "each":
            return [Broken(value) for value in key]
        if outcome == "shared":
            return [Broken("shared")] * len(key)
        return [value * 10 for value in key]

    def call(self, value: int) -> None:
        self.callers[value] = eventlet.spawn(self._call, value)

    def _call(self, value: int) -> None:
        try:
            self.results[value] = self.batcher.call(value)
        except (Exception, GreenletExit) as error:  # noqa: BLE001
            self.results[value] = error
        self.then.pop(value, lambda: None)()

    def end(self, batch: Sequence[int], outcome: str = "answer") -> None:
        self.running[tuple(batch)].send(outcome)

    def kill(self, value: int) -> None:
        eventlet.kill(self.callers[value])


class Model:
    """What must happen, in a few lines: which batches run, and what each call's result is."""

    def __init__(self, lanes: int, most: int, waiting: int, repeats: bool) -> None:
        self.lanes, self.most, self.waiting, self.repeats = lanes, most, waiting, repeats
        self.queue: list[int] = []
        self.running: list[tuple[int, ...]] = []
        self.results: dict[int, object] = {}

    def call(self, value: int) -> None:
        if len(self.running) < self.lanes:
            self.running.append((value,))
        elif len(self.queue) < self.waiting:
            self.queue.append(value)
        else:
            self.results[value] = Unavailable

    def end(self, batch: tuple[int, ...], outcome: str) -> None:
        self._remove(batch)
        for value in batch:
            # A follower that was killed has its result already.
            self.results.setdefault(value, value * 10 if outcome == "answer" else Broken)

    def _remove(self, batch: tuple[int, ...], first: Sequence[int] = ()) -> None:
        self.running.remove(batch)
        self.queue[:0] = first
        if self.queue:
            self.running.append(tuple(self.queue[: self.most]))
            del self.queue[: self.most]

    def kill(self, value: int) -> None:
        if value in self.results:
            return
        self.results[value] = GreenletExit
        if value in self.queue:
            self.queue.remove(value)
            return
        (batch,) = [batch for batch in self.running if value in batch]
        if batch[0] == value:
            others = [other for other in batch[1:] if other not in self.results]
            if self.repeats:
                self._remove(batch, others)
            else:
                self._remove(batch)
                self.results |= dict.fromkeys(others, Unavailable)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(1, 6)),
        st.tuples(
            st.just("end"),
            st.integers(0, 9),
            st.sampled_from(["answer", "raise", "each", "shared"]),
        ),
        st.tuples(st.just("kill"), st.integers(0, 40)),
        st.tuples(st.just("kill in a batch"), st.integers(0, 9), st.integers(0, 3)),
    ),
    min_size=12,
    max_size=30,
)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(STEPS, st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.booleans())
def check_the_model(steps: list[Any], lanes: int, most: int, waiting: int, repeats: bool) -> None:
    world = World(lanes=lanes, most=most, waiting=waiting, repeats=repeats)
    model = Model(lanes, most, waiting, repeats)
    called = 0

    def compare() -> None:
        settle()
        assert sorted(world.running) == sorted(model.running)
        assert world.results.keys() == model.results.keys()

    def end(batch: tuple[int, ...], outcome: str) -> None:
        world.end(batch, outcome)
        model.end(batch, outcome)
        compare()

    def kill(value: int) -> None:
        world.kill(value)
        model.kill(value)

    for name, *values in steps:
        if name == "call":
            for _ in range(values[0]):
                world.call(called)
                model.call(called)
                called += 1
        elif name == "end" and model.running:
            end(model.running[values[0] % len(model.running)], values[1])
        elif name == "kill" and called:
            kill(values[0] % called)
        elif name == "kill in a batch" and model.running:
            batch = model.running[values[0] % len(model.running)]
            kill(batch[values[1] % len(batch)])
        compare()
    while model.running:
        end(model.running[0], "answer")

    instances = [result for result in world.results.values() if isinstance(result, BaseException)]
    assert len({id(instance) for instance in instances}) == len(instances)
    for value, expected in model.results.items():
        result = world.results[value]
        assert result == expected or type(result) is expected, (value, result, expected)
    assert world.batcher._free == lanes
    assert not world.batcher._queue


def check_that_a_lane_survives_the_death_of_the_one_that_was_given_it() -> None:
    world = World(lanes=1, most=8)
    for value in (1, 2, 3):
        world.call(value)
    world.then[1] = lambda: world.kill(2)  # the lane is its, and it has not been woken yet
    settle()
    world.end([1])
    settle()
    assert list(world.running) == [(3,)]
    assert type(world.results[2]) is GreenletExit
    world.end([3])
    settle()
    assert world.results[3] == 30


def check_that_one_that_is_killed_with_its_answer_is_not_woken_elsewhere() -> None:
    world = World(lanes=1, most=8)
    elsewhere = Event()
    for value in (1, 2, 3):
        world.call(value)
    world.then[3] = lambda: world.results.update({3: elsewhere.wait()})
    settle()
    world.end([1])
    settle()
    world.then[2] = lambda: world.kill(3)  # its answer is there, and it has not been woken yet
    world.end([2, 3])
    settle()
    assert type(world.results[3]) is GreenletExit
    elsewhere.send("the right one")
    settle()
    assert world.results[3] == "the right one"


def check_that_a_call_goes_on_waiting_when_something_else_wakes_its_greenlet() -> None:
    world = World(lanes=1, most=8)
    world.call(1)
    world.call(2)
    settle()
    get_hub().schedule_call_global(0, world.callers[2].switch)
    settle()
    assert not world.results
    assert list(world.running) == [(1,)]
    for batch in ((1,), (2,)):
        world.end(batch)
        settle()
    assert world.results == {1: 10, 2: 20}


def check_that_a_timeout_of_the_one_that_runs_a_batch_strands_nobody() -> None:
    for repeats in (False, True):
        world = World(lanes=1, most=8, repeats=repeats)
        results = world.results

        def impatient(world: World = world, results: dict[int, object] = results) -> None:
            with eventlet.Timeout(0.02, False):
                world.batcher.call(2)
            results[2] = "timed out"

        world.call(1)
        settle()
        waiting = eventlet.spawn(impatient)
        settle()
        world.call(3)
        settle()
        world.end([1])
        settle()
        assert list(world.running) == [(2, 3)]
        waiting.wait()
        settle()
        if repeats:
            assert list(world.running) == [(3,)]
            world.end([3])
            settle()
            assert results[3] == 30
        else:
            assert type(results[3]) is Unavailable
        assert results[2] == "timed out"


def check_that_no_failure_leaves_a_cycle_behind() -> None:
    gc.collect()
    gc.disable()
    try:
        for outcome in ("raise", "each", "shared"):
            world = World(lanes=1, most=8)
            for value in range(5):
                world.call(value)
            settle()
            world.end([0], outcome)
            settle()
            world.kill(3)
            settle()
            world.end([1, 2, 3, 4], outcome)
            settle()
            assert len(world.results) == 5
            world.results.clear()
            world.callers.clear()
            settle()
            left = [each for each in gc.get_objects() if isinstance(each, Broken)]
            assert not left, (outcome, left)
    finally:
        gc.enable()


if __name__ == "__main__":
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            sys.stdout.write(f"{name}\n")
            sys.stdout.flush()
            check()
