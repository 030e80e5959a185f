"""WebSocket connections, on real sockets against a real server process, frame by frame."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ordertrack.server import loop as loop_module
from ordertrack.server import server as http_server
from ordertrack.server import websocket
from ordertrack.server.admission import Admission
from ordertrack.server.websocket import CLOSE_TRANSITIONS, CloseEvent, CloseState
from tests.server.echo import Echo, running
from tests.server.wire import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Peer,
    frame,
    handshake,
    peer,
)
from tests.support.waiting import eventually


@pytest.fixture(scope="module", params=["epoll", "portable"])
def server(request: pytest.FixtureRequest) -> Iterator[Echo]:
    """With both pollers: epoll, and the one that works on every system."""
    with running(
        portable=request.param == "portable",
        max_queue_bytes=300_000,
        max_queue_seconds=2.0,
        message_burst=400,
        messages_per_second=200.0,
        origins=["https://shop.example.com"],
    ) as started:
        yield started


# The state table --------------------------------------------------------------------------------


def test_every_state_has_a_row_and_only_closed_is_final() -> None:
    assert set(CLOSE_TRANSITIONS) == set(CloseState)
    for state, row in CLOSE_TRANSITIONS.items():
        assert row.get(CloseEvent.LOST) is (
            None if state is CloseState.CLOSED else CloseState.CLOSED
        )
        assert CloseState.OPEN not in row.values(), "what closes never opens again"


# The handshake ----------------------------------------------------------------------------------


def test_a_handshake_is_answered_as_the_rfc_says(server: Echo) -> None:
    with peer(server.port) as client:
        assert client.status == 101
        assert client.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert "sec-websocket-extensions" not in client.headers


@pytest.mark.safety("oversized-messages")
def test_compression_is_never_agreed_to(server: Echo) -> None:
    offer = {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"}
    with peer(server.port, opening=handshake("/ws", server.port, **offer)) as client:
        assert client.status == 101
        assert "sec-websocket-extensions" not in client.headers
        client.send(frame(TEXT, b"x", rsv=0x40))
        assert client.read_close() == 1002


@pytest.mark.parametrize(
    ("changes", "status", "code", "header"),
    [
        ({"omit": "Upgrade"}, 426, "upgrade_required", ("upgrade", "websocket")),
        ({"omit": "Connection"}, 426, "upgrade_required", ("upgrade", "websocket")),
        ({"Connection": "keep-alive"}, 426, "upgrade_required", ("upgrade", "websocket")),
        (
            {"Sec_WebSocket_Version": "8"},
            426,
            "upgrade_required",
            ("sec-websocket-version", "13"),
        ),
        ({"omit": "Sec-WebSocket-Key"}, 400, "malformed_request", None),
        ({"Sec_WebSocket_Key": "dG9vIHNob3J0"}, 400, "malformed_request", None),
        ({"Sec_WebSocket_Key": "not base64 at all !!!!!="}, 400, "malformed_request", None),
        ({"Origin": "https://evil.example"}, 403, "forbidden", None),
        ({"Origin": "null"}, 403, "forbidden", None),
        ({"Origin": "https://shop.example.com.evil.example"}, 403, "forbidden", None),
        ({"Origin": "https://evil-shop.example.com"}, 403, "forbidden", None),
        ({"Origin": "http://shop.example.com"}, 403, "forbidden", None),
        ({"Origin": "https://shop.example.com:8443"}, 403, "forbidden", None),
        (
            {"Origin": "http://trusting.example", "X_Forwarded_Host": "trusting.example"},
            403,
            "forbidden",
            None,
        ),
    ],
)
def test_a_bad_handshake_gets_a_problem_before_any_upgrade(
    server: Echo,
    changes: dict[str, str],
    status: int,
    code: str,
    header: tuple[str, str] | None,
) -> None:
    with peer(server.port, opening=handshake("/ws", server.port, **changes)) as client:
        assert client.status == status
        assert client.headers["content-type"] == "application/problem+json"
        assert client.body["code"] == code
        assert client.body["status"] == status
        if header is not None:
            assert client.headers[header[0]] == header[1]


@pytest.mark.parametrize("origin", ["https://shop.example.com", "https://SHOP.example.com:443"])
def test_an_allowed_origin_is_accepted(server: Echo, origin: str) -> None:
    with peer(server.port, opening=handshake("/ws", server.port, Origin=origin)) as client:
        assert client.status == 101


def test_the_servers_own_origin_is_accepted(server: Echo) -> None:
    own = f"http://localhost:{server.port}"
    with peer(server.port, opening=handshake("/ws", server.port, Origin=own)) as client:
        assert client.status == 101


def test_a_subprotocol_is_answered(server: Echo) -> None:
    opening = handshake("/ws", server.port, Sec_WebSocket_Protocol="ordertrack.v1")
    with peer(server.port, opening=opening) as client:
        assert client.headers["sec-websocket-protocol"] == "ordertrack.v1"


def test_frames_sent_together_with_the_handshake_are_not_lost(server: Echo) -> None:
    early = frame(TEXT, b"first") + frame(TEXT, b"second") + frame(TEXT, b"third")[:4]
    with peer(server.port, early=early) as client:
        assert [client.read_text(), client.read_text()] == ["first", "second"]


# Messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 1000, 65_535, 65_536])
def test_messages_of_every_length_come_back_whole(server: Echo, size: int) -> None:
    text = ("héllo wörld " * (size // 10 + 1)).encode()[:size].decode("utf-8", "ignore")
    with peer(server.port) as client:
        client.text(text)
        assert client.read_text() == text


def test_binary_messages_come_back_as_binary(server: Echo) -> None:
    with peer(server.port) as client:
        client.send(frame(BINARY, bytes(range(256))))
        assert client.read() == (BINARY, bytes(range(256)))


def test_a_message_may_come_byte_by_byte(server: Echo) -> None:
    with peer(server.port) as client:
        for byte in frame(TEXT, b"slowly"):
            client.send(bytes([byte]))
            time.sleep(0.002)
        assert client.read_text() == "slowly"


def test_fragments_make_one_message_with_control_frames_in_between(server: Echo) -> None:
    with peer(server.port) as client:
        client.send(frame(TEXT, b"one ", fin=False))
        client.send(frame(PING, b"are you there"))
        client.send(frame(0, b"two ", fin=False), frame(0, b"three"))
        assert client.read() == (PONG, b"are you there")
        assert client.read_text() == "one two three"


def test_one_clients_messages_are_handled_in_order(server: Echo) -> None:
    with peer(server.port) as client:
        client.text("nap 0.2")
        for number in range(100):
            client.text(str(number))
        assert [client.read_text() for _ in range(100)] == [str(n) for n in range(100)]


def test_a_quick_message_does_not_wait_for_a_busy_handler(server: Echo) -> None:
    with peer(server.port) as client:
        client.text("nap 0.5")
        client.text("after the nap")
        client.text("quick")
        assert [client.read_text(), client.read_text()] == ["in the loop", "after the nap"]


def test_a_failing_handler_closes_its_own_connection_only(server: Echo) -> None:
    with peer(server.port) as client, peer(server.port) as other:
        client.text("fail because of a bug")
        assert client.read_close() == 1011
        other.text("unharmed")
        assert other.read_text() == "unharmed"


def test_frames_handed_over_in_different_ways_keep_their_order(server: Echo) -> None:
    with peer(server.port, receive_buffer=4096) as client:
        client.text("mixed 2000 100")
        eventually(lambda: server.stats()["queued_bytes"])  # some of them are queued
        assert [int(client.read_text().split()[0]) for _ in range(2000)] == list(range(2000))


def test_a_broadcast_to_more_sockets_than_one_turn_flushes_reaches_all() -> None:
    with running(flush_step=4) as server, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(15):
            client = stack.enter_context(peer(server.port, "/socket.io/?EIO=4&transport=websocket"))
            client.text("40")
            client.text('420["join",["all"]]')
            assert [client.read_text()[:3] for _ in range(3)] == ['0{"', "40{", "430"]
            clients.append(client)
        assert server.get("/cast/all/1") == {"members": 15}
        assert [client.read_text() for client in clients] == ['42["number",0]'] * 15


# Protocol violations and floods -----------------------------------------------------------------


RULES = [
    (frame(TEXT, b"x", masked=False), 1002),
    (frame(TEXT, b"", masked=False), 1002),
    (frame(TEXT, b"x", rsv=0x10), 1002),
    (frame(3, b"x"), 1002),
    (frame(11, b"x"), 1002),
    (frame(0, b"x"), 1002),
    (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    (frame(PING, b"x", fin=False), 1002),
    (frame(PING, b"x" * 126), 1002),
    (frame(TEXT, b"\xff\xfe"), 1007),
    (frame(TEXT, b"\xc3", fin=False) + frame(0, b"("), 1007),
    (frame(TEXT, b"\xff", fin=False), 1007),  # at once, not at the message's end
    (frame(TEXT, b"\xf0\x9f", fin=False) + frame(0, b"\x9a("), 1007),
    (b"\x82\xfe\x00\x01\0\0\0\0x", 1002),  # lengths in more bytes than they need
    (b"\x82\xfe\x00\x7d", 1002),
    (b"\x82\xff\0\0\0\0\0\0\xff\xff", 1002),
    (b"\x82\xff\x80\0\0\0\0\x01\0\0", 1002),
    (frame(CLOSE, b"\x03"), 1002),
    (frame(CLOSE, (999).to_bytes(2, "big")), 1002),
    (frame(CLOSE, (1005).to_bytes(2, "big")), 1002),
    (frame(CLOSE, (1006).to_bytes(2, "big")), 1002),
    (frame(CLOSE, (1000).to_bytes(2, "big") + b"\xff"), 1007),
    (frame(TEXT, b"x" * 65_537), 1009),
    (frame(TEXT, b"x" * 65_537)[:14], 1009),  # the header alone is enough
    (frame(TEXT, b"x" * 40_000, fin=False) + frame(0, b"x" * 40_000), 1009),
]


# Numbered: frames are masked at random, and every worker must see the same tests.
@pytest.mark.parametrize(("sent", "code"), RULES, ids=map(str, range(len(RULES))))
def test_a_protocol_violation_is_closed_with_its_code(server: Echo, sent: bytes, code: int) -> None:
    with peer(server.port) as client:
        client.send(sent)
        assert client.read_close() == code
        assert client.at_end()


@pytest.mark.safety("oversized-messages")
@pytest.mark.parametrize("where", ["raw", "before CONNECT", "after CONNECT"])
def test_endless_fragments_take_no_memory(server: Echo, where: str) -> None:
    """Of 60 MB that are sent the server keeps less than one message, and it closes at once."""
    path = "/ws" if where == "raw" else "/socket.io/?EIO=4&transport=websocket"
    with peer(server.port, path) as client:
        if where == "after CONNECT":
            client.text("40")
            assert [client.read_text()[:2] for _ in range(2)] == ["0{", "40"]
        before = server.memory()
        highest = 0
        client.send(frame(TEXT, b"4" * 60_000, fin=False))
        client.send(frame(0, b"x" * 60_000, fin=False))
        assert client.read_close() == 1009
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                client.send(frame(0, b"x" * 60_000, fin=False) * 50)
                highest = max(highest, server.memory())
        assert max(highest, server.memory()) - before < 20_000_000


@pytest.mark.safety("floods-and-hoarding")
def test_a_flood_of_messages_is_closed(server: Echo) -> None:
    with peer(server.port) as client:
        client.send(frame(TEXT, b"quick") * 2000)
        assert client.read_close() == 1008


def test_messages_over_the_rate_limit_are_not_handled(server: Echo) -> None:
    """The frames are so small that one read holds many more than the rate limit allows."""
    before = server.stats()["messages_in"]
    with peer(server.port) as client:
        client.send(frame(TEXT) * 5000)
        assert client.read_close() == 1008
    assert server.stats()["messages_in"] - before < 450


def test_a_flood_of_pings_or_fragments_is_closed_too(server: Echo) -> None:
    for piece in (frame(PING), frame(0, b"", fin=False)):
        with peer(server.port) as client:
            with contextlib.suppress(ConnectionError):
                client.send(frame(TEXT, b"", fin=False), piece * 20_000)
            assert client.read_close() == 1008


def test_pings_cost_less_than_messages(server: Echo) -> None:
    with peer(server.port) as client:
        client.send(frame(PING, b"?") * 2000)  # five times as many as messages are allowed
        assert [client.read() for _ in range(2000)] == [(PONG, b"?")] * 2000
        client.text("still here")
        assert client.read_text() == "still here"


def test_the_inbox_is_bounded_within_one_read_too(server: Echo) -> None:
    """While a handler is busy, the messages beyond the inbox stay in the network."""
    with peer(server.port) as client:
        before = server.stats()["messages_in"]
        client.send(frame(TEXT, b"nap 0.7"), *(frame(TEXT, b"%d" % n) for n in range(300)))
        eventually(lambda: server.stats()["messages_in"] > before + 1)
        assert server.stats()["messages_in"] <= before + 17
        assert [client.read_text() for _ in range(300)] == [str(n) for n in range(300)]


# Closing ----------------------------------------------------------------------------------------


def test_the_clients_close_frame_is_answered_with_its_code(server: Echo) -> None:
    with peer(server.port) as client:
        client.send(frame(CLOSE, (4001).to_bytes(2, "big") + b"bye"))
        assert client.read_close() == 4001
        assert client.at_end()
        eventually(lambda: [4001, "bye"] in server.stats()["ended"])


def test_the_servers_close_frame_comes_after_everything_sent(server: Echo) -> None:
    with peer(server.port) as client:
        client.text("close 1012")
        assert client.read_text() == "last words"
        assert client.read_close() == 1012
        client.send(frame(CLOSE, (1012).to_bytes(2, "big")))
        assert client.at_end()


def test_a_client_that_never_answers_a_close_frame_is_closed(server: Echo) -> None:
    with peer(server.port) as client:
        client.text("close 1000")
        assert client.read_text() == "last words"
        assert client.read_close() == 1000
        assert client.at_end()  # within the socket's timeout, though no close frame was sent


def test_a_client_that_closes_its_socket_is_noticed(server: Echo) -> None:
    before = server.stats()["open"]
    client = Peer(server.port)
    assert server.stats()["open"] == before + 1
    client.close()
    eventually(lambda: server.stats()["open"] == before)


def test_on_close_runs_once_for_each_connection(server: Echo) -> None:
    before = len(server.stats()["ended"])
    clients = [Peer(server.port) for _ in range(50)]
    for number, client in enumerate(clients):
        if number % 2:
            client.send(frame(CLOSE))
        client.close()
    eventually(lambda: server.stats()["open"] == 0)
    eventually(lambda: len(server.stats()["ended"]) >= before + 50)
    assert len(server.stats()["ended"]) == before + 50


# Slow readers -----------------------------------------------------------------------------------


def test_a_reader_that_is_merely_slow_gets_everything_in_order(server: Echo) -> None:
    with peer(server.port, receive_buffer=4096) as client:
        client.text("flood 400 700")  # 280 KB: within the bound, beyond the kernel's buffers
        got = []
        for number in range(400):
            got.append(int(client.read_text().split()[0]))
            if number % 40 == 0:
                time.sleep(0.02)
        assert got == list(range(400))
        assert server.stats()["queued_bytes"] == 0


def test_a_reader_that_stops_is_closed_when_its_queue_is_full(server: Echo) -> None:
    before = server.stats()["slow_closes"]
    with peer(server.port, receive_buffer=4096) as client:
        client.text("flood 3000 1000")
        eventually(lambda: server.stats()["slow_closes"] == before + 1)
        assert server.stats()["queued_bytes"] < 5000, "its queue is freed at once"
        got = []
        opcode, payload = client.read()
        while opcode == TEXT:
            got.append(int(payload.split()[0]))
            opcode, payload = client.read()
        assert payload[:2] == (1013).to_bytes(2, "big")
        assert got == list(range(len(got))), "what has arrived is a prefix, in order"


def test_a_reader_that_never_reads_again_is_aborted(server: Echo) -> None:
    before = server.stats()["open"]
    with peer(server.port, receive_buffer=4096) as client:
        client.text("flood 3000 1000")
        eventually(lambda: server.stats()["open"] == before)
        assert server.stats()["queued_bytes"] == 0


def test_a_reader_that_stops_is_closed_when_its_queue_is_old(server: Echo) -> None:
    before = server.stats()["slow_closes"]
    with peer(server.port, receive_buffer=4096) as client:
        client.text("flood 250 1000")  # within the bound of bytes
        eventually(lambda: server.stats()["queued_bytes"] > 10_000)
        eventually(lambda: server.stats()["slow_closes"] == before + 1)


def test_a_steady_reader_gets_a_message_that_takes_longer_than_a_queue_may_be_old(
    server: Echo,
) -> None:
    """Its one frame grows old in the transfer; the rate at which it is read is what counts."""
    size, pace, closes = 400_000, 80_000, server.stats()["slow_closes"]
    with peer(server.port, receive_buffer=4096) as client:
        client.text(f"flood 1 {size}")
        got = b""
        began = time.monotonic()
        while len(got) < size:
            got += client.socket.recv(4096)
            time.sleep(max(0.0, began + len(got) / pace - time.monotonic()))
        assert time.monotonic() - began > 2 * 2.0, "or the queue's age would not have mattered"
        assert got.endswith(b"....")
    assert server.stats()["slow_closes"] == closes


def test_a_reader_below_the_minimum_rate_is_closed(server: Echo) -> None:
    closes = server.stats()["slow_closes"]
    with peer(server.port, receive_buffer=4096) as client:
        client.text("flood 1 400000")

        def read_a_little() -> bool:
            client.socket.recv(50)  # 100 times a second
            return bool(server.stats()["slow_closes"] > closes)

        eventually(read_a_little)


def test_answers_wait_until_the_client_has_read_those_before(server: Echo) -> None:
    """Each answer is within the bound of the send queue, all together are not."""
    with peer(server.port, receive_buffer=4096) as client:
        for _ in range(10):
            client.text("flood 1 140000")
        eventually(lambda: server.stats()["queued_bytes"])
        assert [len(client.read_text()) for _ in range(10)] == [140_000] * 10


def test_a_message_larger_than_the_bound_reaches_a_client_that_reads(server: Echo) -> None:
    with peer(server.port) as client:
        client.text("flood 1 2000000")
        assert len(client.read_text()) == 2_000_000


def test_slow_readers_do_not_hold_up_the_others(server: Echo) -> None:
    with peer(server.port, receive_buffer=4096) as slow, peer(server.port) as quick:
        slow.text("flood 250 1000")
        for number in range(20):
            quick.text(str(number))
            assert quick.read_text() == str(number)


def test_a_sweep_with_a_short_period_runs_as_often() -> None:
    loop = loop_module.Loop()
    done: dict[float, list[float]] = {0.05: [], 1.0: []}
    for period, times in done.items():
        loop.sweeps.append(loop_module._Sweep(period, times.append))
    for step in range(1, 200):
        loop._sweep(step * 0.0625)
    assert len(done[0.05]) == 199
    assert done[1.0] == [0.0625 + n for n in range(13)][: len(done[1.0])]
    assert len(done[1.0]) >= 12


def test_sockets_are_closed_evenly_over_the_drain_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock of the test's own, which shows every wait that is too long or too short."""
    clock = 0.0
    closed: dict[int, float] = {}

    class Leaving:
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self, code: int, reason: str) -> None:
            assert (code, reason) == (1012, "server restarting")
            closed[self.number] = clock
            if self.number == 7:
                raise RuntimeError("cannot be closed")
            del loop.sockets[self.number]

        def abort(self) -> None:
            del loop.sockets[self.number]

    def sleep(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    loop = loop_module.Loop()
    loop.sockets = {number: Leaving(number) for number in range(40)}  # type: ignore[misc]
    monkeypatch.setattr(websocket, "event_loop", loop)
    monkeypatch.setattr(websocket, "admission", Admission())
    monkeypatch.setattr(loop_module, "sleep", sleep)
    monkeypatch.setattr(loop_module, "pause", lambda: None)
    for module in (loop_module, websocket):
        monkeypatch.setattr(module, "monotonic", lambda: clock)
    websocket.close_all(1012, "server restarting", 8.0)
    assert sorted(closed.values()) == pytest.approx([8.0 * n / 40 for n in range(40)])
    assert list(closed) != sorted(closed), "not always the same ones first"
    assert websocket.admission.is_draining
    assert not loop.sockets


# The end ----------------------------------------------------------------------------------------


def test_sigterm_closes_every_socket_with_service_restart_in_time() -> None:
    with running(drain_seconds=3.0) as server:
        clients = [Peer(server.port) for _ in range(20)]
        began = time.monotonic()
        server.process.terminate()
        for client in clients:
            assert client.read_close() == 1012
            client.close()
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 10
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


def test_sigterm_lets_requests_in_flight_finish() -> None:
    with running(drain_seconds=4.0) as server:
        with socket.create_connection(("127.0.0.1", server.port), 10) as busy:
            busy.sendall(b"GET /slow/1.5 HTTP/1.1\r\nHost: x\r\n\r\n")
            idle = socket.create_connection(("127.0.0.1", server.port), 10)
            eventually(lambda: server.stats()["begun"])
            server.process.terminate()
            assert idle.recv(1) == b"", "an idle connection is closed at once"
            answer = b""
            while piece := busy.recv(4096):
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert b"Connection: close" in answer
            assert b'"slept":1.5' in answer.replace(b" ", b"")
            idle.close()
        assert server.process.wait(10) == 0


def test_accepted_sockets_send_at_once_and_keep_little() -> None:
    """WebSockets rely on it: they set no options of their own."""
    [listening] = http_server.bind("127.0.0.1", 0)
    listening.listen()
    with socket.create_connection(listening.getsockname(), 10):
        accepted, _ = listening.accept()
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    kept = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert kept <= 2 * http_server.SEND_BUFFER  # Linux doubles what was asked for
    accepted.close()
    listening.close()


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="reads Linux's /proc")
def test_one_epoll_watches_a_socket_that_has_become_a_websocket() -> None:
    """The hub's own has let go of it, where the HTTP server had waited for the request there."""
    with running() as server, peer(server.port), contextlib.ExitStack() as stack:
        idle = len(watched(server))
        opening = handshake("/ws", server.port)
        for number, waits in enumerate((False, True, False, True)):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            if waits:
                client.sendall(opening[:20])
                eventually(lambda so_many=idle + number: len(watched(server)) == so_many + 1)
                client.sendall(opening[20:])
            else:
                client.sendall(opening)
            assert client.recv(4096).startswith(b"HTTP/1.1 101")
            client.sendall(frame(TEXT, b"hello"))
            assert client.recv(4096) == b"\x81\x05hello"
            eventually(lambda so_many=idle + number: len(watched(server)) == so_many + 1)


def watched(server: Echo) -> list[str]:
    """The descriptors that the server's epolls watch, one that two of them watch twice."""
    infos = Path(f"/proc/{server.process.pid}/fdinfo").glob("*")
    return [line for info in infos for line in info.read_text().splitlines() if "tfd:" in line]
