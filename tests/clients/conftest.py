"""Fixtures of the client tests: a server behind a network that can fail, and both libraries."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.drivers import NodeStream, PythonStream, Stream
from tests.support import missing
from tests.support.people import Person
from tests.support.servers import Server
from tests.support.tcp_proxy import TcpProxy


@pytest.fixture(scope="session")
def node() -> str:
    """Node, which finds the stock Socket.IO client."""
    return missing.node()


@pytest.fixture(params=["python", "node"])
def client(request: pytest.FixtureRequest) -> type[Stream]:
    """Each scenario runs with either client."""
    if request.param == "python":
        return PythonStream
    request.getfixturevalue("node")
    return NodeStream


@pytest.fixture
def network(server: Server) -> Iterator[TcpProxy]:
    """The way to the shared server."""
    with TcpProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def open_stream(client: type[Stream], network: TcpProxy) -> Iterator[Callable[..., Stream]]:
    """Opens streams through `network`: ``open_stream(person)``."""
    opened: list[Stream] = []

    def open_(person: Person, *, url: str | None = None, **options: Any) -> Stream:
        opened.append(client(url or network.url, person.token, **options))  # type: ignore[call-arg]
        return opened[-1]

    yield open_
    for stream in opened:
        stream.close()


@pytest.fixture
def customer(server: Server) -> Person:
    return server.people.customer()


@pytest.fixture
def driver(server: Server) -> Person:
    return server.people.driver()


@pytest.fixture(scope="module")
def long_order(server: Server) -> tuple[Person, dict[str, Any]]:
    """A customer, and an order of theirs with more history than is replayed: 502 events."""
    owner = server.people.customer()
    order = owner.order()
    for number in range(501):
        order = owner.edit(order, f"box {number}")
    return owner, order
