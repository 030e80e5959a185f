"""The cases of the published protocol test suites: Engine.IO 4 and Socket.IO 5.

Rewritten after the test-suite folders of engine.io-protocol and socket.io-protocol, one test for
each case, against suite_app.py. Binary packets are left out, as docs/protocol.md says; where this
server differs on purpose, the test says how.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import websocket

from tests.server.echo import Echo, running_module
from tests.support.waiting import eventually

PING_INTERVAL, PING_TIMEOUT = 0.3, 0.2
PATHS = ["/engine.io/", "/socket.io/"]
DEADLINE = 10


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    with running_module("tests.sio.suite_app") as started:
        yield started


class RawClient:
    """Sends requests and opens WebSockets at one path; knows nothing of the protocol."""

    def __init__(self, server: Echo, path: str) -> None:
        self.address = f"{server.url}{path}"
        self._server = server
        self._open: list[websocket.WebSocket] = []

    def get(self, query: str) -> requests.Response:
        return requests.get(f"{self.address}?{query}", timeout=DEADLINE)

    def polls(self) -> Any:
        """The sessions for which a poll is under way."""
        return self._server.get("/polls")

    def begin(self) -> "PollingSession":
        answer = self.get("EIO=4&transport=polling")
        assert answer.status_code == 200
        assert answer.text[0] == "0"
        return PollingSession(self, json.loads(answer.text[1:]))

    def socket(self, query: str = "EIO=4&transport=websocket") -> websocket.WebSocket:
        opened = websocket.create_connection(
            f"{self.address.replace('http', 'ws', 1)}?{query}", timeout=DEADLINE
        )
        self._open.append(opened)
        return opened

    def refused_status(self, query: str) -> int:
        """The status that a WebSocket handshake is refused with."""
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            self.socket(query)
        return int(refused.value.status_code)

    def join(self, packet: str = "40") -> websocket.WebSocket:
        """A WebSocket that is connected to a namespace."""
        opened = self.socket()
        assert opened.recv()[0] == "0"
        opened.send(packet)
        assert next_message(opened).startswith("40")
        assert next_message(opened).startswith("42")
        return opened

    def close(self) -> None:
        for opened in self._open:
            opened.shutdown()


class PollingSession:
    """A session over HTTP long-polling."""

    def __init__(self, client: RawClient, handshake: dict[str, Any]) -> None:
        self.handshake = handshake
        self.query = f"EIO=4&transport=polling&sid={handshake['sid']}"
        self.socket_query = f"EIO=4&transport=websocket&sid={handshake['sid']}"
        self._client = client

    def get(self) -> tuple[int, str]:
        answer = self._client.get(self.query)
        return answer.status_code, answer.text

    def post(self, body: str) -> tuple[int, str]:
        answer = requests.post(
            f"{self._client.address}?{self.query}", data=body.encode(), timeout=DEADLINE
        )
        return answer.status_code, answer.text

    def poll_during(self, action: Callable[[], Any]) -> tuple[int, str]:
        """What a poll answers that is under way while *action* runs."""
        answers: list[tuple[int, str]] = []
        polling = threading.Thread(target=lambda: answers.append(self.get()))
        polling.start()
        eventually(lambda: self.handshake["sid"] in self._client.polls())
        action()
        polling.join(DEADLINE)
        return answers[0]


def next_message(socket: websocket.WebSocket) -> str:
    """The next message that is not a ping; pings are answered."""
    for _ in range(int(DEADLINE / PING_INTERVAL)):
        message = str(socket.recv())
        if message != "2":
            return message
        socket.send("3")
    raise AssertionError("only pings came")


def is_closed(socket: websocket.WebSocket) -> bool:
    """Whether the server closes the connection, before the test's deadline."""
    while True:
        try:
            opcode, _ = socket.recv_data()
        except (websocket.WebSocketConnectionClosedException, ConnectionResetError):
            return True
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return True


@pytest.fixture(params=PATHS, ids=["engine.io", "socket.io"])
def client(request: pytest.FixtureRequest, server: Echo) -> Iterator[RawClient]:
    """Both suites contain the cases of Engine.IO."""
    made = RawClient(server, request.param)
    yield made
    made.close()


@pytest.fixture
def echo(server: Echo) -> Iterator[RawClient]:
    """At the Engine.IO server, which echoes every message."""
    made = RawClient(server, "/engine.io/")
    yield made
    made.close()


@pytest.fixture
def events(server: Echo) -> Iterator[RawClient]:
    """At the Socket.IO server."""
    made = RawClient(server, "/socket.io/")
    yield made
    made.close()


HANDSHAKE = {"pingInterval": 300, "pingTimeout": 200, "maxPayload": 1_000_000}


