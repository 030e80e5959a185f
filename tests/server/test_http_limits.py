"""Limits of the HTTP server on connections, time and turns of the loop, on real sockets."""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.echo import Echo, running
from tests.support.waiting import eventually

GET = b"GET /odd/ok HTTP/1.1\r\nHost: x\r\n\r\n"
NOT_FOUND = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
CRUMBS = (
    b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"1\r\nx\r\n" * 2000
    + b"0\r\n\r\n"
)


def connect(server: Echo, *, window: int | None = None) -> socket.socket:
    client = socket.socket()
    client.settimeout(20)
    if window is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    client.connect(("127.0.0.1", server.port))
    return client


def ask(client: socket.socket, request: bytes = GET) -> bytes:
    """The response to a small request."""
    client.sendall(request)
    return client.recv(65536)


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed the connection without sending anything more."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    finally:
        client.settimeout(20)


class Flood:
    """Sends requests on one connection without waiting for responses, until the block ends."""

    def __init__(self, server: Echo, request: bytes) -> None:
        self._client = connect(server)
        self._blob = request * (200_000 // len(request))
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._read)]
        self.answers = 0

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while not self._over.is_set():
                self._client.sendall(self._blob)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(1_000_000):
                self.answers += data.count(b"HTTP/1.1 ")

    def __enter__(self) -> "Flood":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._client.close()


