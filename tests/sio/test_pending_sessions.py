"""Sessions that have not authenticated: bounded, evicted for others, closed when they are late."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from ordertrack.sio.pending_sessions import PendingSessions
from tests.server.echo import Echo, running
from tests.server.test_refusals import answers
from tests.server.wire import Peer, handshake, peer
from tests.sio.clients import PollingClient, WebSocketClient
from tests.support.waiting import eventually

POLLING = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n"
SOCKET = "/socket.io/?EIO=4&transport=websocket"
MOST, PER_ADDRESS = 60, 20


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    """No client is late here, so that only the bounds close sessions."""
    with running(
        max_connections=50,
        max_pending_sessions=MOST,
        max_pending_sessions_per_address=PER_ADDRESS,
        connect_seconds=60.0,
    ) as started:
        yield started


@pytest.fixture(scope="module")
def hasty() -> Iterator[Echo]:
    with running(connect_seconds=1.5) as started:
        yield started


def from_address(address: str, server: Echo, request: bytes) -> socket.socket:
    """A request from another of this machine's addresses."""
    made = socket.create_connection(("127.0.0.1", server.port), 10, source_address=(address, 0))
    made.sendall(request)
    assert made.recv(65_536).startswith(b"HTTP/1.1 ")
    return made


# The registry -----------------------------------------------------------------------------------


def test_the_oldest_of_the_address_is_evicted_and_then_the_oldest_of_all() -> None:
    pending: PendingSessions[str] = PendingSessions(most=4, per_address=2)
    assert [pending.add(name, "one") for name in "abc"] == [None, None, "a"]
    assert [pending.add(name, "two") for name in "de"] == [None, None]
    assert pending.add("f", "three") == "b"
    assert list(pending) == ["c", "d", "e", "f"]
    pending.discard("d")
    pending.discard("d")
    assert pending.add("g", "three") is None
    assert len(pending) == 4


def test_an_address_with_more_than_its_share_evicts_its_own() -> None:
    pending: PendingSessions[str] = PendingSessions(most=4, per_address=10)
    for name in "abc":
        pending.add(name, "many")
    pending.add("slow", "one")
    assert [pending.add(name, "many") for name in "defg"] == ["a", "b", "c", "d"]
    assert pending.add("h", "two") == "slow", "no address has more than its share"
    assert pending.oldest(lambda name: name != "e") == "f"
    assert pending.oldest(str.isdigit) is None


def test_an_ipv6_network_counts_as_one_address() -> None:
    pending: PendingSessions[str] = PendingSessions(most=10, per_address=1)
    assert pending.add("a", "2001:db8:1:2::1") is None
    assert pending.add("b", "2001:db8:1:3::1") is None
    assert pending.add("c", "2001:db8:1:2::2") == "a"


def test_discarded_sessions_leave_nothing_behind() -> None:
    pending: PendingSessions[int] = PendingSessions(most=10, per_address=5)
    for number in range(1000):
        pending.add(number, f"address {number % 100}")
    assert len(pending) == 10
    for number in range(1000):
        pending.discard(number)
    assert (len(pending), pending._by_address) == (0, {})


# Bounds -----------------------------------------------------------------------------------------


@pytest.mark.safety("sessions-that-never-join")
def test_a_flood_of_handshakes_leaves_few_sessions_and_locks_nobody_out() -> None:
    """With the default limits, from one address."""
    with running() as server:
        inside = WebSocketClient(server.port)
        waiting = from_address("127.0.0.2", server, handshake(SOCKET, server.port))
        before = server.memory()
        for head in answers(server.port, POLLING, 10_000):
            assert head.startswith(b"HTTP/1.1 200 ")
        stats = server.stats()
        assert stats["sessions"] == 1002, "a thousand, and the two from before"
        assert server.memory() - before < 20_000_000
        assert inside.call(1, "numbers", 0) == [0]
        later = WebSocketClient(server.port)
        assert later.call(1, "numbers", 0) == [0]
        for client in (inside, later, waiting):
            client.close()


def test_one_address_does_not_evict_another(server: Echo) -> None:
    others = [from_address(f"127.0.0.{n}", server, POLLING) for n in (2, 3)]
    patient = PollingClient(server)
    list(answers(server.port, POLLING, 50))
    assert patient.post("40") == 400, "the oldest of its address"
    assert server.stats()["sessions"] == PER_ADDRESS + len(others)
    for number in range(4, 10):
        others += [from_address(f"127.0.0.{number}", server, POLLING) for _ in range(PER_ADDRESS)]
    assert server.stats()["sessions"] == MOST
    for connection in others:
        connection.close()


@pytest.mark.safety("sessions-that-never-join")
def test_pending_websockets_are_evicted_for_clients_that_authenticate(server: Echo) -> None:
    silent = [
        Peer(server.port, SOCKET, opening=handshake(SOCKET, server.port))
        for _ in range(PER_ADDRESS)
    ]
    inside = [WebSocketClient(server.port) for _ in range(45)]
    assert silent[0].read_text()[0] == "0"
    assert silent[0].at_end(), "without a close frame"
    with peer(server.port, "/ws") as raw:
        assert raw.status == 101
        assert server.stats()["open"] <= 50
        for client in inside:
            assert client.call(1, "numbers", 0) == [0]
    for client in [*silent, *inside]:
        client.close()
    eventually(lambda: server.stats()["open"] == 0)


