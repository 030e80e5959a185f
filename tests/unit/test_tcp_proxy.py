"""The proxy of the fault tests does what it says: a harness that lies proves nothing."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.tcp_proxy import DOWN, UP, TcpProxy
from tests.support.waiting import eventually

# Long enough for bytes to come that should not; that they stay away is all it shows.
A_WHILE = 0.1


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[TcpProxy]:
    with TcpProxy(echo) as made:
        yield made


def dial(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def read(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        data = client.recv(count - len(found))
        if not data:
            break
        found += data
    return found


def nothing_comes(client: socket.socket) -> bool:
    client.settimeout(A_WHILE)
    try:
        return client.recv(1) is None
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)


def test_what_is_sent_passes_both_ways_and_is_counted(proxy: TcpProxy) -> None:
    with closing(dial(proxy)) as client:
        client.sendall(b"hello")
        assert read(client, 5) == b"hello"
        [connection] = eventually(lambda: proxy.connections)
        eventually(lambda: (connection.up, connection.down) == (5, 5))


def test_the_end_of_a_connection_passes_too(proxy: TcpProxy) -> None:
    with closing(dial(proxy)) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert read(client, 100) == b"last words"
    eventually(lambda: not proxy.connections)


def test_a_cut_resets_every_connection_and_the_next_one_works(proxy: TcpProxy) -> None:
    with closing(dial(proxy)) as client:
        eventually(lambda: proxy.connections)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with closing(dial(proxy)) as client:
        client.sendall(b"again")
        assert read(client, 5) == b"again"


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_connection_is_cut_at_a_byte(proxy: TcpProxy, direction: str) -> None:
    proxy.cut_after(3, direction)
    with closing(dial(proxy)) as client:
        client.sendall(b"hello")
        with pytest.raises(ConnectionResetError):
            read(client, 5)
    proxy.heal()
    with closing(dial(proxy)) as client:
        client.sendall(b"hello")
        assert read(client, 5) == b"hello"


def test_a_pause_holds_everything_back_and_loses_nothing(proxy: TcpProxy) -> None:
    with closing(dial(proxy)) as client:
        proxy.pause()
        client.sendall(b"one")
        with closing(dial(proxy)) as another:
            another.sendall(b"two")
            assert nothing_comes(client)
            assert nothing_comes(another)
            proxy.resume()
            assert read(client, 3) == b"one"
            assert read(another, 3) == b"two"


def test_answers_can_be_lost_while_requests_arrive(proxy: TcpProxy) -> None:
    with closing(dial(proxy)) as client:
        proxy.drop(DOWN)
        client.sendall(b"lost")
        assert nothing_comes(client)
        [connection] = proxy.connections
        assert (connection.up, connection.down) == (4, 0)
        proxy.heal()
        client.sendall(b"kept")
        assert read(client, 4) == b"kept"


def test_connections_are_refused_and_accepted_again_on_the_same_port(proxy: TcpProxy) -> None:
    port = proxy.port
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        dial(proxy)
    proxy.accept()
    assert proxy.port == port
    with closing(dial(proxy)) as client:
        client.sendall(b"back")
        assert read(client, 4) == b"back"


def test_a_target_that_is_gone_looks_like_a_reset(proxy: TcpProxy, echo: int) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        proxy.target = unused.getsockname()[1]
        # It may come as early as the connection itself.
        with pytest.raises(ConnectionResetError), closing(dial(proxy)) as client:
            client.recv(1)
    proxy.target = echo
    with closing(dial(proxy)) as client:
        client.sendall(b"moved")
        assert read(client, 5) == b"moved"


def test_a_filter_changes_what_passes(proxy: TcpProxy) -> None:
    proxy.filter(lambda: lambda data: data.upper())
    with closing(dial(proxy)) as client:
        client.sendall(b"quiet")
        assert read(client, 5) == b"QUIET"
