"""Sessions without a token are few, go when others come, and lock nobody out."""

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
from tests.sio.test_socketio import Poller, Speaker
from tests.support.waiting import eventually

POLLING = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: x\r\n\r\n"
SOCKET = "/socket.io/?EIO=4&transport=websocket"
MOST, PER_ADDRESS = 60, 20


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    """Long enough for a client to be let in, so that only the bounds end anybody."""
    with running(
        max_connections=50,
        max_pending_sessions=MOST,
        max_pending_sessions_per_address=PER_ADDRESS,
        connect_seconds=60.0,
    ) as started:
        yield started


@pytest.fixture(scope="module")
def impatient() -> Iterator[Echo]:
    with running(connect_seconds=1.5) as started:
        yield started


def from_address(address: str, server: Echo, request: bytes) -> socket.socket:
    """A request from another of this machine's addresses."""
    made = socket.create_connection(("127.0.0.1", server.port), 10, source_address=(address, 0))
    made.sendall(request)
    assert made.recv(65_536).startswith(b"HTTP/1.1 ")
    return made


# The set itself ---------------------------------------------------------------------------------


def test_the_oldest_of_an_address_goes_and_then_the_oldest_of_all() -> None:
    newcomers: PendingSessions[str] = PendingSessions(most=4, per_address=2)
    assert [newcomers.add(name, "one") for name in "abc"] == [None, None, "a"]
    assert [newcomers.add(name, "two") for name in "de"] == [None, None]
    assert newcomers.add("f", "three") == "b"
    assert list(newcomers) == ["c", "d", "e", "f"]
    newcomers.discard("d")
    newcomers.discard("d")
    assert newcomers.add("g", "three") is None
    assert len(newcomers) == 4


def test_an_address_with_more_than_its_share_pushes_out_its_own() -> None:
    newcomers: PendingSessions[str] = PendingSessions(most=4, per_address=10)
    for name in "abc":
        newcomers.add(name, "many")
    newcomers.add("guest", "one")
    assert [newcomers.add(name, "many") for name in "defg"] == ["a", "b", "c", "d"]
    assert newcomers.add("h", "two") == "guest", "all have their share: the oldest"
    assert newcomers.oldest(lambda name: name != "e") == "f"
    assert newcomers.oldest(str.isdigit) is None


def test_who_has_a_network_has_one_address() -> None:
    newcomers: PendingSessions[str] = PendingSessions(most=10, per_address=1)
    assert newcomers.add("a", "2001:db8:1:2::1") is None
    assert newcomers.add("b", "2001:db8:1:3::1") is None
    assert newcomers.add("c", "2001:db8:1:2::2") == "a"


def test_nothing_is_left_of_those_that_have_gone() -> None:
    newcomers: PendingSessions[int] = PendingSessions(most=10, per_address=5)
    for number in range(1000):
        newcomers.add(number, f"address {number % 100}")
    assert len(newcomers) == 10
    for number in range(1000):
        newcomers.discard(number)
    assert (len(newcomers), newcomers._by_address) == (0, {})


# On the wire ------------------------------------------------------------------------------------


@pytest.mark.safety("sessions-that-never-join")
def test_ten_thousand_handshakes_leave_few_sessions_and_lock_nobody_out() -> None:
    """As they are set by default."""
    with running() as server:
        inside = Speaker(server.port)
        waiting = from_address("127.0.0.2", server, handshake(SOCKET, server.port))
        before = server.memory()
        for head in answers(server.port, POLLING, 10_000):
            assert head.startswith(b"HTTP/1.1 200 ")
        stats = server.stats()
        assert stats["sessions"] == 1002, "a thousand, and the two from before"
        assert server.memory() - before < 20_000_000
        assert inside.call(1, "numbers", 0) == [0]
        later = Speaker(server.port)
        assert later.call(1, "numbers", 0) == [0]
        for client in (inside, later, waiting):
            client.close()


def test_one_address_does_not_push_out_another(server: Echo) -> None:
    others = [from_address(f"127.0.0.{n}", server, POLLING) for n in (2, 3)]
    patient = Poller(server)
    list(answers(server.port, POLLING, 50))
    assert patient.post("40") == 400, "the oldest of its address"
    assert server.stats()["sessions"] == PER_ADDRESS + len(others)
    for number in range(4, 10):
        others += [from_address(f"127.0.0.{number}", server, POLLING) for _ in range(PER_ADDRESS)]
    assert server.stats()["sessions"] == MOST
    for connection in others:
        connection.close()