@pytest.mark.safety("sessions-that-never-join")
def test_probing_websockets_are_evicted_for_clients_that_authenticate() -> None:
    """Each session holds two connections: a waiting GET, and a WebSocket that it probes."""
    with running(max_connections=20, capacity=50, connect_seconds=60.0) as server:
        holding: list[socket.socket | Peer] = []
        for _ in range(30):
            poller = PollingClient(server)
            poll = socket.create_connection(("127.0.0.1", server.port), 10)
            poll.sendall(
                f"GET /socket.io/?EIO=4&transport=polling&sid={poller.hello['sid']} HTTP/1.1\r\n"
                "Host: x\r\n\r\n".encode()
            )
            opening = handshake(f"{SOCKET}&sid={poller.hello['sid']}", server.port)
            holding += [poll, Peer(server.port, opening=opening)]
        inside = [WebSocketClient(server.port) for _ in range(20)]
        assert server.stats()["open"] == 20
        for client in inside:
            assert client.call(1, "numbers", 0) == [0]
        for one in [*holding, *inside]:
            one.close()


@pytest.mark.safety("sessions-that-never-join")
def test_late_clients_that_stay_connected_are_evicted_too() -> None:
    with running(max_connections=20, connect_seconds=0.5, close_seconds=60.0) as server:
        opening = handshake(SOCKET, server.port)
        silent = [Peer(server.port, opening=opening) for _ in range(20)]
        for one in silent:
            assert one.read_close() == 1008
        inside = [WebSocketClient(server.port) for _ in range(20)]
        assert server.stats()["open"] == 20
        for client in [*silent, *inside]:
            client.close()


def test_a_bad_handshake_evicts_nobody() -> None:
    with running(max_pending_sessions=1, connect_seconds=60.0) as server:
        poller = PollingClient(server)
        opening = handshake(SOCKET, server.port, Sec_WebSocket_Version="7")
        with peer(server.port, opening=opening) as refused:
            assert refused.status == 426
        assert poller.post("40") == 200


def test_a_polling_client_that_does_not_authenticate_in_time_is_forgotten(
    hasty: Echo,
) -> None:
    poller = PollingClient(hasty)
    eventually(lambda: hasty.stats()["sessions"] == 0)
    assert poller.post("40") == 400
    assert poller.get()[0] == 400


# CONNECT and its deadline -----------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["websocket", "polling"])
def test_a_connect_in_time_counts_however_late_its_answer_is(hasty: Echo, carrier: str) -> None:
    asked = '40{"wait":3}'
    if carrier == "websocket":
        client = WebSocketClient(hasty.port, join=False)
        client.text(asked)
        assert client.packet().startswith('40{"sid"')
        client.close()
    else:
        poller = PollingClient(hasty)
        assert poller.post(asked) == 200
        assert poller.get()[1][0].startswith('40{"sid"')
        assert poller.post("1") == 200


def test_a_connect_that_arrives_while_the_event_loop_is_blocked_counts(hasty: Echo) -> None:
    """What has arrived in time counts, even if it is read later."""
    client = WebSocketClient(hasty.port, join=False)
    hasty.get("/freeze/3.0")

    def is_blocked() -> bool:
        try:
            return not requests.get(f"{hasty.url}/stats", timeout=0.5)
        except requests.Timeout:
            return True

    eventually(is_blocked)
    client.text("40")
    assert client.packet().startswith('40{"sid"')
    client.close()


def test_a_refused_client_may_try_again_until_its_deadline(hasty: Echo) -> None:
    client = WebSocketClient(hasty.port, join=False)
    client.text('40{"token":"bad"}')
    assert client.packet().startswith("44")
    client.text('40{"token":"bad","wait":3}')
    assert client.packet().startswith('40{"sid"'), "the wait makes it another token"
    refused = WebSocketClient(hasty.port, join=False)
    refused.text('40{"token":"bad"}')
    assert refused.packet().startswith("44")
    assert refused.read_close() == 1008
    for one in (client, refused):
        one.close()


def test_a_request_during_connect_ends_the_session_and_leaves_nothing(hasty: Echo) -> None:
    """The connect handler is still running; the disconnect handler runs after it."""
    eventually(lambda: hasty.stats()["clients"] == 0)
    before = len(hasty.stats()["ended"])
    poller = PollingClient(hasty)
    answered: list[Any] = []
    connecting = threading.Thread(target=lambda: answered.append(poller.post('40{"wait":1}')))
    connecting.start()
    eventually(lambda: hasty.stats()["asking"] == 1)
    assert poller.post("3") == 400
    connecting.join(10)
    assert answered == [200]
    eventually(lambda: len(hasty.stats()["ended"]) == before + 1)  # its disconnect handler
    stats = hasty.stats()
    assert (stats["clients"], stats["rooms"], stats["asking"]) == (0, {}, 0)
    eventually(lambda: hasty.stats()["sessions"] == 0)  # when its last packets were not fetched
