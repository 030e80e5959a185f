"""Undocumented parts of libraries that we replace, call or rely on.

server/ and sio/ replace parts of eventlet, python-engineio, python-socketio and Flask-SocketIO, and
web/lean_flask.py parts of Flask and Werkzeug. A test here fails when a new release changes one of
those parts, and says what to compare.
"""

import hashlib
import inspect
import re
import socket
import textwrap
from collections.abc import Callable
from typing import Any

import engineio
import engineio.payload
import eventlet
import eventlet.greenio
import eventlet.hubs
import eventlet.hubs.epolls
import eventlet.hubs.hub
import eventlet.hubs.poll
import eventlet.patcher
import eventlet.semaphore
import eventlet.tpool
import flask
import flask_socketio
import flask_sqlalchemy
import pytest
import socketio
import socketio.base_manager
import socketio.base_server
import socketio.exceptions
import socketio.manager
import socketio.server
import werkzeug.datastructures
import werkzeug.routing
import werkzeug.sansio.response
import werkzeug.wrappers
import werkzeug.wsgi
from engineio.packet import Packet

from ordertrack.sio.engineio_server import EngineIOServer
from ordertrack.sio.rooms import RoomManager
from ordertrack.sio.socketio import Server, SocketIO

# Library code, the digest of the source that ours was written for, and the name of ours.
REPLACED: list[tuple[Callable[..., Any], str, str]] = [
    (flask_socketio.SocketIO.init_app, "1aee68394e5a", "sio.socketio.SocketIO"),
    (flask_socketio.SocketIO._handle_event, "69a4417881fc", "sio.socketio.Server.get_environ"),
    (socketio.base_server.BaseServer.__init__, "2c8cc5c0d8c6", "sio.socketio.Server"),
    (socketio.base_server.BaseServer.get_environ, "f1ef733563a3", "sio.socketio.Server"),
    (
        socketio.base_server.BaseServer._get_event_handler,
        "6a4ef0e7299a",
        "realtime.socketio_handlers",
    ),
    (socketio.server.Server.disconnect, "020af70c9898", "sio.socketio.Server"),
    (socketio.server.Server._trigger_event, "538ac44578a4", "sio.socketio.Server"),
    (socketio.server.Server._handle_connect, "f5c273b9ebd0", "sio.socketio.Server._connect"),
    (socketio.server.Server._handle_disconnect, "6b911cf3d530", "sio.socketio.Server._leave"),
    (socketio.server.Server._handle_event, "31c51f38933a", "sio.socketio.Server._event"),
    (socketio.server.Server._handle_event_internal, "59536800dbb7", "sio.socketio.Server._event"),
    (socketio.server.Server._handle_ack, "185c7aa8cb39", "sio.socketio.Server.on_message"),
    (socketio.server.Server._handle_eio_message, "593c35ba826b", "sio.socketio.Server.on_message"),
    (socketio.server.Server._handle_eio_connect, "6e14607150e7", "sio.socketio.Server"),
    (
        socketio.server.Server._handle_eio_disconnect,
        "5f8577bacbe6",
        "sio.socketio.Server.on_disconnect",
    ),
    (socketio.server.Server._send_packet, "dbf7d9137a9e", "sio.socketio.Server._send"),
    (
        socketio.server.Server._send_eio_packet,
        "c12968b6a8d7",
        "sio.engineio_server.EngineIOServer.send_packet",
    ),
    (socketio.base_manager.BaseManager, "b393b4c05dbd", "sio.rooms.RoomManager"),
    (socketio.manager.Manager, "cfeabf92435f", "sio.rooms.RoomManager"),
    (engineio.payload.Payload, "6b839223a0a7", "sio.engineio._Polling"),
    (eventlet.hubs.epolls.Hub, "b66e07590dd9", "eventlet_hub.Hub and server.loop.Loop"),
    (eventlet.hubs.poll.Hub.wait, "8d89538abd2e", "eventlet_hub.Hub and server.epoll.Epoll"),
    (eventlet.hubs.poll.Hub.register, "77c890b3fccc", "eventlet_hub.Hub"),
    (eventlet.hubs.poll.Hub.remove, "668ab3bac6a7", "eventlet_hub.Hub"),
    (eventlet.hubs.hub.BaseHub.run, "c06bda1eea56", "eventlet_hub.Hub"),
    (eventlet.hubs.hub.BaseHub.add, "8b66f5456e91", "eventlet_hub.Hub"),
    (eventlet.hubs.hub.BaseHub.switch, "4d03463f6ee7", "eventlet_hub.Hub"),
    (eventlet.hubs.hub.BaseHub.sleep_until, "f29e9a0fa070", "eventlet_hub.Hub"),
    (eventlet.hubs.hub.BaseHub.mark_as_reopened, "693eb0241b42", "eventlet_hub.Hub"),
    (eventlet.hubs.hub.BaseHub._obsolete, "631043ca8f61", "eventlet_hub.Hub"),
    (eventlet.hubs.hub.BaseHub.squelch_exception, "1a1328f30142", "server.epoll.Epoll"),
    (eventlet.hubs.hub.BaseHub.squelch_generic_exception, "908d5818a823", "eventlet_hub.Hub"),
    (eventlet.tpool.execute, "b4389614472e", "eventlet_support"),
    (flask.Flask.create_url_adapter, "f337dbb3024d", "web.lean_flask.LeanFlask"),
    (flask.Flask.preprocess_request, "476fe4aece3f", "web.lean_flask.LeanFlask"),
    (flask.Flask.do_teardown_request, "16214bfc64b6", "web.lean_flask.LeanFlask"),
    (flask.Flask.ensure_sync, "cf72a49fc5e1", "web.lean_flask.LeanFlask"),
    (flask.wrappers.Request.blueprints.fget, "8cd05133b916", "web.lean_flask._Request"),
    (werkzeug.wrappers.Request.close, "fb42dcd8039f", "web.lean_flask._Request"),
    (werkzeug.wsgi.get_input_stream, "406abdafb32a", "web.lean_flask._Request.stream"),
    (werkzeug.routing.MapAdapter.__init__, "253d387686b8", "web.lean_flask._Adapter"),
    (werkzeug.routing.MapAdapter.match, "c29d10eb03c5", "web.lean_flask._Adapter"),
    (
        werkzeug.routing.Map.bind_to_environ,
        "0dacc2108458",
        "web.lean_flask.LeanFlask.create_url_adapter",
    ),
    (werkzeug.sansio.response.Response.__init__, "72c1ab7a4110", "web.lean_flask.JsonResponse"),
    (werkzeug.wrappers.Response.__init__, "dd8778fa0168", "web.lean_flask.JsonResponse"),
    (werkzeug.wrappers.Response.set_data, "d5d869732e95", "web.lean_flask.JsonResponse"),
    (werkzeug.wrappers.Response.__call__, "6df72d67b8bb", "web.lean_flask.JsonResponse"),
    (werkzeug.wrappers.Response.get_wsgi_response, "e685ccbcbc64", "web.lean_flask.JsonResponse"),
    (werkzeug.wrappers.Response.get_wsgi_headers, "db6dd7fe64f9", "web.lean_flask.JsonResponse"),
    (werkzeug.wrappers.Response.get_app_iter, "faae15effc59", "web.lean_flask.JsonResponse"),
    (werkzeug.datastructures.Headers.__init__, "c56cd38bcd69", "web.lean_flask.JsonResponse"),
    (werkzeug.datastructures.Headers.to_wsgi_list, "617d971cd0e4", "web.lean_flask.JsonResponse"),
    (flask_sqlalchemy.SQLAlchemy._teardown_session, "620a72733d54", "extensions.Database"),
]