def took(client: socket.socket, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.monotonic()
        assert ask(client).startswith(b"HTTP/1.1 200")
        times.append((time.monotonic() - began) * 1000)
    return times


@pytest.mark.safety("pipelining-and-idling")
@pytest.mark.parametrize("request_", [NOT_FOUND, CRUMBS], ids=["404s", "chunks of one byte"])
def test_a_pipelining_flood_does_not_starve_other_connections(request_: bytes) -> None:
    """Without a clock: others' requests are answered one by one during the flood."""
    with running() as server, connect(server) as other:
        before = took(other, 100)
        with Flood(server, request_) as flood:
            eventually(lambda: flood.answers > 0)
            seen = [flood.answers]
            during = []
            for _ in range(10):
                during += took(other, 10)
                seen.append(flood.answers)
            eventually(lambda: flood.answers > seen[-1])  # it still goes on
        per_request = (seen[-1] - seen[0]) / 100
        assert per_request < 50, f"{per_request} of the flood's for one of the others'"
        shown = [statistics.quantiles(times, n=100)[98] for times in (before, during)]
        print(  # noqa: T201
            f"p99 before {shown[0]:.1f} ms, during {shown[1]:.1f} ms;"
            f" {per_request:.1f} of the flood's requests for each of the others'"
        )


@pytest.fixture
def crowd() -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        clients: list[socket.socket] = []
        stack.callback(lambda: [client.close() for client in clients])
        yield clients


@pytest.mark.safety("pipelining-and-idling")
@pytest.mark.parametrize("said", [b"", b"GET / HT"], ids=["idle", "half a request"])
def test_waiting_connections_are_bounded_per_address(
    crowd: list[socket.socket], said: bytes
) -> None:
    with running(per_address=30, drain_seconds=0.2) as server:
        for _ in range(100):
            crowd.append(connect(server))
            crowd[-1].sendall(said)
        eventually(lambda: [is_closed(client) for client in crowd] == [True] * 70 + [False] * 30)
        with connect(server) as another:
            assert ask(another).startswith(b"HTTP/1.1 200")


@pytest.mark.safety("pipelining-and-idling")
def test_at_capacity_the_oldest_idle_connection_is_evicted(crowd: list[socket.socket]) -> None:
    with running(capacity=20, per_address=None) as server:
        busy = connect(server)
        busy.sendall(b"GET /slow/1.0 HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: server.stats()["begun"])
        for _ in range(100):
            crowd.append(connect(server))
            assert ask(crowd[-1]).startswith(b"HTTP/1.1 200")
        assert busy.recv(65536).startswith(b"HTTP/1.1 200"), "a request in flight is not evicted"
        assert not is_closed(crowd[-1])
        assert all(is_closed(client) for client in crowd[:70])
        busy.close()


def test_at_capacity_new_connections_wait_while_all_others_are_busy(
    crowd: list[socket.socket],
) -> None:
    slow = b"GET /slow/0.3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with running(capacity=3, per_address=None) as server:
        for _ in range(9):
            crowd.append(connect(server))
            crowd[-1].sendall(slow)
        for client in crowd:
            assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.safety("pipelining-and-idling")
def test_a_request_has_to_arrive_whole_in_time() -> None:
    sent = 0
    with running(REQUEST_SECONDS=0.5) as server, connect(server) as client:
        client.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n")
        while not is_closed(client):
            assert sent < 1000, "it still waits"
            with contextlib.suppress(OSError):
                client.sendall(b"x")
            sent += 1
            time.sleep(0.02)  # this client's pace
    assert sent > 5


def test_an_idle_connection_is_closed_after_a_while() -> None:
    with running(KEEPALIVE_SECONDS=0.2) as server, connect(server) as client:
        assert ask(client).startswith(b"HTTP/1.1 200")
        assert client.recv(1) == b""


def read_slowly(client: socket.socket, query: int) -> int:
    """The bytes received of a response of 20 KB times *query*, read at 200 KB/s at most."""
    client.sendall(b"GET /odd/large?%d HTTP/1.0\r\n\r\n" % query)
    received = 0
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(4096):
            received += len(data)
            time.sleep(0.02)
    return received


@pytest.mark.safety("pipelining-and-idling")
def test_a_response_has_to_be_read_whole_in_time() -> None:
    with running(RESPONSE_SECONDS=0.5, RESPONSE_BYTES_PER_SECOND=1e7) as server:
        with connect(server, window=4096) as client:
            assert read_slowly(client, 50) < 1_000_000
        with connect(server) as another:
            assert ask(another).startswith(b"HTTP/1.1 200")


def test_a_long_response_may_be_read_for_longer() -> None:
    with (
        running(RESPONSE_SECONDS=1.0, RESPONSE_BYTES_PER_SECOND=10_000) as server,
        connect(server, window=4096) as client,
    ):
        assert read_slowly(client, 30) > 600_000


def test_a_connection_that_failed_before_accept_affects_no_other() -> None:
    """One listening socket fails at every call, which must not starve the others."""
    with running(accept_error="ECONNABORTED") as server, connect(server) as client:
        assert ask(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("error", ["EMFILE", "ENOBUFS"])
def test_a_shortage_of_descriptors_at_accept_passes(error: str) -> None:
    with running(accept_error=error) as server, connect(server) as client:
        assert ask(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("error", ["ENOTSOCK", "something unheard of"])
def test_a_server_that_cannot_accept_any_more_exits_with_an_error(
    error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(accept_error=error) as server:
        assert server.process.wait(20) == 1
    assert "Connections cannot be accepted any more" in capfd.readouterr().err


@pytest.mark.safety("full-for-an-hour")
def test_a_full_server_keeps_nothing_of_the_clients_it_turns_away() -> None:
    """Nor of those that close while they wait, or in the middle of a request."""
    with running(capacity=20, per_address=None, drain_seconds=0.2) as server:
        open_files = Path(f"/proc/{server.process.pid}/fd")
        memory = 0
        for round_ in range(15):
            with contextlib.ExitStack() as stack:
                for number in range(100):
                    client = stack.enter_context(connect(server))
                    client.sendall((b"", GET, GET[:10], CRUMBS)[number % 4])
                assert ask(client).startswith(b"HTTP/1.1 200")
            if round_ == 4:  # everything has been used once
                memory = server.memory()
        eventually(lambda: len(list(open_files.iterdir())) < 40)
        grown = server.memory() - memory
        print(f"grown by {grown / 1024:.0f} KiB over 1,000 connections")  # noqa: T201
        assert grown < 3_000_000
