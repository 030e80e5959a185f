"""The stock JavaScript client against the real server."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.echo import Echo, running
from tests.sio.javascript import javascript_client
from tests.support import missing

GOOD = {"token": "good"}


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    missing.node()


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    with running() as started:
        yield started


@pytest.mark.parametrize(
    ("options", "transport"),
    [
        ({"transports": ["websocket"]}, "websocket"),
        ({"transports": ["polling"]}, "polling"),
        ({}, "websocket"),  # by default it upgrades
    ],
    ids=["websocket", "polling", "upgrade"],
)
def test_it_gets_every_event_once_and_in_order(
    server: Echo, options: dict[str, Any], transport: str
) -> None:
    with javascript_client(server.url, auth=GOOD, reconnection=True, **options) as client:
        client.emit("numbers", 2000)  # they are on their way while the transport changes
        client.wait_for("connect")
        if not options:
            assert client.wait_for("upgrade") == "websocket"
        client.emit("join", ["a", "b"])
        assert client.ack() == 2000
        assert client.of("number") == list(range(2000)), "before the acknowledgement"
        assert client.ack() == {"rooms": ["a", "b"]}
        assert client.transport() == transport
        client.emit("bytes")
        assert client.wait_for("blob")["data"]["data"] == [0, 1, 255]
        client.emit("leave me", "disconnect")
        assert client.wait_for("disconnect") == "io server disconnect"
        assert client.of("connect") == [None], "it does not reconnect"
        assert client.of("number") == list(range(2000))


def test_a_refusal_reaches_it_with_its_data(server: Echo) -> None:
    with javascript_client(server.url, auth={"token": "bad"}) as client:
        error = client.wait_for("connect_error")
    assert error == {"message": "no", "data": {"code": "invalid_token"}}


def test_a_server_that_stops_leaves_it_trying_to_reconnect() -> None:
    with (
        running(drain_seconds=2.0) as server,
        javascript_client(
            server.url, auth=GOOD, transports=["websocket"], reconnection=True
        ) as client,
    ):
        client.wait_for("connect")
        server.process.terminate()
        # After "io server disconnect" it would not reconnect.
        assert client.wait_for("disconnect") == "transport close"
