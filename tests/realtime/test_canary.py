"""What we use of other people's libraries beyond their documentation, watched.

The transport, the engine and the HTTP server replace parts of eventlet, python-engineio,
python-socketio and Flask-SocketIO. This fails first, and says what to look at, when a new release
changes something that they replace, call or rely on.
"""

import hashlib
import inspect
import socket
import textwrap
from collections.abc import Callable
from typing import Any

import engineio
import engineio.base_server
import engineio.payload
import engineio.server
import eventlet
import eventlet.greenio
import eventlet.hubs
import eventlet.hubs.epolls
import eventlet.patcher
import eventlet.semaphore
import flask
import flask_socketio
import pytest
import socketio
import socketio.base_manager
import socketio.base_server
import socketio.manager
import socketio.server
from engineio.packet import Packet

from ordertrack.realtime.engine import RoomManager, Server, SocketIO
from ordertrack.realtime.sessions import EngineServer, EngineSocket

# Library code → the digest of the source that ours was written against, and which of ours that is.
REPLACED: list[tuple[Callable[..., Any], str, str]] = [
    (flask_socketio.SocketIO.init_app, "1aee68394e5a", "engine.SocketIO"),
    (socketio.base_server.BaseServer.__init__, "2c8cc5c0d8c6", "engine.Server"),
    (socketio.server.Server.disconnect, "020af70c9898", "engine.Server"),
    (socketio.server.Server._handle_connect, "f5c273b9ebd0", "engine.Server"),
    (socketio.server.Server._handle_disconnect, "6b911cf3d530", "engine.Server"),
    (socketio.server.Server._handle_eio_message, "593c35ba826b", "engine.Server"),
    (socketio.server.Server._handle_eio_connect, "6e14607150e7", "engine.Server"),
    (socketio.server.Server._handle_eio_disconnect, "5f8577bacbe6", "engine.Server"),
    (socketio.server.Server._handle_event, "31c51f38933a", "engine.Server"),
    (socketio.server.Server._handle_event_internal, "59536800dbb7", "engine.Server"),
    (socketio.server.Server._send_packet, "dbf7d9137a9e", "sessions.EngineSocket"),
    (socketio.base_server.BaseServer.get_environ, "f1ef733563a3", "engine.Server"),
    (socketio.base_manager.BaseManager, "b393b4c05dbd", "engine.RoomManager"),
    (socketio.manager.Manager, "cfeabf92435f", "engine.RoomManager"),
    (engineio.server.Server.handle_request, "a7a76a9ee2ec", "sessions.EngineServer"),
    (engineio.server.Server._handle_connect, "e1542abec3a1", "sessions.EngineServer"),
    (engineio.server.Server._trigger_event, "56e4d9485b7d", "sessions.EngineServer"),
    (engineio.server.Server.send_packet, "6f243be7bde1", "sessions.EngineSocket"),
    (engineio.server.Server.disconnect, "7c4e05c3bd7e", "sessions.EngineSocket"),
    (engineio.base_server.BaseServer.__init__, "0f52c7378430", "sessions.EngineServer"),
    (engineio.base_server.BaseServer._get_socket, "964b154af6ee", "sessions.EngineSocket"),
    (engineio.base_server.BaseServer._ok, "f48ca3f7f5fb", "sessions.EngineServer"),
    (engineio.payload.Payload, "6b839223a0a7", "sessions._PollQueue"),
    (eventlet.hubs.epolls.Hub.add, "cbe94e0160e0", "transport._Loop"),
]


def digest(code: Callable[..., Any]) -> str:
    source = textwrap.dedent(inspect.getsource(code))
    return hashlib.sha256(source.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("code", "known", "ours"),
    REPLACED,
    ids=[f"{code.__module__}.{code.__qualname__}" for code, _, _ in REPLACED],
)
def test_what_we_replace_is_what_it_was(code: Callable[..., Any], known: str, ours: str) -> None:
    assert digest(code) == known, (
        f"{code.__module__}.{code.__qualname__} has changed in this release. Compare it with "
        f"ordertrack.realtime.{ours}, adapt that if need be, and note {digest(code)!r} here."
    )


