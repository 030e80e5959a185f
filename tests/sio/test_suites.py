"""The cases of the published protocol suites: Engine.IO 4 and Socket.IO 5.

Re-written after their descriptions (the folders test-suite of engine.io-protocol and
socket.io-protocol), each case under its own name, against suite_app.py. Left out, as the protocol
page says, are binary packets; where ours differs on purpose, the case says how.
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


class Visitor:
    """A client of one path that knows nothing but bytes."""

    def __init__(self, server: Echo, path: str) -> None:
        self.address = f"{server.url}{path}"
        self._server = server
        self._open: list[websocket.WebSocket] = []

    def get(self, query: str) -> requests.Response:
        return requests.get(f"{self.address}?{query}", timeout=DEADLINE)

    def polls(self) -> Any:
        """The sessions for which a poll is under way."""
        return self._server.get("/polls")

    def begin(self) -> "Polling":
        answer = self.get("EIO=4&transport=polling")
        assert answer.status_code == 200
        assert answer.text[0] == "0"
        return Polling(self, json.loads(answer.text[1:]))

    def socket(self, query: str = "EIO=4&transport=websocket") -> websocket.WebSocket:
        opened = websocket.create_connection(
            f"{self.address.replace('http', 'ws', 1)}?{query}", timeout=DEADLINE
        )
        self._open.append(opened)
        return opened

    def refused(self, query: str) -> int:
        """The status that a WebSocket handshake is refused with."""
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            self.socket(query)
        return int(refused.value.status_code)

    def join(self, packet: str = "40") -> websocket.WebSocket:
        """A WebSocket that is connected to a namespace."""
        opened = self.socket()
        assert opened.recv()[0] == "0"
        opened.send(packet)
        assert said(opened).startswith("40")
        assert said(opened).startswith("42")
        return opened

    def close(self) -> None:
        for opened in self._open:
            opened.shutdown()


class Polling:
    """A session over HTTP long-polling."""

    def __init__(self, visitor: Visitor, hello: dict[str, Any]) -> None:
        self.hello = hello
        self.query = f"EIO=4&transport=polling&sid={hello['sid']}"
        self.socket_query = f"EIO=4&transport=websocket&sid={hello['sid']}"
        self._visitor = visitor

    def get(self) -> tuple[int, str]:
        answer = self._visitor.get(self.query)
        return answer.status_code, answer.text

    def post(self, body: str) -> tuple[int, str]:
        answer = requests.post(
            f"{self._visitor.address}?{self.query}", data=body.encode(), timeout=DEADLINE
        )
        return answer.status_code, answer.text

    def poll_beside(self, action: Callable[[], Any]) -> tuple[int, str]:
        """What a poll answers that is under way while *action* runs."""
        answers: list[tuple[int, str]] = []
        polling = threading.Thread(target=lambda: answers.append(self.get()))
        polling.start()
        eventually(lambda: self.hello["sid"] in self._visitor.polls())
        action()
        polling.join(DEADLINE)
        return answers[0]


def said(socket: websocket.WebSocket) -> str:
    """The next message that is no ping, which is answered."""
    for _ in range(int(DEADLINE / PING_INTERVAL)):
        message = str(socket.recv())
        if message != "2":
            return message
        socket.send("3")
    raise AssertionError("nothing but pings came")


def closes(socket: websocket.WebSocket) -> bool:
    """Whether the server closes the connection, before the test's deadline."""
    while True:
        try:
            opcode, _ = socket.recv_data()
        except (websocket.WebSocketConnectionClosedException, ConnectionResetError):
            return True
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return True


@pytest.fixture(params=PATHS, ids=["engine.io", "socket.io"])
def visitor(request: pytest.FixtureRequest, server: Echo) -> Iterator[Visitor]:
    """The part on Engine.IO stands in both suites."""
    made = Visitor(server, request.param)
    yield made
    made.close()


@pytest.fixture
def echo(server: Echo) -> Iterator[Visitor]:
    """Engine.IO alone, where every message comes back."""
    made = Visitor(server, "/engine.io/")
    yield made
    made.close()


@pytest.fixture
def events(server: Echo) -> Iterator[Visitor]:
    """Socket.IO."""
    made = Visitor(server, "/socket.io/")
    yield made
    made.close()


HELLO = {"pingInterval": 300, "pingTimeout": 200, "maxPayload": 1_000_000}


# Engine.IO: handshake ---------------------------------------------------------------------------