@pytest.mark.safety("sessions-that-never-join")
def test_websockets_that_do_not_join_make_room_for_those_that_do(server: Echo) -> None:
    silent = [
        Peer(server.port, SOCKET, opening=handshake(SOCKET, server.port))
        for _ in range(PER_ADDRESS)
    ]
    inside = [Speaker(server.port) for _ in range(45)]
    assert silent[0].read_text()[0] == "0"
    assert silent[0].at_end(), "without a word"
    with peer(server.port, "/ws") as raw:
        assert raw.status == 101
        assert server.stats()["open"] <= 50
        for client in inside:
            assert client.call(1, "numbers", 0) == [0]
    for client in [*silent, *inside]:
        client.close()
    eventually(lambda: server.stats()["open"] == 0)


@pytest.mark.safety("sessions-that-never-join")
def test_sockets_that_are_only_tried_make_room_for_those_that_join() -> None:
    """Two for each session: its poll, and a WebSocket that it says it would upgrade to."""
    with running(max_connections=20, capacity=50, connect_seconds=60.0) as server:
        holding: list[socket.socket | Peer] = []
        for _ in range(30):
            poller = Poller(server)
            poll = socket.create_connection(("127.0.0.1", server.port), 10)
            poll.sendall(
                f"GET /socket.io/?EIO=4&transport=polling&sid={poller.hello['sid']} HTTP/1.1\r\n"
                "Host: x\r\n\r\n".encode()
            )
            opening = handshake(f"{SOCKET}&sid={poller.hello['sid']}", server.port)
            holding += [poll, Peer(server.port, opening=opening)]
        inside = [Speaker(server.port) for _ in range(20)]
        assert server.stats()["open"] == 20
        for client in inside:
            assert client.call(1, "numbers", 0) == [0]
        for one in [*holding, *inside]:
            one.close()


@pytest.mark.safety("sessions-that-never-join")
def test_who_is_late_and_does_not_go_makes_room_too() -> None:
    with running(max_connections=20, connect_seconds=0.5, close_seconds=60.0) as server:
        opening = handshake(SOCKET, server.port)
        silent = [Peer(server.port, opening=opening) for _ in range(20)]
        for one in silent:
            assert one.read_close() == 1008
        inside = [Speaker(server.port) for _ in range(20)]
        assert server.stats()["open"] == 20
        for client in [*silent, *inside]:
            client.close()


def test_a_bad_handshake_pushes_nobody_out() -> None:
    with running(max_pending_sessions=1, connect_seconds=60.0) as server:
        poller = Poller(server)
        opening = handshake(SOCKET, server.port, Sec_WebSocket_Version="7")
        with peer(server.port, opening=opening) as refused:
            assert refused.status == 426
        assert poller.post("40") == 200


def test_who_polls_and_does_not_connect_in_time_is_gone_without_a_farewell(
    impatient: Echo,
) -> None:
    poller = Poller(impatient)
    eventually(lambda: impatient.stats()["sessions"] == 0)
    assert poller.post("40") == 400
    assert poller.get()[0] == 400


# However long the door takes ----------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["websocket", "polling"])
def test_who_asks_in_time_is_not_late_although_the_answer_is(impatient: Echo, carrier: str) -> None:
    asked = '40{"wait":3}'
    if carrier == "websocket":
        client = Speaker(impatient.port, join=False)
        client.text(asked)
        assert client.packet().startswith('40{"sid"')
        client.close()
    else:
        poller = Poller(impatient)
        assert poller.post(asked) == 200
        assert poller.get()[1][0].startswith('40{"sid"')
        assert poller.post("1") == 200


def test_who_asked_while_the_server_stood_still_is_not_late(impatient: Echo) -> None:
    """What has arrived counts, read or not."""
    client = Speaker(impatient.port, join=False)
    impatient.get("/freeze/3.0")

    def stands_still() -> bool:
        try:
            return not requests.get(f"{impatient.url}/stats", timeout=0.5)
        except requests.Timeout:
            return True

    eventually(stands_still)
    client.text("40")
    assert client.packet().startswith('40{"sid"')
    client.close()


def test_who_was_refused_has_the_rest_of_its_time(impatient: Echo) -> None:
    client = Speaker(impatient.port, join=False)
    client.text('40{"token":"bad"}')
    assert client.packet().startswith("44")
    client.text('40{"token":"bad","wait":3}')
    assert client.packet().startswith('40{"sid"'), "it is another token"
    refused = Speaker(impatient.port, join=False)
    refused.text('40{"token":"bad"}')
    assert refused.packet().startswith("44")
    assert refused.read_close() == 1008
    for one in (client, refused):
        one.close()