def digest(code: Callable[..., Any]) -> str:
    source = textwrap.dedent(inspect.getsource(code))
    return hashlib.sha256(source.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("code", "known", "ours"),
    REPLACED,
    ids=[f"{code.__module__}.{code.__qualname__}" for code, _, _ in REPLACED],
)
def test_replaced_library_code_is_unchanged(
    code: Callable[..., Any], known: str, ours: str
) -> None:
    assert digest(code) == known, (
        f"{code.__module__}.{code.__qualname__} has changed in this release. Compare it with "
        f"ordertrack.{ours}, adapt that if need be, and note {digest(code)!r} here."
    )


def test_room_manager_replaces_every_method_that_touches_rooms() -> None:
    state = ("self.rooms", "self.pending_connect", "self.pending_disconnect", "self.eio_to_sid")
    for name, method in inspect.getmembers(socketio.Manager, inspect.isfunction):
        if name != "__init__" and any(field in inspect.getsource(method) for field in state):
            assert name in vars(RoomManager), f"RoomManager must replace {name}"


def test_our_classes_override_existing_methods_only() -> None:
    """A method that the library renames would silently not be called any more."""
    additions = {
        Server: {"on_message", "on_disconnect", "_is_event", "_connect", "_run_connect_handler"}
        | {"_event", "_leave", "_send"},
        RoomManager: {"sockets", "socket", "namespaces_of", "forget", "_client", "_recipients"}
        | {"_remove"},
        SocketIO: {"rooms", "drain"},
    }
    for ours, added in additions.items():
        base = ours.__mro__[1]
        for name, member in vars(ours).items():
            if callable(member) and not name.startswith("__"):
                assert hasattr(base, name) is (name not in added), f"{ours.__name__}.{name}"