# Engine.IO: handshake ---------------------------------------------------------------------------


def test_polling_opens_a_session(client: RawClient) -> None:
    handshake = client.begin().handshake
    assert isinstance(handshake.pop("sid"), str)
    assert handshake == HANDSHAKE | {"upgrades": ["websocket"]}


@pytest.mark.parametrize(
    "query",
    [
        "transport=polling",
        "EIO=abc&transport=polling",
        "EIO=3&transport=polling",
        "EIO=4",
        "EIO=4&transport=abc",
        "EIO=4&transport=polling&transport=polling",
    ],
)
def test_polling_fails_with_an_invalid_version_or_transport(client: RawClient, query: str) -> None:
    answer = client.get(query)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD"])
def test_polling_fails_with_an_invalid_method(client: RawClient, method: str) -> None:
    sid = client.begin().handshake["sid"]
    address = f"{client.address}?EIO=4&transport=polling"
    assert requests.request(method, address, timeout=DEADLINE).status_code == 400
    if method != "POST":
        address = f"{address}&sid={sid}"
        assert requests.request(method, address, timeout=DEADLINE).status_code == 400


def test_a_websocket_opens_a_session(client: RawClient) -> None:
    message = str(client.socket().recv())
    assert message[0] == "0"
    handshake = json.loads(message[1:])
    assert isinstance(handshake.pop("sid"), str)
    assert handshake == HANDSHAKE | {"upgrades": []}


@pytest.mark.parametrize(
    "query", ["transport=websocket", "EIO=abc&transport=websocket", "EIO=4", "EIO=4&transport=abc"]
)
def test_a_websocket_fails_with_an_invalid_version_or_transport(
    client: RawClient, query: str
) -> None:
    assert client.refused_status(query) == 400


# Engine.IO: messages ----------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["4hello", "4test1\x1e4test2\x1e4test3"])
def test_packets_are_posted_and_polled(echo: RawClient, body: str) -> None:
    session = echo.begin()
    assert session.post(body) == (200, "ok")
    assert session.get() == (200, body)


@pytest.mark.parametrize("body", ["abc", "4ok\x1eabc", "4hello\x1ebAQIDBA=="])
def test_an_invalid_packet_ends_a_polling_session(echo: RawClient, body: str) -> None:
    """In the suite binary packets are valid."""
    session = echo.begin()
    assert session.post(body)[0] == 400
    eventually(lambda: session.get()[0] == 400)


def test_two_polls_at_once_end_the_session(client: RawClient) -> None:
    session = client.begin()
    second: list[tuple[int, str]] = []
    assert session.poll_during(lambda: second.append(session.get())) == (200, "1")
    assert second[0][0] == 400
    assert session.get()[0] == 400


def test_an_aborted_poll_ends_the_session(client: RawClient) -> None:
    """The packets of its answer are lost, so the session cannot go on."""
    session = client.begin()
    with pytest.raises(requests.Timeout):
        requests.get(f"{client.address}?{session.query}", timeout=0.05)
    assert session.get()[0] == 400


def test_a_message_is_echoed_over_a_websocket(echo: RawClient) -> None:
    socket = echo.socket()
    assert next_message(socket)[0] == "0"
    socket.send("4hello")
    assert next_message(socket) == "4hello"


def test_an_invalid_packet_ends_a_websocket_session(client: RawClient) -> None:
    socket = client.socket()
    socket.send("abc")
    assert is_closed(socket)


# Engine.IO: heartbeat ---------------------------------------------------------------------------


def test_pings_are_sent_and_pongs_accepted_over_polling(client: RawClient) -> None:
    session = client.begin()
    for _ in range(3):
        assert session.get() == (200, "2")
        assert session.post("3") == (200, "ok")


@pytest.mark.parametrize("then", ["get", "post"])
def test_a_polling_session_ends_with_the_ping_timeout(client: RawClient, then: str) -> None:
    session = client.begin()
    time.sleep(PING_INTERVAL + PING_TIMEOUT)
    status = session.get()[0] if then == "get" else session.post("3")[0]
    assert status == 400


def test_pings_are_sent_and_pongs_accepted_over_a_websocket(client: RawClient) -> None:
    socket = client.socket()
    assert str(socket.recv())[0] == "0"
    for _ in range(3):
        assert socket.recv() == "2"
        socket.send("3")


def test_a_websocket_session_ends_with_the_ping_timeout(client: RawClient) -> None:
    assert is_closed(client.socket())


# Engine.IO: close -------------------------------------------------------------------------------


def test_a_close_packet_ends_a_polling_session(client: RawClient) -> None:
    session = client.begin()
    closed: list[tuple[int, str]] = []
    assert session.poll_during(lambda: closed.append(session.post("1"))) == (200, "6")
    assert closed == [(200, "ok")]
    assert session.get()[0] == 400
    assert session.post("4late")[0] == 400


