"""The stock JavaScript client (npm's socket.io-client) against the real server."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.echo import Echo, running
from tests.support import missing

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    missing.node()


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    with running() as started:
        yield started


def start(server: Echo, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["node", "client.mjs", server.url, json.dumps(options)],  # noqa: S607
        cwd=HERE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(server: Echo, **options: Any) -> Any:
    with start(server, **options) as client:
        out, _ = client.communicate(timeout=30)
    assert client.returncode == 0, out
    return json.loads(out)


@pytest.mark.parametrize(
    ("options", "transport"),
    [
        ({"transports": ["websocket"]}, "websocket"),
        ({"transports": ["polling"]}, "polling"),
        ({"upgrade": True}, "websocket"),  # as it does unless told otherwise
    ],
    ids=["websocket", "polling", "upgrade"],
)
def test_it_gets_every_event_once_and_in_order(
    server: Echo, options: dict[str, Any], transport: str
) -> None:
    seen = run(server, count=2000, rooms=["a", "b"], **options)
    assert seen["transport"] == transport
    assert seen["numbers"] == list(range(2000))
    assert seen["acknowledged"] == 2000
    assert seen["numbersAtAcknowledgement"] == 2000
    assert seen["joined"] == {"rooms": ["a", "b"]}
    assert seen["binary"] == [0, 1, 255]
    assert seen["disconnects"] == ["io server disconnect"]


def test_a_refusal_reaches_it_with_its_data(server: Echo) -> None:
    seen = run(server, auth={"token": "bad"}, count=0, rooms=[])
    assert seen["error"] == {"message": "no", "data": {"code": "invalid_token"}}


def test_a_server_that_stops_leaves_it_trying_to_come_back() -> None:
    with running(drain_seconds=2.0) as server:
        client = start(server, transports=["websocket"], count=1, rooms=[], restart=True)
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        server.process.terminate()
        out, _ = client.communicate(timeout=30)
    # "io server disconnect" would tell it to stay away.
    assert json.loads(out)["disconnects"] == ["transport close"]
