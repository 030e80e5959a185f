"""The server that the published protocol test suites need: `python -m tests.sio.suite_app`.

At /engine.io/ an Engine.IO server that echoes every message; at /socket.io/ a Socket.IO server with
the events and namespaces of the suites. Both have the suites' ping interval, timeout and size.
"""

# ruff: noqa: E402 (patching comes first)
import eventlet

from ordertrack import eventlet_hub

eventlet_hub.install()
eventlet.monkey_patch()

import sys
from functools import partial
from typing import Any

import flask

from ordertrack.server import descriptors, loop, server, websocket
from ordertrack.sio import socketio
from ordertrack.sio.engineio import EncodedMessage, EngineIOSession
from ordertrack.sio.engineio_server import EngineIOServer

TIMES = {"ping_interval": 0.3, "ping_timeout": 0.2}
limits = websocket.Limits(max_message_bytes=1_000_000)


class Echo:
    """The handler of the Engine.IO server: sends every message back."""

    def on_message(self, session: EngineIOSession, data: str) -> None:
        session.send(EncodedMessage([data]))

    def on_disconnect(self, session: EngineIOSession, reason: str | None) -> None:
        pass


engine_io = EngineIOServer(limits=limits, **TIMES)
engine_io.handler = Echo()

app = flask.Flask("suite")
socketio = socketio.SocketIO()
socketio.init_app(app, limits=limits, **TIMES)


def serve_events(namespace: str) -> None:
    server = socketio.server

    def connect(sid: str, environ: dict[str, Any], auth: Any) -> None:
        # In a greenlet, because this handler runs before the answer to CONNECT is sent.
        tell = partial(socketio.emit, "auth", auth or {}, to=sid, namespace=namespace)
        loop.spawn(tell)

    def message(sid: str, *arguments: Any) -> None:
        socketio.emit("message-back", arguments, to=sid, namespace=namespace)

    def message_with_ack(sid: str, *arguments: Any) -> tuple[Any, ...]:
        return arguments

    server.on("connect", connect, namespace=namespace)
    server.on("message", message, namespace=namespace)
    server.on("message-with-ack", message_with_ack, namespace=namespace)


for name in ("/", "/custom"):
    serve_events(name)


@app.get("/polls")
def polls() -> Any:
    """The sessions for which a GET waits."""
    sessions = [*engine_io.sockets.values(), *socketio.server.eio.sockets.values()]
    return [one.sid for one in sessions if one.holds_request]


def application(environ: dict[str, Any], start_response: Any) -> Any:
    if environ["PATH_INFO"] == "/engine.io/":
        return engine_io.handle_request(environ, start_response)
    return app(environ, start_response)


def announce(port: int) -> None:
    sys.stdout.write(f"port {port}\n")
    sys.stdout.flush()


descriptors.raise_limit()
server.serve(
    application,
    server.bind("localhost", 0),
    capacity=1000,
    ready=announce,
    drain=socketio.drain,
)