def test_a_request_beside_connect_ends_the_session_and_leaves_nothing(impatient: Echo) -> None:
    """The connect handler is at work, lets the client in, and only then is told that it left."""
    eventually(lambda: impatient.stats()["clients"] == 0)
    before = len(impatient.stats()["ended"])
    poller = Poller(impatient)
    answered: list[Any] = []
    connecting = threading.Thread(target=lambda: answered.append(poller.post('40{"wait":1}')))
    connecting.start()
    eventually(lambda: impatient.stats()["asking"] == 1)
    assert poller.post("3") == 400
    connecting.join(10)
    assert answered == [200]
    eventually(lambda: len(impatient.stats()["ended"]) == before + 1)  # its disconnect handler
    stats = impatient.stats()
    assert (stats["clients"], stats["rooms"], stats["asking"]) == (0, {}, 0)
    eventually(lambda: impatient.stats()["sessions"] == 0)  # it had a farewell to fetch


def test_an_upgrade_beside_connect_is_refused(impatient: Echo) -> None:
    """What comes over the new transport would overtake what the old one is still doing."""
    poller = Poller(impatient)
    connecting = threading.Thread(target=lambda: poller.post('40{"wait":1}'))
    connecting.start()
    eventually(lambda: impatient.stats()["asking"] == 1)
    socket = Peer(impatient.port, f"{SOCKET}&sid={poller.hello['sid']}")
    socket.text("2probe")
    assert socket.read_text() == "3probe"
    socket.text("5")
    assert socket.read_close() == 1002
    connecting.join(10)
    assert poller.get()[1][0].startswith('40{"sid"'), "polling goes on"
    assert poller.post("1") == 200
    socket.close()


# HTTP -------------------------------------------------------------------------------------------


def test_a_body_in_chunks_is_as_good_as_another(impatient: Echo) -> None:
    poller = Poller(impatient)
    sent = requests.post(poller.url, data=iter([b"4", b"0"]), timeout=10)
    assert (sent.status_code, sent.text) == (200, "ok")
    assert poller.get()[1][0].startswith('40{"sid"')


def test_as_many_packets_come_in_one_request_as_the_allowance_has(impatient: Echo) -> None:
    """The JavaScript client puts whatever was emitted in one turn into one request."""
    poller = Poller(impatient)
    assert poller.post("\x1e".join(["40", *['42["leave","x"]'] * 200])) == 200
    assert poller.get()[1][0].startswith('40{"sid"')
    assert poller.post("\x1e".join(['42["leave","x"]'] * 400)) == 400
    eventually(lambda: poller.get()[0] == 400)


def test_what_comes_behind_the_end_of_a_session_is_not_said_to_be_taken(impatient: Echo) -> None:
    for end in ('42["leave me","disconnect"]', "41", "1"):
        poller = Poller(impatient)
        poller.post("40")
        assert poller.post(f'{end}\x1e42["join",["lost"]]') == 400
        assert poller.post('42["join",["lost"]]') == 400
    assert "lost" not in impatient.stats()["rooms"]


def test_answers_are_not_compressed(impatient: Echo) -> None:
    poller = Poller(impatient)
    poller.post("40")
    poller.get()
    poller.post('42["numbers",2000]')
    answer = requests.get(poller.url, headers={"Accept-Encoding": "gzip"}, timeout=10)
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["Cache-Control"] == "no-store"


def test_more_than_allowed_in_one_request_is_refused_and_ends_the_session(impatient: Echo) -> None:
    poller = Poller(impatient)
    assert poller.post("4" * 65_537) == 413
    chunks = Poller(impatient)
    sent = requests.post(chunks.url, data=iter([b"4" * 40_000] * 2), timeout=10)
    assert sent.status_code == 413
    for one in (poller, chunks):
        eventually(lambda one=one: one.get()[0] == 400)


@pytest.mark.parametrize("index", ["0", "x", ""])
@pytest.mark.safety("jsonp-and-cookies")
def test_there_is_no_jsonp(impatient: Echo, index: str) -> None:
    base = Poller.base_of(impatient)
    assert requests.get(f"{base}&j={index}", timeout=10).status_code == 400
    poller = Poller(impatient)
    assert requests.get(f"{poller.url}&j={index}", timeout=10).status_code == 400
    assert requests.post(f"{poller.url}&j={index}", data="d=40", timeout=10).status_code == 400


def test_a_page_of_an_allowed_origin_may_ask_beforehand() -> None:
    with running(origins=["https://shop.example.com"]) as server:
        asking = {
            "Origin": "https://shop.example.com",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-trace",
        }
        answer = requests.options(Poller.base_of(server), headers=asking, timeout=10)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example.com"
        assert answer.headers["Access-Control-Allow-Headers"] == "x-trace"
        asking["Origin"] = "https://evil.example"
        answer = requests.options(Poller.base_of(server), headers=asking, timeout=10)
        assert answer.status_code == 403
        assert "Access-Control-Allow-Origin" not in answer.headers
