"""Natural batching: calls that arrive while others run go out together when those have ended.

There is no timer. A *lane* is the right to run one batch at a time. A call that finds a lane free
takes it and runs at once, alone, in its own greenlet or thread; the others wait. Whoever ends a
batch gives its lane to the call that has waited longest, and that one runs the next batch, for
itself and for those that wait behind it:

    batcher = Batcher(read_orders, lanes=2, most=64)
    order = batcher.call(order_id)  # read_orders gets one to 64 ids, and returns as many orders

So each batch starts after all of its calls have arrived: what it reads is younger than they are.
And no call works for more than its own batch.

| a call that waits | | becomes |
|---|---|---|
| WAITING | is in the queue | LEADS, when it is given a lane; TAKEN, into another one's batch |
| LEADS | has a lane, and is about to be woken | TAKEN, into the batch that it runs itself |
| TAKEN | is in a batch | ENDED; WAITING, when the one that ran the batch was killed |
| ENDED | has its answer, or was killed | – |
"""

import copy
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from ordertrack.errors import Unavailable
from ordertrack.eventlet_support import real_lock, wake_up

V = TypeVar("V")
R = TypeVar("R")


class _Is(Enum):
    WAITING = auto()
    LEADS = auto()
    TAKEN = auto()
    ENDED = auto()


class _Call(Generic[V]):
    __slots__ = ("answer", "arrived", "state", "value", "wakeup")

    def __init__(self, value: V) -> None:
        self.value = value
        self.arrived = time.monotonic()
        self.wakeup = wake_up()
        self.state = _Is.WAITING
        self.answer: Any = None

    def end(self, answer: object) -> None:
        if self.state is not _Is.ENDED:  # its caller still waits
            self.state = _Is.ENDED
            self.answer = answer
            self.wakeup.wake()


class Batcher(Generic[V, R]):
    """Runs calls in batches: *run* gets their values, and returns an answer for each, in order.

    An answer that is an exception is raised in the call that it belongs to; what *run* raises, in
    every call of its batch, each time as another instance. At most *lanes* batches run at a time,
    of at most *most* calls each. *run* is called in the greenlet or thread of one of the callers,
    on behalf of all of them: it must not look at a request.

    A call raises `Unavailable` when *waiting* others wait, and when it has waited for more than
    *patience* seconds by the time that a lane becomes free.

    When the one that runs a batch is killed, the others raise `Unavailable`, and their outcome is
    unknown. With *repeats* they go out again instead: only for what may be done twice, as a read.
    """

    def __init__(
        self,
        run: Callable[[Sequence[V]], Sequence[R | Exception]],
        *,
        lanes: int,
        most: int,
        waiting: int = 10_000,
        patience: float | None = None,
        repeats: bool = False,
    ) -> None:
        self._run = run
        self._free = lanes
        self._most = most
        self._waiting = waiting
        self._patience = patience
        self._repeats = repeats
        self._queue: deque[_Call[V]] = deque()  # empty while a lane is free
        self._lock = real_lock()  # of `_free`, `_queue`, and every call's state

    def call(self, value: V) -> R:
        """The answer to *value*, from a batch that starts after this call."""
        with self._lock:
            if self._free:
                self._free -= 1
                call = None
            elif len(self._queue) < self._waiting:
                call = _Call(value)
                self._queue.append(call)
            else:
                raise Unavailable("Too many requests wait for the database. Try again shortly.")
        if call is None:
            return self._run_alone(value)
        try:
            call.wakeup.wait()
        except BaseException:  # killed
            self._leave(call)
            raise
        if call.state is _Is.LEADS:
            return self._run_batch(call)
        answer: R = _answer_of(call)
        return answer

    def _leave(self, call: _Call[V]) -> None:
        with self._lock:
            was, call.state, call.answer = call.state, _Is.ENDED, None
            if was is _Is.WAITING:
                self._queue.remove(call)
        if was is _Is.LEADS:
            self._pass_lane_on()

    def _pass_lane_on(self) -> None:
        """Give the lane of a batch that has ended to the call that has waited longest."""
        with self._lock:
            call = self._take()
            if call is None:
                self._free += 1
            else:
                call.state = _Is.LEADS
                call.wakeup.wake()

    def _take(self) -> _Call[V] | None:
        while self._queue:
            call = self._queue.popleft()
            if self._patience is None or time.monotonic() - call.arrived <= self._patience:
                return call
            call.end(Unavailable("All database connections are busy. Try again shortly."))
        return None

    def _run_alone(self, value: V) -> R:
        try:
            [answer] = self._run((value,))
        finally:
            self._pass_lane_on()
        if isinstance(answer, Exception):
            try:
                raise answer
            finally:
                del answer  # it holds this frame
        return answer

    def _run_batch(self, leader: _Call[V]) -> R:
        followers: list[_Call[V]] = []
        with self._lock:
            leader.state = _Is.TAKEN
            while len(followers) < self._most - 1 and (call := self._take()) is not None:
                call.state = _Is.TAKEN
                followers.append(call)
        try:
            answers = self._run([leader.value, *(call.value for call in followers)])
            if len(answers) != 1 + len(followers):
                raise RuntimeError(f"{len(answers)} answers to {1 + len(followers)} calls")
        except Exception as error:
            self._pass_lane_on()
            self._end(followers, [_copy(error) for _ in followers])
            raise
        except BaseException:  # killed
            self._give_up(followers)
            self._pass_lane_on()
            raise
        finally:
            leader.state = _Is.ENDED
        # First of all the next batch: its query is sent before these answers are looked at.
        self._pass_lane_on()
        leader.answer, *others = _distinct(answers)
        self._end(followers, others)
        del answers, others
        answer: R = _answer_of(leader)
        return answer

    def _end(self, calls: Sequence[_Call[V]], answers: Sequence[object]) -> None:
        with self._lock:
            for call, answer in zip(calls, answers, strict=True):
                call.end(answer)

    def _give_up(self, calls: Sequence[_Call[V]]) -> None:
        """End calls whose runner was killed, or put them back in front of the queue."""
        with self._lock:
            for call in reversed(calls):
                if not self._repeats:
                    call.end(Unavailable("It is unknown whether this was done. Try again."))
                elif call.state is _Is.TAKEN:
                    call.state = _Is.WAITING
                    self._queue.appendleft(call)


def _answer_of(call: _Call[Any]) -> Any:
    answer, call.answer = call.answer, None
    if isinstance(answer, Exception):
        try:
            raise answer
        finally:
            del answer  # it holds this frame
    return answer


def _distinct(answers: Sequence[R | Exception]) -> list[R | Exception]:
    """The same answers, but no exception twice: raised again it would keep what it went through."""
    seen = set()
    distinct = list(answers)
    for index, answer in enumerate(distinct):
        if isinstance(answer, Exception):
            if id(answer) in seen:
                distinct[index] = _copy(answer)
            seen.add(id(answer))
    return distinct


def _copy(error: Exception) -> Exception:
    try:
        copied = copy.copy(error)
    except Exception:  # noqa: BLE001 - a class whose constructor takes other arguments
        copied = type(error).__new__(type(error), *error.args)
        copied.__dict__.update(error.__dict__)
    copied.__cause__, copied.__context__ = error.__cause__, error.__context__
    copied.__suppress_context__ = error.__suppress_context__
    return copied.with_traceback(error.__traceback__)
