"""Our hub's waits: what wakes them, what ends them, and descriptors that are closed and reused."""

import contextlib
import functools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import eventlet
import eventlet.green.subprocess
import eventlet.greenio
import eventlet.hubs
import eventlet.tpool
import psycopg2
import pytest
from psycopg2.extensions import get_wait_callback, set_wait_callback

from ordertrack.eventlet_hub import PRECISION, READ, WRITE, forget, wait_until
from ordertrack.eventlet_support import NoAnswer, bound_database_waits
from tests.support.databases import Postgres
from tests.support.hubs import HUBS, with_hub

LONG = 10.0


def on(*hubs: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run the test on each of these hubs, with `Pairs` as its argument."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("hub", hubs)
        def run(hub: str) -> None:
            with Pairs() as pairs:
                with_hub(hub, lambda: test(pairs))

        run.__name__ = test.__name__
        run.__doc__ = test.__doc__
        return run

    return decorate


class Pairs(contextlib.ExitStack):
    """Makes pairs of connected sockets, all closed at the end."""

    def make(self) -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair()
        for one in pair:
            one.setblocking(False)
            self.enter_context(one)
        return pair


def wait(one: Any, events: int = READ, seconds: float = LONG) -> bool:
    descriptor = one if isinstance(one, int) else one.fileno()
    return wait_until(descriptor, events, time.monotonic() + seconds)


def turns(count: int = 3) -> None:
    for _ in range(count):
        eventlet.sleep(0)


@contextlib.contextmanager
def polls() -> Iterator[list[int]]:
    """The numbers of events that the hub's epoll reports meanwhile, one for each time."""
    hub: Any = eventlet.hubs.get_hub()
    epoll, seen = hub.poll, []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(epoll, name)

        def poll(self, seconds: float) -> Any:
            events = epoll.poll(seconds)
            seen.append(len(events))
            return events

    hub.poll = Counting()
    try:
        yield seen
    finally:
        hub.poll = epoll


@on(*HUBS)
def test_each_wait_ends_when_its_descriptor_is_ready(pairs: Pairs) -> None:
    one, other = pairs.make()
    assert wait(one, WRITE)
    for number in range(3):
        waiting = eventlet.spawn(wait, one)
        turns()
        assert not waiting.dead
        other.send(bytes([number]))
        assert waiting.wait()
        assert one.recv(10) == bytes([number])
    other.send(b"before the wait")
    assert wait(one)
    assert one.recv(100)
    other.close()
    assert wait(one), "the end of the stream can be read"


@on("ours")
def test_bytes_that_were_not_all_read_end_the_next_wait_as_well(pairs: Pairs) -> None:
    one, other = pairs.make()
    other.send(b"ab")
    for _ in range(2):
        assert wait(one)
        one.recv(1)
    assert not wait(one, seconds=0.05)


@on(*HUBS)
def test_a_wait_ends_after_its_deadline_and_never_before(pairs: Pairs) -> None:
    def measure(seconds: float) -> float:
        began = time.monotonic()
        assert not wait(pairs.make()[0], seconds=seconds)
        return time.monotonic() - began

    eventlet.spawn(wait, pairs.make()[0], READ, LONG)  # must not delay the others
    wanted = [0.3, 0.02, 0.0, -1.0, 0.12, 0.1]
    took = [(seconds, eventlet.spawn(measure, seconds)) for seconds in wanted]
    for seconds, measured in took:
        assert seconds <= measured.wait() < max(seconds, 0) + PRECISION + 0.5


@on("ours")
def test_deadlines_are_looked_through_when_one_is_due_only(pairs: Pairs) -> None:
    for _ in range(100):
        eventlet.spawn(wait, pairs.make()[0], READ, LONG)
    with polls() as seen:
        eventlet.sleep(PRECISION * 6)
    assert len(seen) <= 6, "the loop sleeps while no deadline is due"


@on("ours")
def test_nothing_is_reported_while_nobody_waits(pairs: Pairs) -> None:
    one, other = pairs.make()
    with pytest.raises(eventlet.Timeout), eventlet.Timeout(0.01):
        wait(one)  # which leaves it armed
    other.send(b"x")
    with polls() as seen:
        turns(10)
        other.send(b"y")
        turns(10)
    assert sum(seen) == 1
    assert wait(one), "it is not lost for the next wait"


@on(*HUBS)
def test_a_wait_that_is_broken_off_does_not_wake_its_greenlet_later(pairs: Pairs) -> None:
    one, other = pairs.make()
    woken: list[str] = []

    def work() -> None:
        try:
            with eventlet.Timeout(0.01):
                wait(one)
        except eventlet.Timeout:
            woken.append("timeout")
        other.send(b"x")
        eventlet.sleep(0.1)
        woken.append("slept")

    began = time.monotonic()
    eventlet.spawn(work).wait()
    assert woken == ["timeout", "slept"]
    assert time.monotonic() - began > 0.1
    assert wait(one)


@on("ours")
def test_a_greenlet_ended_by_another_one_in_the_same_turn_is_not_resumed(pairs: Pairs) -> None:
    (one, to_one), (two, to_two) = pairs.make(), pairs.make()
    log: list[str] = []
    threads: dict[str, Any] = {}

    def work(name: str, own: socket.socket, victim: str) -> None:
        try:
            wait(own)
            eventlet.kill(threads[victim], KeyError("ended"))
            log.append(name)
        except KeyError:
            log.append("ended")
            eventlet.sleep(0.05)
            log.append("slept")

    threads["one"] = eventlet.spawn(work, "one", one, "two")
    threads["two"] = eventlet.spawn(work, "two", two, "one")
    turns()
    to_one.send(b"x")
    to_two.send(b"x")
    began = time.monotonic()
    while len(log) < 3:
        eventlet.sleep(0.01)
    assert sorted(log) in (["ended", "one", "slept"], ["ended", "slept", "two"])
    assert time.monotonic() - began >= 0.05, "its sleep was not cut short"


@on("ours")
def test_two_greenlets_cannot_wait_for_one_descriptor(pairs: Pairs) -> None:
    one, other = pairs.make()
    first = eventlet.spawn(wait, one)
    turns()
    with pytest.raises(RuntimeError, match="Two greenlets"):
        wait(one, WRITE)
    with pytest.raises(RuntimeError, match="Two greenlets"):
        eventlet.hubs.trampoline(one, write=True)
    other.send(b"x")
    assert first.wait()
    second = eventlet.spawn(eventlet.hubs.trampoline, one, write=False, read=True)
    one.recv(1)
    turns()
    with pytest.raises(RuntimeError, match="Two greenlets"):
        wait(one)
    other.send(b"x")
    second.wait()


@on("ours")
def test_a_reused_number_is_another_descriptor(pairs: Pairs) -> None:
    """A library closes descriptors without telling the hub, and the kernel gives them out again."""
    (one, other), (new, to_new) = pairs.make(), pairs.make()
    number = os.dup(one.fileno())
    other.send(b"x")
    assert wait(number)
    one.close()
    os.dup2(new.fileno(), number)  # closes the old file, which is in the epoll
    try:
        waiting = eventlet.spawn(wait, number)
        turns()
        assert not waiting.dead, "the old file's bytes do not count"
        to_new.send(b"x")
        assert waiting.wait()
    finally:
        os.close(number)


@on("ours")
def test_who_waited_for_the_old_file_of_a_reused_number_is_told(pairs: Pairs) -> None:
    (one, _other), (new, to_new) = pairs.make(), pairs.make()
    number = os.dup(one.fileno())
    for wait_anew in (wait, functools.partial(eventlet.hubs.trampoline, read=True)):
        first = eventlet.spawn(wait, number)
        turns()
        os.dup2(new.fileno(), number)
        second = eventlet.spawn(wait_anew, number)
        with pytest.raises(OSError, match="closed"):
            first.wait()
        assert not second.dead
        to_new.send(b"x")
        second.wait()
        assert new.recv(1) == b"x"
        (new, to_new) = pairs.make()
    os.close(number)


@on("ours")
def test_a_number_that_the_kernel_gives_out_again_ends_the_wait_for_it(pairs: Pairs) -> None:
    one, other = pairs.make()
    waiting = eventlet.spawn(wait, one)
    turns()
    eventlet.hubs.notify_opened(one.fileno())
    with pytest.raises(OSError):  # noqa: PT011 (whichever)
        waiting.wait()
    other.send(b"x")
    assert wait(one)


@on("ours")
def test_a_closed_descriptor_cannot_be_waited_for(pairs: Pairs) -> None:
    one, _other = pairs.make()
    number = one.fileno()
    one.close()
    for closed in (one, number):
        with pytest.raises(OSError):  # noqa: PT011 (whichever)
            wait(closed)


@on("ours")
def test_eventlets_waits_and_ours_alternate_on_one_descriptor(pairs: Pairs) -> None:
    one, other = pairs.make()
    ours = functools.partial(wait, one)
    theirs = functools.partial(eventlet.hubs.trampoline, one, read=True, timeout=LONG)
    for each in (ours, theirs, theirs, ours, ours, theirs):
        waiting = eventlet.spawn(each)
        turns()
        assert not waiting.dead
        other.send(b"x")
        waiting.wait()
        one.recv(1)
    green = eventlet.greenio.GreenSocket(one)
    green.settimeout(0.05)
    with pytest.raises(TimeoutError):
        green.recv(1)
    assert not wait(one, seconds=0.05)
    reading = eventlet.spawn(green.recv, 1)
    turns()
    other.send(b"y")
    assert reading.wait() == b"y"


@on("ours")
def test_a_listener_for_a_closed_file_does_not_end_the_wait_for_the_next(pairs: Pairs) -> None:
    old, _ = pairs.make()
    new, other = pairs.make()
    number = old.fileno()

    def listen() -> None:
        with pytest.raises(eventlet.hubs.IOClosed):
            eventlet.hubs.trampoline(number, read=True)

    listening = eventlet.spawn(listen)
    turns()
    os.dup2(new.fileno(), number)
    waiting = eventlet.spawn(wait, number, seconds=1.0)
    turns()  # the first is told, and removes its listener
    listening.wait()
    other.send(b"x")
    assert waiting.wait(), "not woken"


@on("ours")
def test_an_event_that_nobody_waits_for_is_not_kept(pairs: Pairs) -> None:
    one, other = pairs.make()
    waiting = eventlet.spawn(wait, one)
    turns()
    waiting.kill()
    other.send(b"x")
    turns()
    hub: Any = eventlet.hubs.get_hub()
    assert not hub._others


@on("ours")
def test_a_forgotten_descriptor_can_be_watched_elsewhere(pairs: Pairs) -> None:
    one, other = pairs.make()
    other.send(b"x")
    assert wait(one)
    forget(one.fileno())
    forget(one.fileno())
    hub: Any = eventlet.hubs.get_hub()
    with pytest.raises(FileNotFoundError):
        hub.poll.unregister(one.fileno())
    assert wait(one)


@on("ours")
def test_an_exception_in_a_greenlet_does_not_affect_the_others(pairs: Pairs) -> None:
    hub: Any = eventlet.hubs.get_hub()
    hub.debug_exceptions = False

    def fail(own: socket.socket) -> None:
        wait(own)
        raise ZeroDivisionError

    made = [pairs.make() for _ in range(3)]
    eventlet.spawn_n(fail, made[0][0])
    waiting = [eventlet.spawn(wait, one) for one, _ in made[1:]]
    turns()
    for _, other in made:
        other.send(b"x")
    assert all(one.wait() for one in waiting)


@on("ours")
def test_what_else_eventlet_offers_works(pairs: Pairs) -> None:
    began = time.monotonic()
    blocked = eventlet.spawn(eventlet.tpool.execute, time.sleep, 0.1)
    listening = eventlet.listen(("127.0.0.1", 0))
    client = eventlet.connect(listening.getsockname())
    served, _ = listening.accept()
    served.sendall(b"x" * 10)
    assert client.recv(100) == b"x" * 10
    with pytest.raises(eventlet.Timeout), eventlet.Timeout(0.02):
        client.recv(1)
    child = eventlet.green.subprocess.Popen(["/bin/sh", "-c", "echo a"], stdout=subprocess.PIPE)
    assert child.communicate()[0] == b"a\n"
    blocked.wait()
    assert 0.1 <= time.monotonic() - began < LONG
    eventlet.tpool.killall()
    for one in (listening, client, served):
        one.close()


@pytest.fixture
def green_psycopg() -> Iterator[None]:
    before = get_wait_callback()
    bound_database_waits(connect=2.0, answer=0.3)
    try:
        yield
    finally:
        set_wait_callback(before)


@pytest.mark.parametrize("hub", HUBS)
def test_connections_of_psycopg2_come_and_go_on_the_same_numbers(
    postgres: Postgres, green_psycopg: None, hub: str
) -> None:
    """libpq closes its sockets, and opens others, without a word to the hub."""

    def work() -> None:
        descriptors = []
        for number in range(5):
            connection = psycopg2.connect(postgres.dsn)
            descriptors.append(connection.fileno())
            cursor = connection.cursor()
            for _ in range(3):
                cursor.execute("SELECT %s, pg_sleep(0.01)", [number])
                assert cursor.fetchone()[0] == number  # type: ignore[index]
            connection.close()
        assert len(set(descriptors)) < 5, "a number was used again"

    with_hub(hub, work)


@pytest.mark.parametrize("hub", HUBS)
def test_the_wait_for_an_answer_ends(postgres: Postgres, green_psycopg: None, hub: str) -> None:
    def work() -> None:
        connection = psycopg2.connect(postgres.dsn)
        began = time.monotonic()
        with pytest.raises(NoAnswer, match=r"for 0\.3 seconds"):
            connection.cursor().execute("SELECT pg_sleep(10)")
        assert 0.3 <= time.monotonic() - began < 2
        assert connection.closed

    with_hub(hub, work)
