"""A server at its limit keeps nothing of the requests that it refuses, however many."""

import importlib
import pkgutil
import socket
from collections.abc import Iterator

import pytest

import ordertrack
from tests.server.echo import running
from tests.server.wire import handshake
from tests.sio.clients import WebSocketClient

REFUSALS = 3000


def answers(port: int, request: bytes, count: int, *, batch: int = 50) -> Iterator[bytes]:
    """The heads of *count* responses to the same request, over one connection."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        reading = connection.makefile("rb")
        for _ in range(count // batch):
            connection.sendall(request * batch)
            for _ in range(batch):
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = reading.readline()
                    assert line, f"closed after {head!r}"
                    head += line
                length = next(
                    int(line[15:]) for line in head.lower().split(b"\r\n") if b"nt-length:" in line
                )
                reading.read(length)
                yield head


@pytest.mark.safety("full-for-an-hour")
def test_refusals_keep_no_request_alive() -> None:
    polling = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n"
    with running(max_connections=2) as server:
        clients = [WebSocketClient(server.port) for _ in range(2)]
        before, memory = server.get("/alive")["environs"], server.memory()
        for request in (
            polling,
            handshake("/socket.io/?EIO=4&transport=websocket", server.port),
            handshake("/ws", server.port),
        ):
            for head in answers(server.port, request, REFUSALS):
                assert head.startswith(b"HTTP/1.1 503 "), head
        assert server.get("/alive")["environs"] <= before + 3
        assert server.memory() - memory < 10_000_000
        for client in clients:
            client.close()


def test_no_exception_is_created_before_it_is_raised() -> None:
    """An exception that is raised again and again keeps the stack frames of each time."""
    kept = []
    for found in pkgutil.walk_packages(ordertrack.__path__, "ordertrack."):
        module = importlib.import_module(found.name)
        classes = [one for one in vars(module).values() if isinstance(one, type)]
        for scope in [module, *classes]:
            for name, value in vars(scope).items():
                if isinstance(value, BaseException):
                    kept.append(f"{found.name}: {scope.__name__}.{name}")
    assert kept == []