def test_polling_opens_a_session(visitor: Visitor) -> None:
    hello = visitor.begin().hello
    assert isinstance(hello.pop("sid"), str)
    assert hello == HELLO | {"upgrades": ["websocket"]}


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
def test_polling_fails_with_an_invalid_version_or_transport(visitor: Visitor, query: str) -> None:
    answer = visitor.get(query)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD"])
def test_polling_fails_with_an_invalid_method(visitor: Visitor, method: str) -> None:
    sid = visitor.begin().hello["sid"]
    address = f"{visitor.address}?EIO=4&transport=polling"
    assert requests.request(method, address, timeout=DEADLINE).status_code == 400
    if method != "POST":
        address = f"{address}&sid={sid}"
        assert requests.request(method, address, timeout=DEADLINE).status_code == 400


def test_a_websocket_opens_a_session(visitor: Visitor) -> None:
    message = str(visitor.socket().recv())
    assert message[0] == "0"
    hello = json.loads(message[1:])
    assert isinstance(hello.pop("sid"), str)
    assert hello == HELLO | {"upgrades": []}


@pytest.mark.parametrize(
    "query", ["transport=websocket", "EIO=abc&transport=websocket", "EIO=4", "EIO=4&transport=abc"]
)
def test_a_websocket_fails_with_an_invalid_version_or_transport(
    visitor: Visitor, query: str
) -> None:
    assert visitor.refused(query) == 400


# Engine.IO: messages ----------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["4hello", "4test1\x1e4test2\x1e4test3"])
def test_packets_are_posted_and_polled(echo: Visitor, body: str) -> None:
    session = echo.begin()
    assert session.post(body) == (200, "ok")
    assert session.get() == (200, body)


@pytest.mark.parametrize("body", ["abc", "4ok\x1eabc", "4hello\x1ebAQIDBA=="])
def test_an_invalid_packet_ends_a_polling_session(echo: Visitor, body: str) -> None:
    """Binary packets are among them here."""
    session = echo.begin()
    assert session.post(body)[0] == 400
    eventually(lambda: session.get()[0] == 400)


def test_two_polls_at_once_end_the_session(visitor: Visitor) -> None:
    session = visitor.begin()
    second: list[tuple[int, str]] = []
    assert session.poll_beside(lambda: second.append(session.get())) == (200, "1")
    assert second[0][0] == 400
    assert session.get()[0] == 400


def test_a_poll_that_was_given_up_ends_the_session(visitor: Visitor) -> None:
    """What was sent into it is lost, so the session cannot go on."""
    session = visitor.begin()
    with pytest.raises(requests.Timeout):
        requests.get(f"{visitor.address}?{session.query}", timeout=0.05)
    assert session.get()[0] == 400


def test_a_message_comes_back_over_a_websocket(echo: Visitor) -> None:
    socket = echo.socket()
    assert said(socket)[0] == "0"
    socket.send("4hello")
    assert said(socket) == "4hello"


def test_an_invalid_packet_ends_a_websocket_session(visitor: Visitor) -> None:
    socket = visitor.socket()
    socket.send("abc")
    assert closes(socket)


# Engine.IO: heartbeat ---------------------------------------------------------------------------


def test_pings_come_and_pongs_are_taken_over_polling(visitor: Visitor) -> None:
    session = visitor.begin()
    for _ in range(3):
        assert session.get() == (200, "2")
        assert session.post("3") == (200, "ok")


@pytest.mark.parametrize("then", ["get", "post"])
def test_a_polling_session_ends_with_the_ping_timeout(visitor: Visitor, then: str) -> None:
    session = visitor.begin()
    time.sleep(PING_INTERVAL + PING_TIMEOUT)
    status = session.get()[0] if then == "get" else session.post("3")[0]
    assert status == 400


def test_pings_come_and_pongs_are_taken_over_a_websocket(visitor: Visitor) -> None:
    socket = visitor.socket()
    assert str(socket.recv())[0] == "0"
    for _ in range(3):
        assert socket.recv() == "2"
        socket.send("3")


def test_a_websocket_session_ends_with_the_ping_timeout(visitor: Visitor) -> None:
    assert closes(visitor.socket())


# Engine.IO: close -------------------------------------------------------------------------------


def test_a_close_packet_ends_a_polling_session(visitor: Visitor) -> None:
    session = visitor.begin()
    closed: list[tuple[int, str]] = []
    assert session.poll_beside(lambda: closed.append(session.post("1"))) == (200, "6")
    assert closed == [(200, "ok")]
    assert session.get()[0] == 400
    assert session.post("4late")[0] == 400