def test_engineio_server_has_what_python_socketio_calls() -> None:
    """And python-socketio calls nothing else of its Engine.IO server."""
    asked: set[str] = set()
    for module in (socketio.server, socketio.base_server, socketio.base_manager, socketio.manager):
        asked |= set(re.findall(r"(?:self|server)\.eio\.(\w+)", inspect.getsource(module)))
    assert asked == {
        "async_mode", "create_event", "generate_id", "get_session", "handle_request", "on",
        "send", "send_packet", "shutdown", "sleep", "start_background_task", "transport",
    }  # fmt: skip
    server = EngineIOServer()
    assert all(hasattr(server, name) for name in asked)


def test_python_socketio_dispatches_events_as_we_rely_on() -> None:
    server = Server(client_manager=RoomManager())
    server.on("known", lambda sid, *arguments: (sid, arguments))
    assert server._trigger_event("known", "/", "a sid", 1, 2) == ("a sid", (1, 2))
    assert server._trigger_event("unknown", "/", "a sid") is server.not_handled
    server.on("*", lambda event, sid: (event, sid))
    assert server._trigger_event("unknown", "/", "a sid") == ("unknown", "a sid")
    assert set(server.reserved_events) == {"connect", "disconnect"}
    assert server._trigger_event("connect", "/", "a sid") is server.not_handled
    assert server.packet_class is socketio.packet.Packet
    assert server.handlers.keys() == {"/"}
    assert server.namespace_handlers == {}
    assert type(server.eio) is EngineIOServer
    refused = socketio.exceptions.ConnectionRefusedError
    assert refused("no", {"code": 1}).error_args == {"message": "no", "data": {"code": 1}}
    assert refused().error_args == {"message": "Connection rejected by server"}
    for reason in ("CLIENT_DISCONNECT", "SERVER_DISCONNECT", "PING_TIMEOUT", "TRANSPORT_CLOSE"):
        assert isinstance(getattr(server.reason, reason), str)
    assert isinstance(server.reason.TRANSPORT_ERROR, str)


def test_packets_are_encoded_as_we_encode_them() -> None:
    assert Packet(4, 'x["a"]').encode() == '4x["a"]'
    assert Packet(2).encode() == "2"
    assert Packet(4, b"\x00").encode(b64=True) == "bAA=="
    assert socketio.packet.Packet(2, ["e", {"a": 1}], namespace="/").encode() == '2["e",{"a":1}]'
    assert socketio.packet.Packet(1, namespace="/").encode() == "1"
    assert socketio.packet.Packet(3, [1], namespace="/a", id=7).encode() == "3/a,7[1]"
    assert engineio.payload.Payload([Packet(4, "a"), Packet(2)]).encode() == "4a\x1e2"
    assert engineio.payload.Payload.max_decode_packets == 16
    read = socketio.packet.Packet(encoded_packet='2/a,7["e",{"b":1}]')
    assert (read.packet_type, read.namespace, read.id) == (2, "/a", 7)
    assert read.data == ["e", {"b": 1}]


def test_flask_socketio_keeps_its_middleware_and_handlers_where_we_put_ours() -> None:
    made = SocketIO()

    @made.on("before")
    def before() -> None: ...

    app = flask.Flask("canary")
    made.init_app(app)
    assert type(made.server) is Server
    assert type(made.server.eio) is EngineIOServer
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
    listening = eventlet.listen(("127.0.0.1", 0))
    listening.setblocking(False)
    with pytest.raises(BlockingIOError):
        listening.accept()
    with socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        assert not isinstance(accepted, eventlet.greenio.GreenSocket), "we serve plain sockets"
        accepted.close()
    listening.close()


def test_eventlets_timeout_can_end_silently() -> None:
    with eventlet.Timeout(0.01, False):
        eventlet.sleep(5)
        pytest.fail("the block was not left")


def test_eventlet_runs_blocking_calls_in_a_thread() -> None:
    own = eventlet.patcher.original("threading").get_ident()
    assert eventlet.tpool.execute(eventlet.patcher.original("threading").get_ident) != own
    with pytest.raises(ZeroDivisionError):
        eventlet.tpool.execute(lambda: 1 // 0)
    eventlet.tpool.killall()


def test_eventlets_hub_drops_a_descriptor_whose_callback_raises() -> None:
    """So our callback must not raise: no socket would be read any more."""
    one, other = socket.socketpair()
    hub = eventlet.hubs.get_hub()
    calls: list[int] = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        raise RuntimeError("a bug in a callback")

    hub.add(hub.READ, other.fileno(), fail, lambda *_: None, None)
    quiet, hub.debug_exceptions = hub.debug_exceptions, False
    try:
        one.send(b"x")
        for _ in range(3):
            eventlet.sleep(0.01)
        seen = len(calls)
        one.send(b"x")
        eventlet.sleep(0.01)
        assert seen == len(calls) > 0
        assert other.fileno() not in hub.listeners[hub.READ]
    finally:
        hub.debug_exceptions = quiet
        one.close()
        other.close()
