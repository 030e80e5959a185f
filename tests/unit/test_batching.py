"""`ordertrack.batching`: which calls go out together, and that each gets its own answer."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from ordertrack import batching
from ordertrack.batching import Batcher
from ordertrack.errors import Unavailable, ValidationFailed
from tests.support.waiting import eventually

ROOT = Path(__file__).parent.parent.parent


class Gate:
    """A `run` that keeps each batch until the test opens the gate for one."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.threads: list[int] = []
        self._opened = threading.Semaphore(0)
        self.open = self._opened.release

    def run(self, values: Sequence[int]) -> list[int | Exception]:
        self.batches.append(tuple(values))
        self.threads.append(threading.get_ident())
        self._opened.acquire()
        return [value * 10 for value in values]


def start(batcher: Batcher[int, int], value: int, results: dict[int, object]) -> threading.Thread:
    def call() -> None:
        try:
            results[value] = batcher.call(value)
        except Exception as error:  # noqa: BLE001
            results[value] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def start_in_order(
    batcher: Batcher[int, int], values: Sequence[int], results: dict[int, object], gate: Gate
) -> list[threading.Thread]:
    threads = []
    for value in values:
        before = len(gate.batches), len(batcher._queue)
        threads.append(start(batcher, value, results))
        eventually(lambda before=before: (len(gate.batches), len(batcher._queue)) != before)
    return threads


def test_it_does_the_same_for_greenlets() -> None:
    program = Path(__file__).with_name("batching_in_greenlets.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_calls_that_arrive_while_lanes_are_busy_go_out_together_in_their_order() -> None:
    gate = Gate()
    results: dict[int, object] = {}
    batcher: Batcher[int, int] = Batcher(gate.run, lanes=2, most=3)
    threads = start_in_order(batcher, range(8), results, gate)
    for batches in ([(0,), (1,)], [(2, 3, 4)], [(5, 6, 7)]):
        eventually(lambda batches=batches: gate.batches[-len(batches) :] == batches)
        gate.open()
    gate.open()
    for thread in threads:
        thread.join(10)
    assert results == {value: value * 10 for value in range(8)}
    runners = dict(zip(gate.batches, gate.threads, strict=True))
    assert runners[2, 3, 4] == threads[2].ident  # the one that had waited longest
    assert runners[5, 6, 7] == threads[5].ident


def test_a_call_that_finds_a_lane_free_runs_in_its_own_thread() -> None:
    batcher: Batcher[int, int] = Batcher(
        lambda values: [threading.get_ident() for _ in values], lanes=1, most=3
    )
    assert [batcher.call(1), batcher.call(2)] == [threading.get_ident()] * 2


def test_a_call_beyond_the_bound_is_refused_at_once() -> None:
    gate = Gate()
    results: dict[int, object] = {}
    batcher: Batcher[int, int] = Batcher(gate.run, lanes=1, most=8, waiting=2)
    threads = start_in_order(batcher, (0, 1, 2), results, gate)
    with pytest.raises(Unavailable, match="Too many requests wait"):
        batcher.call(3)
    gate.open()
    gate.open()
    for thread in threads:
        thread.join(10)
    assert results == {0: 0, 1: 10, 2: 20}


def test_a_call_that_has_waited_too_long_is_refused_when_its_turn_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now))
    gate = Gate()
    results: dict[int, object] = {}
    batcher: Batcher[int, int] = Batcher(gate.run, lanes=1, most=8, patience=5.0)
    threads = start_in_order(batcher, (0, 1), results, gate)
    now += 5.1
    threads += start_in_order(batcher, (2,), results, gate)
    gate.open()
    gate.open()
    for thread in threads:
        thread.join(10)
    assert gate.batches == [(0,), (2,)]
    assert (results[0], results[2]) == (0, 20)
    assert isinstance(results[1], Unavailable)


class _Particular(Exception):
    """Cannot be copied as exceptions are: its constructor takes something else."""

    def __init__(self, one: int, *, other: int) -> None:
        super().__init__(f"{one} and {other}")
        self.other = other


@pytest.mark.parametrize(
    "make",
    [lambda: ValidationFailed.at("/x", "must be y"), lambda: _Particular(1, other=2)],
    ids=["domain", "particular"],
)
def test_what_a_batch_raises_reaches_each_call_as_an_instance_of_its_own(
    make: Callable[[], Exception],
) -> None:
    gate = Gate()
    cause = OSError("the network")

    def run(values: Sequence[int]) -> list[int | Exception]:
        gate.run(values)
        raise make() from cause

    results: dict[int, object] = {}
    batcher: Batcher[int, int] = Batcher(run, lanes=1, most=8)
    threads = start_in_order(batcher, range(4), results, gate)
    gate.open()
    gate.open()
    for thread in threads:
        thread.join(10)
    expected = make()
    for error in results.values():
        assert type(error) is type(expected)
        assert isinstance(error, Exception)
        assert (str(error), error.__dict__) == (str(expected), expected.__dict__)
        assert error.__cause__ is cause
        assert "run" in frames(error)
    assert len({id(error) for error in results.values()}) == 4


def frames(error: BaseException) -> list[str]:
    names = []
    traceback = error.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    return names


def test_a_batch_with_too_few_answers_fails_as_a_whole() -> None:
    gate = Gate()
    results: dict[int, object] = {}
    batcher: Batcher[int, int] = Batcher(lambda values: gate.run(values)[:1], lanes=1, most=8)
    threads = start_in_order(batcher, range(3), results, gate)
    gate.open()
    gate.open()
    for thread in threads:
        thread.join(10)
    assert results[0] == 0
    assert [type(results[1]), type(results[2])] == [RuntimeError, RuntimeError]


def test_threads_without_order_all_get_their_answers() -> None:
    running = most_running = 0
    counting = threading.Lock()

    def run(values: Sequence[int]) -> list[int | Exception]:
        nonlocal running, most_running
        with counting:
            running += 1
            most_running = max(most_running, running)
        time.sleep(0.0005)
        with counting:
            running -= 1
        return [ValueError(value) if value % 7 == 0 else value * 10 for value in values]

    batcher: Batcher[int, int] = Batcher(run, lanes=2, most=5)
    wrong: list[object] = []

    def work(first: int) -> None:
        for value in range(first, first + 100):
            try:
                answer: object = batcher.call(value)
            except ValueError as error:
                answer = error.args[0] if value % 7 == 0 else None
                wrong.extend([value] * (answer != value))
            else:
                wrong.extend([value] * (answer != value * 10))

    threads = [threading.Thread(target=work, args=(1000 * n,), daemon=True) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)
    assert most_running == 2
    assert (batcher._free, len(batcher._queue)) == (2, 0)