def test_a_close_packet_ends_a_websocket_session(visitor: Visitor) -> None:
    socket = visitor.socket()
    socket.send("1")
    assert closes(socket)


# Engine.IO: upgrade -----------------------------------------------------------------------------


def upgraded(visitor: Visitor) -> tuple[Polling, websocket.WebSocket]:
    session = visitor.begin()
    socket = visitor.socket(session.socket_query)
    socket.send("2probe")
    assert socket.recv() == "3probe"
    assert session.get() == (200, "6"), "a poll that is under way ends with a noop"
    socket.send("5")
    return session, socket


def test_a_polling_session_upgrades_to_a_websocket(echo: Visitor) -> None:
    _, socket = upgraded(echo)
    socket.send("4hello")
    assert said(socket) == "4hello"


def test_requests_of_an_upgraded_session_are_refused(echo: Visitor) -> None:
    session, socket = upgraded(echo)
    socket.send("4first")
    assert said(socket) == "4first"
    assert session.get()[0] == 400
    assert session.post("4lost")[0] == 400
    socket.send("4hello")
    assert said(socket) == "4hello"


def test_a_second_websocket_of_an_upgraded_session_is_refused(echo: Visitor) -> None:
    session, socket = upgraded(echo)
    assert echo.refused(session.socket_query) == 400
    socket.send("4hello")
    assert said(socket) == "4hello"


# Socket.IO: connect -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "auth"),
    [("", None), ("", {"token": "123"}), ("/custom,", None), ("/custom,", {"token": "abc"})],
)
def test_a_client_connects_to_a_namespace(events: Visitor, namespace: str, auth: Any) -> None:
    socket = events.socket()
    assert said(socket)[0] == "0"
    socket.send(f"40{namespace}" + ("" if auth is None else json.dumps(auth)))
    answer = said(socket)
    assert answer.startswith(f"40{namespace}" + "{")
    hello = json.loads(answer.removeprefix(f"40{namespace}"))
    assert hello.keys() == {"sid"}
    assert isinstance(hello["sid"], str)
    told = said(socket)
    assert told.startswith(f'42{namespace}["auth",')
    assert json.loads(told.removeprefix(f"42{namespace}"))[1] == (auth or {})


def test_an_unknown_namespace_is_refused(events: Visitor) -> None:
    socket = events.socket()
    assert said(socket)[0] == "0"
    socket.send("40/random")
    assert said(socket) == '44/random,{"message":"Invalid namespace"}'


def test_an_invalid_handshake_ends_the_connection(events: Visitor) -> None:
    socket = events.socket()
    assert said(socket)[0] == "0"
    socket.send("4abc")
    assert closes(socket)


# Socket.IO: disconnect --------------------------------------------------------------------------


def test_leaving_the_last_namespace_ends_the_connection(events: Visitor) -> None:
    """Ours: the suite's server stays, and is left with a connection that nobody uses."""
    socket = events.join()
    socket.send("41")
    assert closes(socket)


def test_leaving_one_of_two_namespaces_leaves_the_other(events: Visitor) -> None:
    socket = events.join()
    socket.send("40/custom")
    assert said(socket).startswith("40/custom,")
    assert said(socket).startswith("42/custom,")
    socket.send("41/custom")
    socket.send('42["message","message to main namespace"]')
    assert said(socket) == '42["message-back","message to main namespace"]'


# Socket.IO: messages ----------------------------------------------------------------------------


def test_an_event_comes_back(events: Visitor) -> None:
    socket = events.join()
    socket.send('42["message",1,"2",{"3":[true]}]')
    assert said(socket) == '42["message-back",1,"2",{"3":[true]}]'


def test_an_event_is_acknowledged(events: Visitor) -> None:
    socket = events.join()
    socket.send('42456["message-with-ack",1,"2",{"3":[false]}]')
    assert said(socket) == '43456[1,"2",{"3":[false]}]'


@pytest.mark.parametrize(
    "packet",
    ["4abc", "42{}", '42abc["message-with-ack",1,"2",{"3":[false]}]'],
    ids=["unknown kind", "no list", "no number"],
)
def test_a_packet_of_invalid_format_ends_the_connection(events: Visitor, packet: str) -> None:
    socket = events.join()
    socket.send(packet)
    assert closes(socket)


def test_a_packet_with_binary_attachments_ends_the_connection(events: Visitor) -> None:
    """Ours: no event has any, so there is nothing to put together and to hold meanwhile."""
    socket = events.join()
    socket.send('451-["message",{"_placeholder":true,"num":0}]')
    assert closes(socket)
