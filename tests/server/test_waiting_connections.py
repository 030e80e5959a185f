"""Which waiting connection is evicted, what counts as one address, and when other greenlets run."""

import socket
from typing import Any

import eventlet
import eventlet.hubs
import pytest

from ordertrack.networks import network_of
from ordertrack.server.http_connection import Connection
from ordertrack.server.waiting_connections import WaitingConnections
from tests.support.hubs import HUBS, with_hub


class Peer:
    def __init__(self, address: str) -> None:
        self.network = address
        self.ended = False

    def hang_up(self) -> None:
        self.ended = True


def test_the_oldest_connection_of_an_address_is_evicted_first() -> None:
    waiting: WaitingConnections[Peer] = WaitingConnections(most=100, per_address=2)
    other = Peer("192.0.2.9")
    waiting.add(other)
    own = [Peer("192.0.2.1") for _ in range(4)]
    waiting.add(own[0])
    waiting.add(own[1])
    waiting.discard(own[0])  # its request has arrived, and it waits again
    waiting.add(own[0])
    waiting.add(own[2])
    assert [peer.ended for peer in own] == [False, True, False, False]
    assert not other.ended
    assert list(waiting) == [other, own[0], own[2]]


def test_the_oldest_of_all_connections_is_evicted_at_the_limit() -> None:
    waiting: WaitingConnections[Peer] = WaitingConnections(most=2, per_address=None)
    peers = [Peer(f"192.0.2.{number}") for number in range(3)]
    for peer in peers:
        waiting.add(peer)
    assert [peer.ended for peer in peers] == [True, False, False]
    assert waiting.evict_oldest() is peers[1]
    assert waiting.evict_oldest() is peers[2]
    assert waiting.evict_oldest() is None
    assert waiting.evicted == 3
    waiting.discard(peers[0])  # as its own greenlet does when it ends


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("2001:db8::1", "2001:db8:0:0:1:2:3:4", True),
        ("::1", "::2", True),
        ("2001:db8:1:2:3:4:5::", "2001:db8:1:2::", True),
    ],
)
def test_one_ipv6_network_counts_as_one_address(one: str, other: str, same: bool) -> None:
    """An IPv6 client chooses half of its address by itself."""
    assert (network_of(one) == network_of(other)) is same


def _app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("204 No Content", [])
    return []


class _Server:
    app = staticmethod(_app)
    environ: dict[str, Any] = {}  # noqa: RUF012 (copied for each request)
    stopping = False
    max_body_bytes = 1000

    def __init__(self) -> None:
        self.waiting: WaitingConnections[Connection] = WaitingConnections()
        self.gone: list[Connection] = []

    def ended(self, connection: Connection) -> None:
        self.gone.append(connection)


def test_a_descriptor_closed_by_another_greenlet_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Eventlet raises EOFError in the greenlet that waits for it."""
    one, other = socket.socketpair()
    one.setblocking(False)
    server = _Server()
    connection = Connection(server, one, ("192.0.2.1", 1))
    serving = eventlet.spawn(connection.serve)
    eventlet.sleep(0)  # it waits now
    eventlet.hubs.notify_opened(one.fileno())  # the number was given to another file
    eventlet.sleep(0)  # the loop looks for such descriptors once a turn
    with eventlet.Timeout(10):
        serving.wait()
    assert server.gone == [connection]
    assert not caplog.records
    other.close()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CRUMBS = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 999


@pytest.mark.safety("pipelining-and-idling")
@pytest.mark.parametrize("hub", HUBS)
@pytest.mark.parametrize(
    ("sent", "turns"),
    [
        ([GET * 100], 99),  # another request is there already
        ([GET] * 100, 99),  # … each time that the socket is asked
        ([CRUMBS + b"0\r\n\r\n"], 15),  # one request that is much work
        ([bytes([byte]) for byte in GET], len(GET) - 1),
    ],
    ids=["pipelined", "one after the other", "in small chunks", "byte by byte"],
)
def test_a_client_with_bytes_always_ready_does_not_block_the_loop(
    sent: list[bytes], turns: int, hub: str
) -> None:
    def serve() -> tuple[bytes, int]:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps pieces apart
        one.setblocking(False)
        for piece in sent:
            other.send(piece)
        other.shutdown(socket.SHUT_WR)
        serving = eventlet.spawn(Connection(_Server(), one, ("192.0.2.1", 1)).serve)
        run = 0
        while not serving.dead:
            eventlet.sleep(0)
            run += 1
        answers = b""
        while data := other.recv(65536):
            answers += data
        other.close()
        return answers, run

    answers, run = with_hub(hub, serve)
    assert answers.count(b"HTTP/1.1 204") == b"".join(sent).count(b"HTTP/1.1")
    assert run >= turns, "another greenlet ran that often meanwhile"