def test_every_method_of_the_stock_manager_that_touches_rooms_is_ours() -> None:
    state = ("self.rooms", "self.pending_connect", "self.pending_disconnect", "self.eio_to_sid")
    for name, method in inspect.getmembers(socketio.Manager, inspect.isfunction):
        if name != "__init__" and any(field in inspect.getsource(method) for field in state):
            assert name in vars(RoomManager), f"RoomManager must replace {name}"


def test_our_classes_override_what_exists() -> None:
    """A renamed method would silently not be called any more."""
    additions = {
        EngineServer: {"open_packet", "session_ended", "receive", "_open_websocket"}
        | {"_new_session", "_sweep"},
        Server: set(),
        RoomManager: {"sockets", "socket", "forget", "_client", "_recipients", "_remove"},
        SocketIO: {"rooms", "drain"},
    }
    for ours, added in additions.items():
        base = ours.__mro__[1]
        for name, member in vars(ours).items():
            if callable(member) and not name.startswith("__") and name not in added:
                assert hasattr(base, name), f"{base.__module__}.{base.__qualname__} lost {name}"


def test_sessions_have_what_the_library_asks_of_its_sockets() -> None:
    source = inspect.getsource(engineio.server) + inspect.getsource(engineio.base_server)
    for name in ("closed", "connected", "upgraded", "session"):
        assert name in EngineSocket.__slots__ or hasattr(EngineSocket, name)
    for name in ("handle_get_request", "handle_post_request", "close", "send"):
        assert f".{name}(" in source, f"the library no longer calls {name} of its sockets"
        assert callable(getattr(EngineSocket, name))


def test_packets_are_encoded_as_we_build_them_ourselves() -> None:
    assert Packet(4, 'x["a"]').encode() == '4x["a"]'
    assert Packet(2).encode() == "2"
    assert Packet(4, b"\x00").encode(b64=True) == "bAA=="
    assert socketio.packet.Packet(2, ["e", {"a": 1}], namespace="/").encode() == '2["e",{"a":1}]'
    assert socketio.packet.Packet(1, namespace="/").encode() == "1"


def test_flask_socketio_keeps_its_middleware_and_handlers_where_we_put_ours() -> None:
    made = SocketIO()

    @made.on("before")
    def before() -> None: ...

    app = flask.Flask("canary")
    made.init_app(app)
    assert type(made.server) is Server
    assert type(made.server.eio) is EngineServer
    assert type(made.server.manager) is RoomManager
    assert made.sockio_mw.engineio_app is made.server
    assert app.wsgi_app is made.sockio_mw
    assert "before" in made.server.handlers["/"]
    assert app.extensions["socketio"] is made


def test_eventlets_hub_calls_back_as_often_as_a_descriptor_is_ready() -> None:
    hub = eventlet.hubs.get_hub()
    original = eventlet.patcher.original("select")
    inner = original.epoll()
    one, other = socket.socketpair()
    inner.register(other.fileno(), original.EPOLLIN)
    calls: list[Any] = []

    def ready(descriptor: int) -> None:
        calls.append((descriptor, inner.poll(0, 8)))
        other.recv(1)

    listener = hub.add(hub.READ, inner.fileno(), ready, lambda *_: None, None)
    try:
        for _ in range(3):
            one.send(b"x")
            eventlet.sleep(0.01)
        assert [call[0] for call in calls] == [inner.fileno()] * 3
        assert all(events == [(other.fileno(), original.EPOLLIN)] for _, events in calls)
    finally:
        hub.remove(listener)
        inner.close()
        one.close()
        other.close()


def test_eventlet_has_the_names_that_we_use() -> None:
    hub = eventlet.hubs.get_hub()
    assert callable(hub.schedule_call_global)
    assert list(inspect.signature(eventlet.hubs.trampoline).parameters)[:5] == [
        "fd",
        "read",
        "write",
        "timeout",
        "timeout_exc",
    ]
    assert issubclass(eventlet.hubs.IOClosed, IOError)
    assert eventlet.semaphore.Semaphore(0).counter == 0
    pool = eventlet.GreenPool(1)
    assert all(callable(getattr(pool, name)) for name in ("spawn_n", "waitall", "running"))
    with socket.socket() as plain:
        green = eventlet.greenio.GreenSocket(plain)
        assert green.fd is plain, "serving gives this away when a WebSocket takes over"
