"""File descriptors are shared out between HTTP, WebSockets and the database."""

import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import websockets.sync.client as websockets
from websockets.exceptions import InvalidStatus

from ordertrack.server.descriptors import TooFewDescriptors, capacity_for
from ordertrack.server.server import bind
from tests.server.test_http_limits import is_closed
from tests.support.databases import Postgres
from tests.support.servers import Server, running_server
from tests.support.waiting import eventually

SCRIPT = "tests/server/few_descriptors.py"


def test_with_enough_descriptors_the_capacity_is_what_was_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    assert capacity_for(10_000, descriptors=1_048_576, database=12).websockets == 10_000
    assert not caplog.records


@pytest.mark.parametrize("descriptors", [200, 256, 1024, 4096, 10_000, 65_536])
@pytest.mark.parametrize("wanted", [1, 1000, 10_000, 1_000_000])
def test_http_and_the_database_keep_their_share_of_descriptors(
    descriptors: int, wanted: int, caplog: pytest.LogCaptureFixture
) -> None:
    capacity = capacity_for(wanted, descriptors=descriptors, database=12)
    assert 1 <= capacity.websockets <= wanted
    assert capacity.connections - capacity.websockets >= 32
    assert descriptors - capacity.connections >= 100 + 12
    limited = f"{capacity.websockets} connections are taken" in caplog.text
    assert (capacity.websockets < wanted) == limited


def test_too_few_descriptors_are_refused_with_what_to_do() -> None:
    with pytest.raises(TooFewDescriptors, match=r"at most 150 .* at least 176 .*ulimit -n"):
        capacity_for(10, descriptors=150, database=12)


def test_with_too_few_descriptors_the_server_does_not_start(database: str) -> None:
    with (
        pytest.raises(RuntimeError, match=r"ended with 1:[^~]*raise the limit \(ulimit -n\)"),
        running_server(database, script=SCRIPT, FEW_DESCRIPTORS="120"),
    ):
        pass


@pytest.fixture
def small(database: str) -> Callable[..., contextlib.AbstractContextManager[Server]]:
    def start(**settings: str) -> contextlib.AbstractContextManager[Server]:
        return running_server(database, script=SCRIPT, FEW_DESCRIPTORS="300", **settings)

    return start


def test_sockets_leave_http_and_the_database_their_descriptors(
    small: Callable[..., contextlib.AbstractContextManager[Server]], postgres: Postgres
) -> None:
    with small(MAX_CONNECTIONS_PER_USER="1000") as server, contextlib.ExitStack() as stack:
        owner = server.people.customer()
        order = owner.api.post("/api/orders", json={"description": "x"}).json()["id"]

        def watch() -> None:
            stack.enter_context(
                websockets.connect(
                    f"{server.ws_url}/ws/orders/{order}",
                    additional_headers={"Authorization": f"Bearer {owner.token}"},
                )
            )

        for _ in range(156):  # 300 less 100 spare, 12 for the database and 32 for HTTP
            watch()
        with pytest.raises(InvalidStatus) as refused:
            watch()
        assert refused.value.response.status_code in (429, 503)
        assert "MAX_CONNECTIONS is 10000, but at most 300 files may be open" in server.log
        assert "156 connections are taken" in server.log

        # New connections now: the relay's, the pool's, and 200 idle clients'.
        for _ in range(200):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        assert 300 - len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) > 80
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            dsn=postgres.as_superuser(server.dsn),
        )
        eventually(lambda: server.api.get("/readyz").status_code == 200)
        answer = owner.api.get(f"/api/orders/{order}")
        assert answer.status_code == 200
        assert "Traceback" not in server.log


@pytest.mark.safety("pipelining-and-idling")
@pytest.mark.parametrize(("proxies", "left"), [("0", 10), ("1", 40)])
def test_connections_per_address_are_bounded_unless_it_is_a_proxy(
    small: Callable[..., contextlib.AbstractContextManager[Server]], proxies: str, left: int
) -> None:
    with (
        small(TRUSTED_PROXIES=proxies, FEW_PER_ADDRESS="10") as server,
        contextlib.ExitStack() as stack,
    ):
        idle = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
            for _ in range(40)
        ]
        last = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
        last.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert last.recv(4096).startswith(b"HTTP/1.1 200")  # accepted after all of them
        closed = sum(is_closed(client) for client in idle)
        # This one is no longer idle for a moment, and another was used to see the server start.
        assert 40 - left <= closed <= (0 if left == 40 else 42 - left)


def test_a_taken_port_is_reported_before_anything_else(database: str) -> None:
    """Started twice, the server says this, and not that the database is in use as well."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(RuntimeError) as ended,
            running_server("host=127.0.0.1 port=1 user=me dbname=x", PORT=str(port)),
        ):
            pass
    told = str(ended.value).partition(":\n")[2].splitlines()
    assert len(told) == 1
    assert f"HOST and PORT name 127.0.0.1 and {port}, which cannot be listened on" in told[0]


def test_a_bound_port_refuses_connections_until_the_server_is_ready() -> None:
    """So a load balancer uses another instance while a migration runs."""
    (bound,) = bind("127.0.0.1", 0)
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(bound.getsockname())
    bound.close()
