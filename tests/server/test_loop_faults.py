"""After an exception in the loop, that connection ends and all others go on, or the process exits.

An exception is injected into every callback of a real server's loop.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.server import faults
from tests.server.echo import Echo, running
from tests.server.wire import Peer, peer
from tests.support.waiting import eventually

KINDS = ["epoll", "portable"]
SETTINGS = {"max_queue_bytes": 300_000, "max_queue_seconds": 1.0, "close_seconds": 0.5}

# Callbacks that run for a client that does not read, and those that the sweeps call.
UNREAD = {"on_writable", "check_pace", "watch"}
SWEPT = {"check_pace", "expire"}


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Echo]:
    with running(portable=request.param == "portable", **SETTINGS) as started:
        yield started


@pytest.fixture(scope="module")
def pinging() -> Iterator[Echo]:
    """A server that pings often enough for a test to wait for it."""
    with running(pings=[1.0, 0.6], **SETTINGS) as started:
        yield started


def provoke(client: Peer, what: str) -> None:
    """Do what makes the server run that callback for this connection."""
    if what == "flush":
        client.text("enqueue something")
    elif what in UNREAD:
        client.text("flood 250 1000")
    elif what == "expire":
        client.text("close 1000")  # which this client never answers
    elif what == "on_close":
        client.close()
    elif what not in faults.HEARTBEAT:  # which needs no client
        client.text("anything")


def is_at_end(client: Peer) -> bool:
    """Read until the connection ends, in order or not."""
    try:
        while client.socket.recv(65_536):
            pass
    except ConnectionError:
        pass
    return True


def answer(client: Peer, text: str) -> str:
    client.text(text)
    return client.read_text()


def witness(server: Echo) -> ClientConnection:
    """A client that answers pings by itself."""
    return connect(f"ws://127.0.0.1:{server.port}/ws")


def echo(client: ClientConnection, text: str) -> str:
    client.send(text)
    return str(client.recv(timeout=10))


def strike(server: Echo, what: str, witness: ClientConnection, stack: ExitStack) -> None:
    """Inject the fault for one connection; returns when that one has ended."""
    if what == "on_open":
        assert echo(witness, "break next on_open") == "broken"
        with pytest.raises(ConnectionError):
            Peer(server.port)
        return
    victim = stack.enter_context(peer(server.port, receive_buffer=4096))
    assert answer(victim, f"break {what}") == "broken"
    provoke(victim, what)
    if what == "on_writable":
        eventually(lambda: server.stats()["queued_bytes"])
        assert victim.socket.recv(100_000)
    if what in UNREAD:
        eventually(lambda: server.stats()["open"] == 1)  # before reading here makes it writable
    assert what == "on_close" or is_at_end(victim)


def goes_on(server: Echo, witness: ClientConnection) -> None:
    """Frames are written and enqueued, on an old connection and on a new one."""
    assert echo(witness, "written") == "written"
    assert echo(witness, "enqueue in the next turn") == "in the next turn"
    with peer(server.port) as newcomer:
        assert answer(newcomer, "enqueue for a newcomer") == "for a newcomer"


def sweeps_go_on(server: Echo) -> None:
    with peer(server.port) as client:
        client.text("close 1000")
        assert is_at_end(client), "though the client never answered"


@pytest.mark.safety("exception-in-the-loop")
@pytest.mark.parametrize("what", faults.ONE_CONNECTION)
def test_a_fault_ends_its_own_connection_only(server: Echo, what: str) -> None:
    with witness(server) as other, ExitStack() as stack:
        strike(server, what, other, stack)
        goes_on(server, other)
        if what in SWEPT:
            sweeps_go_on(server)
        eventually(lambda: server.stats()["open"] == 1)
    assert server.process.poll() is None


@pytest.mark.safety("exception-in-the-loop")
@pytest.mark.parametrize("what", faults.HEARTBEAT)
def test_a_fault_in_the_heartbeat_costs_no_other_connection_its_pings(
    pinging: Echo, what: str
) -> None:
    with witness(pinging) as other, ExitStack() as stack:
        before = pinging.stats()["frames_out"]
        strike(pinging, what, other, stack)
        goes_on(pinging, other)
        silent = stack.enter_context(peer(pinging.port))
        assert is_at_end(silent), "the heartbeat still closes clients that do not answer"
        assert echo(other, "still here") == "still here"
        assert pinging.stats()["frames_out"] > before
    assert pinging.process.poll() is None


def test_a_client_whose_reading_is_paused_does_not_count_as_silent(pinging: Echo) -> None:
    """Its pongs wait behind more messages than its inbox holds, for several timeouts."""
    with witness(pinging) as client:
        client.send("nap 3")
        for number in range(40):
            client.send(f"#{number}")
        assert [client.recv(timeout=10) for _ in range(40)] == [f"#{n}" for n in range(40)]


@pytest.mark.safety("exception-in-the-loop")
def test_a_sweep_that_fails_does_not_stop_the_others(server: Echo) -> None:
    with peer(server.port) as client:
        assert answer(client, "break sweep") == "broken"
    sweeps_go_on(server)


@pytest.mark.safety("exception-in-the-loop")
@pytest.mark.parametrize(
    ("what", "kind"),
    [
        *((what, "epoll") for what in faults.THE_LOOP),
        *((what, "portable") for what in faults.THE_LOOP if what in {"_on_ready", "abort"}),
    ],
)
def test_a_broken_loop_exits_with_an_error(what: str, kind: str) -> None:
    with running(portable=kind == "portable") as server, peer(server.port) as client:
        client.text(f"break {what}")
        if what in {"_on_ready", "abort"}:
            assert client.read_text() == "broken"
            client.text("anything")
        assert server.process.wait(10) == 70
        assert is_at_end(client)
