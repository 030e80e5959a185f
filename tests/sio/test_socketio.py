"""Socket.IO: the stock Python client, rooms, packets over a WebSocket, handshakes."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import socketio

from tests.server.echo import Echo, running
from tests.server.wire import BINARY, CLOSE, TEXT, frame, handshake, peer
from tests.sio.clients import PollingClient, WebSocketClient
from tests.support.waiting import eventually

TRANSPORTS = [["websocket"], ["polling"], ["polling", "websocket"]]
NAMES = ["websocket", "polling", "upgrade"]


@pytest.fixture(scope="module")
def pinging() -> Iterator[Echo]:
    """Pings so often that a test can wait for it."""
    with running(ping_interval=2.0, ping_timeout=1.9) as started:
        yield started


@pytest.fixture
def connect(server: Echo) -> Iterator[Callable[..., socketio.Client]]:
    """Makes connected clients of the stock Python library."""
    made: list[socketio.Client] = []

    def connect(
        transports: list[str] | None = None, to: Echo = server, **options: Any
    ) -> socketio.Client:
        client = socketio.Client(reconnection=False)
        client.got = []
        client.on("number", client.got.append)
        client.on("blob", client.got.append)
        client.on("greeting", client.got.append)
        client.on("disconnect", client.got.append)
        client.connect(to.url, transports=transports, **options)
        made.append(client)
        return client

    yield connect
    for client in made:
        client.disconnect()


# The stock clients ------------------------------------------------------------------------------


@pytest.mark.parametrize("transports", TRANSPORTS, ids=NAMES)
def test_the_stock_client_connects_calls_and_receives_events(
    server: Echo, connect: Callable[..., Any], transports: list[str]
) -> None:
    client = connect(transports, auth={"token": "good"})
    assert client.transport() == transports[-1]
    assert client.call("join", ["a", "b"]) == {"rooms": ["a", "b"]}
    server.get("/cast/a/3")
    server.get("/cast/nobody/3")
    server.get("/cast/b/2")
    eventually(lambda: len(client.got) >= 5)
    assert sorted(client.got) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("transports", TRANSPORTS, ids=NAMES)
def test_large_answers_wait_until_earlier_ones_are_fetched(
    connect: Callable[..., Any], transports: list[str]
) -> None:
    """Although the client asks for all of them at once, and for more than is kept for it."""
    with running(max_queue_bytes=30_000) as server:
        client = connect(transports, server)
        for _ in range(3):
            client.emit("flask", "x" * 20_000)
        eventually(lambda: len(client.got) == 3 or "server disconnect" in client.got)
        assert client.got == ["x" * 20_000] * 3
        client.disconnect()


@pytest.mark.parametrize("transports", TRANSPORTS, ids=NAMES)
def test_many_events_arrive_once_each(connect: Callable[..., Any], transports: list[str]) -> None:
    client = connect(transports)
    assert client.call("numbers", 200) == 200
    eventually(lambda: len(client.got) >= 200)
    # This client runs each event in a thread of its own, so it says nothing about order.
    assert sorted(client.got) == list(range(200))


def test_events_with_binary_data_arrive(connect: Callable[..., Any]) -> None:
    for transports in TRANSPORTS:
        client = connect(transports)
        client.emit("bytes")
        eventually(lambda client=client: client.got == [{"data": b"\x00\x01\xff"}])


def test_flask_socketios_own_interface_works(connect: Callable[..., Any]) -> None:
    client = connect(["websocket"])
    assert client.call("flask", "héllo") == client.get_sid()
    eventually(lambda: client.got == ["héllo"])


@pytest.mark.parametrize("transports", TRANSPORTS, ids=NAMES)
def test_a_server_side_disconnect_closes_the_transport(
    server: Echo, connect: Callable[..., Any], transports: list[str]
) -> None:
    client = connect(transports)
    client.call("join", ["left behind"])
    client.emit("leave me", "disconnect")
    eventually(lambda: not client.connected)
    assert client.got == ["server disconnect"]
    eventually(lambda: "left behind" not in server.stats()["rooms"])


@pytest.mark.parametrize("transports", TRANSPORTS, ids=NAMES)
def test_a_client_that_leaves_is_forgotten(
    server: Echo, connect: Callable[..., Any], transports: list[str]
) -> None:
    client = connect(transports)
    client.call("join", ["gone soon"])
    # The acknowledgement may be here before its POST has been answered, and a client whose writer
    # still waits for that leaves without a word.
    client.eio.queue.join()
    client.disconnect()
    eventually(lambda: "gone soon" not in server.stats()["rooms"])
    eventually(lambda: server.stats()["sessions"] == 0)
    stats = server.stats()
    assert (stats["clients"], stats["environs"], stats["open"]) == (0, 0, 0)


@pytest.mark.parametrize("transports", TRANSPORTS[:2], ids=NAMES[:2])
def test_a_refusal_carries_its_data(
    server: Echo, connect: Callable[..., Any], transports: list[str]
) -> None:
    client = socketio.Client(reconnection=False)
    seen: list[Any] = []
    client.on("connect_error", seen.append)
    with pytest.raises(socketio.exceptions.ConnectionError):
        client.connect(server.url, auth={"token": "bad"}, transports=transports)
    assert seen == [{"message": "no", "data": {"code": "invalid_token"}}]
    eventually(lambda: server.stats()["clients"] == 0)


def test_a_bug_in_connect_refuses_the_client_and_leaves_nothing(server: Echo) -> None:
    client = WebSocketClient(server.port, join=False)
    client.text('40{"token":"broken"}')
    assert json.loads(client.packet()[2:]) == {"message": "internal error"}
    assert server.stats()["clients"] == 0
    client.text('40{"token":"good"}')  # it may try again
    assert client.packet().startswith('40{"sid":')
    client.close()


def test_a_bug_in_a_handler_keeps_the_connection(connect: Callable[..., Any]) -> None:
    client = connect(["websocket"])
    client.emit("fail")
    assert client.call("numbers", 1) == 1


def test_pings_keep_every_transport_alive(pinging: Echo, connect: Callable[..., Any]) -> None:
    clients = [connect(transports, to=pinging) for transports in TRANSPORTS]
    before = pinging.stats()["messages_in"]
    eventually(lambda: pinging.stats()["messages_in"] >= before + 6)  # three rounds of two pongs
    for client in clients:
        assert client.call("numbers", 1) == 1


# Rooms ------------------------------------------------------------------------------------------


def test_rooms_are_left_and_closed(server: Echo, connect: Callable[..., Any]) -> None:
    one, two = connect(["websocket"]), connect(["polling"])
    for client in (one, two):
        client.call("join", ["x", "y"])
    assert one.call("leave", "x") is True
    server.get("/cast/x/1")
    eventually(lambda: two.got == [0])
    assert server.get("/close/y") == {}
    assert server.get("/cast/y/1") == {"members": 0}
    assert two.call("numbers", 2) == 2
    eventually(lambda: sorted(two.got) == [0, 0, 1])
    assert one.got == []


def test_many_clients_that_leave_at_once_leave_nothing_behind(server: Echo) -> None:
    clients = [WebSocketClient(server.port) for _ in range(200)]
    for client in clients:
        client.call(1, "join", ["crowd", client.sid + "'s own"])
    assert server.get("/cast/crowd/1") == {"members": 200}
    for client in clients:
        client.close()
    eventually(lambda: server.stats()["sessions"] == 0)
    assert server.stats()["rooms"] == {}
    assert server.stats()["clients"] == 0


# Packets ----------------------------------------------------------------------------------------


def test_an_acknowledgement_comes_after_the_events_emitted_before_it(server: Echo) -> None:
    client = WebSocketClient(server.port)
    client.text('421["numbers",1000]')
    expected = [*(f'42["number",{n}]' for n in range(1000)), "431[1000]"]
    assert [client.packet() for _ in expected] == expected
    client.close()


def test_acknowledgements_of_one_turn_leave_together(server: Echo) -> None:
    client = WebSocketClient(server.port)
    before = server.stats()["sends"]
    client.send(b"".join(frame(TEXT, f'42{n}["numbers",0]'.encode()) for n in range(100)))
    assert [client.packet() for _ in range(100)] == [f"43{n}[0]" for n in range(100)]
    assert server.stats()["sends"] - before < 20
    client.close()


def test_large_answers_are_made_only_as_the_client_reads_them() -> None:
    with running(max_queue_bytes=100_000) as server:
        client = WebSocketClient(server.port, receive_buffer=4096)
        before = server.stats()["messages_in"]
        client.send(*(frame(TEXT, f'42{n}["large",20000]'.encode()) for n in range(16)))
        eventually(lambda: server.stats()["messages_in"] >= before + 16)
        assert 0 < server.stats()["queued_bytes"] < 50_000
        for n in range(16):
            assert client.packet().startswith(f"43{n}[")
        client.close()


def test_the_handshake_and_its_cookies_are_kept_until_connect(server: Echo) -> None:
    path = "/socket.io/?EIO=4&transport=websocket"
    client = WebSocketClient(
        server.port, opening=handshake(path, server.port, Cookie="token=secret")
    )
    assert client.hello["upgrades"] == []
    assert client.hello["maxPayload"] == 65_536
    [[session, sid]] = [client.call(0, "whoami")]
    assert session == {"cookie": "token=secret", "auth": {"token": "good"}}
    assert sid == client.sid
    assert server.stats()["environs"] == 0
    client.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"4",
        b"4x",
        b"42",
        b"42{}",
        b"42[]",
        b"42[1]",
        b'42["unfinished"',
        b"43",
        b"45",
        b"46",
        b"44",
        b'451-["blob",{"_placeholder":true,"num":0}]',
        b"7",
        b"x",
        b"42" + b"9" * 200 + b'["x"]',
        b"42" + b"[" * 20_000,
    ],
)
def test_a_malformed_packet_ends_the_connection(server: Echo, sent: bytes) -> None:
    client = WebSocketClient(server.port)
    client.send(frame(TEXT, sent))
    assert client.read_close() == 1002
    client.close()


def test_binary_messages_are_refused(server: Echo) -> None:
    client = WebSocketClient(server.port)
    client.send(frame(BINARY, b"\x00"))
    assert client.read_close() == 1003
    client.close()


def test_a_close_packet_and_a_namespace_disconnect_end_the_connection(server: Echo) -> None:
    for packet in ("1", "41"):
        client = WebSocketClient(server.port)
        client.text(packet)
        assert client.read_close() == 1000
        client.close()


def test_closing_without_reconnect_sends_disconnect_and_the_reason(server: Echo) -> None:
    client = WebSocketClient(server.port)
    client.text('42["leave me","close_with"]')
    assert client.packet() == "41"
    opcode, payload = client.read()
    assert (opcode, payload) == (CLOSE, (1008).to_bytes(2, "big") + b"signed out")
    client.close()


def test_unknown_namespaces_are_refused_with_a_reason(server: Echo) -> None:
    client = socketio.Client(reconnection=False)
    seen: list[Any] = []
    client.on("connect_error", seen.append, namespace="/admin")
    with pytest.raises(socketio.exceptions.ConnectionError):
        client.connect(server.url, namespaces=["/admin"], transports=["websocket"])
    assert seen == [{"message": "Invalid namespace"}]
    client.disconnect()


def test_errors_in_another_namespace_keep_the_connection(server: Echo) -> None:
    client = WebSocketClient(server.port)
    client.text("40")
    assert client.packet() == '44{"message":"Already connected"}'
    client.text("40/admin,")
    assert client.packet() == '44/admin,{"message":"Invalid namespace"}'
    for ignored in ("41/admin", '42/admin,1["numbers",1]', "43/admin,1[]", "431[]"):
        client.text(ignored)
    assert client.call(7, "numbers", 0) == [0]
    client.close()


def test_connections_above_the_limit_are_refused_with_retry_after() -> None:
    with running(max_connections=3) as server:
        clients = [WebSocketClient(server.port) for _ in range(3)]
        for path in ("/ws", "/socket.io/?EIO=4&transport=websocket"):
            with peer(server.port, path) as refused:
                assert refused.status == 503
                assert refused.body["code"] == "unavailable"
                assert refused.headers["retry-after"] == "5"
        assert requests.get(PollingClient.base_of(server), timeout=10).status_code == 503
        clients.pop().close()
        eventually(lambda: server.stats()["open"] == 2)
        clients.append(WebSocketClient(server.port))
        for client in clients:
            client.close()


def test_a_client_that_does_not_authenticate_in_time_is_closed(server: Echo) -> None:
    client = WebSocketClient(server.port, join=False)
    assert client.read_close() == 1008
    client.close()


def test_a_client_that_does_not_answer_pings_is_closed(pinging: Echo) -> None:
    client = WebSocketClient(pinging.port)
    eventually(lambda: ["socket.io", "ping timeout"] in pinging.stats()["ended"])
    assert client.read_text() == "2"
    assert client.at_end()
    client.close()


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("EIO=3&transport=websocket", {}, 400),
        ("transport=websocket", {}, 400),
        ("EIO=4&transport=websocket", {"Origin": "https://evil.example"}, 403),
        ("EIO=4&transport=websocket", {"Origin": "null"}, 403),
        ("EIO=4&transport=websocket", {"Sec_WebSocket_Version": "7"}, 426),
        ("EIO=4&transport=websocket&sid=unknown", {}, 400),
    ],
)
def test_bad_handshakes_are_refused_before_the_upgrade(
    server: Echo, query: str, headers: dict[str, str], status: int
) -> None:
    path = f"/socket.io/?{query}"
    with peer(server.port, opening=handshake(path, server.port, **headers)) as client:
        assert client.status == status
    assert server.stats()["sessions"] == 0


COOKIE = "a=b; credential=secret"
OTHER = "https://shop.example.com"  # an allowed origin


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        # With the cookie: the browser has to say that the page is one of this server's.
        ({"Cookie": COOKIE}, False),
        ({"Cookie": COOKIE, "Sec-Fetch-Site": "same-origin"}, True),
        ({"Cookie": COOKIE, "Sec-Fetch-Site": "none"}, True),
        ({"Cookie": COOKIE, "Sec-Fetch-Site": "same-site"}, False),
        ({"Cookie": COOKIE, "Sec-Fetch-Site": "cross-site"}, False),
        ({"Cookie": COOKIE, "Sec-Fetch-Site": "cross-site", "Origin": OTHER}, True),
        ({"Cookie": COOKIE, "Sec-Fetch-Site": "same-site", "Origin": "http://{own}"}, False),
        ({"Cookie": COOKIE, "Origin": "http://{own}"}, True),
        ({"Cookie": COOKIE, "Origin": "http://LOCALHOST:{port}"}, True),
        ({"Cookie": COOKIE, "Origin": "http://localhost:1"}, False),
        ({"Cookie": COOKIE, "Origin": "http://www.localhost:{port}"}, False),
        ({"Cookie": COOKIE, "Origin": "null"}, False),
        ({"Cookie": COOKIE, "Referer": "http://{own}/orders?x=1"}, True),
        ({"Cookie": COOKIE, "Referer": "http://localhost:1/"}, False),
        ({"Cookie": COOKIE, "Referer": "http://{own}.evil.example/"}, False),
        ({"Cookie": COOKIE, "Referer": "http://{own}/", "Origin": "http://evil.example"}, False),
        # Without it: programs send no origin, and browsers that of another page.
        ({}, True),
        ({"Cookie": "session=1"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": OTHER}, True),
    ],
    ids=str,
)
@pytest.mark.safety("jsonp-and-cookies")
def test_handshakes_of_other_origins_are_refused_and_checked_strictly_with_the_cookie(
    server: Echo, headers: dict[str, str], allowed: bool
) -> None:
    own = f"localhost:{server.port}"
    sent = {name: text.format(own=own, port=server.port) for name, text in headers.items()}
    polling = PollingClient.base_of(server)
    polled = requests.get(polling, headers={"Host": own} | sent, timeout=10)
    assert polled.status_code == (200 if allowed else 403)
    path = "/socket.io/?EIO=4&transport=websocket"
    with peer(server.port, opening=handshake(path, server.port, **sent)) as client:
        assert client.status == (101 if allowed else 403)
        if not allowed:
            assert client.body["code"] == "forbidden"