def test_a_close_packet_ends_a_websocket_session(client: RawClient) -> None:
    socket = client.socket()
    socket.send("1")
    assert is_closed(socket)


# Engine.IO: upgrade -----------------------------------------------------------------------------


def upgraded(client: RawClient) -> tuple[PollingSession, websocket.WebSocket]:
    session = client.begin()
    socket = client.socket(session.socket_query)
    socket.send("2probe")
    assert socket.recv() == "3probe"
    assert session.get() == (200, "6"), "a poll that is under way ends with a noop"
    socket.send("5")
    return session, socket


def test_a_polling_session_upgrades_to_a_websocket(echo: RawClient) -> None:
    _, socket = upgraded(echo)
    socket.send("4hello")
    assert next_message(socket) == "4hello"


def test_requests_of_an_upgraded_session_are_refused(echo: RawClient) -> None:
    session, socket = upgraded(echo)
    socket.send("4first")
    assert next_message(socket) == "4first"
    assert session.get()[0] == 400
    assert session.post("4lost")[0] == 400
    socket.send("4hello")
    assert next_message(socket) == "4hello"


def test_a_second_websocket_of_an_upgraded_session_is_refused(echo: RawClient) -> None:
    session, socket = upgraded(echo)
    assert echo.refused_status(session.socket_query) == 400
    socket.send("4hello")
    assert next_message(socket) == "4hello"


# Socket.IO: connect -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "auth"),
    [("", None), ("", {"token": "123"}), ("/custom,", None), ("/custom,", {"token": "abc"})],
)
def test_a_client_connects_to_a_namespace(events: RawClient, namespace: str, auth: Any) -> None:
    socket = events.socket()
    assert next_message(socket)[0] == "0"
    socket.send(f"40{namespace}" + ("" if auth is None else json.dumps(auth)))
    answer = next_message(socket)
    assert answer.startswith(f"40{namespace}" + "{")
    connected = json.loads(answer.removeprefix(f"40{namespace}"))
    assert connected.keys() == {"sid"}
    assert isinstance(connected["sid"], str)
    told = next_message(socket)
    assert told.startswith(f'42{namespace}["auth",')
    assert json.loads(told.removeprefix(f"42{namespace}"))[1] == (auth or {})


def test_an_unknown_namespace_is_refused(events: RawClient) -> None:
    socket = events.socket()
    assert next_message(socket)[0] == "0"
    socket.send("40/random")
    assert next_message(socket) == '44/random,{"message":"Invalid namespace"}'


def test_an_invalid_handshake_ends_the_connection(events: RawClient) -> None:
    socket = events.socket()
    assert next_message(socket)[0] == "0"
    socket.send("4abc")
    assert is_closed(socket)


# Socket.IO: disconnect --------------------------------------------------------------------------


def test_leaving_the_last_namespace_ends_the_connection(events: RawClient) -> None:
    """In the suite the connection stays open, although no client uses it."""
    socket = events.join()
    socket.send("41")
    assert is_closed(socket)


def test_leaving_one_of_two_namespaces_leaves_the_other(events: RawClient) -> None:
    socket = events.join()
    socket.send("40/custom")
    assert next_message(socket).startswith("40/custom,")
    assert next_message(socket).startswith("42/custom,")
    socket.send("41/custom")
    socket.send('42["message","message to main namespace"]')
    assert next_message(socket) == '42["message-back","message to main namespace"]'


# Socket.IO: messages ----------------------------------------------------------------------------


def test_an_event_is_echoed(events: RawClient) -> None:
    socket = events.join()
    socket.send('42["message",1,"2",{"3":[true]}]')
    assert next_message(socket) == '42["message-back",1,"2",{"3":[true]}]'


def test_an_event_is_acknowledged(events: RawClient) -> None:
    socket = events.join()
    socket.send('42456["message-with-ack",1,"2",{"3":[false]}]')
    assert next_message(socket) == '43456[1,"2",{"3":[false]}]'


@pytest.mark.parametrize(
    "packet",
    ["4abc", "42{}", '42abc["message-with-ack",1,"2",{"3":[false]}]'],
    ids=["unknown kind", "no list", "no number"],
)
def test_a_packet_of_invalid_format_ends_the_connection(events: RawClient, packet: str) -> None:
    socket = events.join()
    socket.send(packet)
    assert is_closed(socket)


def test_a_packet_with_binary_attachments_ends_the_connection(events: RawClient) -> None:
    """In the suite it is accepted. Here no event has attachments, so none are collected."""
    socket = events.join()
    socket.send('451-["message",{"_placeholder":true,"num":0}]')
    assert is_closed(socket)
