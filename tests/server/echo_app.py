"""A small application on the real server: `python -m tests.server.echo_app '{}'`.

Raw WebSockets at /ws obey text commands; Socket.IO has a few events; /stats returns the counters.
Only the HTTP server, the WebSockets and Socket.IO are OrderTrack's own. The argument is JSON:
fields of `Limits`, and the settings that are popped below.
"""

# ruff: noqa: E402 (patching comes first)
import json
import sys
from typing import Any

import eventlet
import eventlet.patcher

from ordertrack import eventlet_hub

settings: dict[str, Any] = json.loads(sys.argv[1])
portable = settings.pop("portable", False)  # as on a system without epoll
if not portable:
    eventlet_hub.install()
eventlet.monkey_patch()

import dataclasses
import errno
import gc

import flask
import flask_socketio
from socketio.exceptions import ConnectionRefusedError as Refused

from ordertrack import problems
from ordertrack.errors import DomainError
from ordertrack.origins import Origins
from ordertrack.server import descriptors, epoll, http_connection, loop, websocket, ws_frames
from ordertrack.server import server as http_server
from ordertrack.server.counters import counters
from ordertrack.server.ws_handshake import check_origin
from ordertrack.sio import engineio_server
from ordertrack.sio.socketio import SocketIO
from tests.server import faults

origins = Origins(frozenset(settings.pop("origins", ())))
drain_seconds = settings.pop("drain_seconds", 4.0)
serving_options = {
    name: settings.pop(name)
    for name in ("capacity", "max_body_bytes", "per_address")
    if name in settings
}
accept_error = settings.pop("accept_error", None)
for name in (
    "KEEPALIVE_SECONDS",
    "REQUEST_SECONDS",
    "RESPONSE_SECONDS",
    "RESPONSE_BYTES_PER_SECOND",
):
    if name in settings:
        setattr(http_connection, name, settings.pop(name))
engine_options = {
    name: settings.pop(name) for name in ("ping_interval", "ping_timeout") if name in settings
}
if "connect_seconds" in settings:
    engineio_server.CONNECT_SECONDS = settings.pop("connect_seconds")
if "close_seconds" in settings:
    websocket.CLOSE_SECONDS = settings.pop("close_seconds")  # type: ignore[misc]
if "flush_step" in settings:  # sockets that one turn flushes
    loop.FLUSH_STEP = settings.pop("flush_step")  # type: ignore[misc]
    loop.SHORTEST_FLUSH = loop.LONGEST_FLUSH = 1e-9  # type: ignore[misc]
if portable:
    epoll.EpollPoller = epoll.HubPoller  # type: ignore[misc,assignment]
if "pings" in settings:
    interval, timeout = settings.pop("pings")
    faults.ping_every(interval, timeout)
limits = websocket.Limits(**settings)

app = flask.Flask("echo")
socketio = SocketIO()
socketio.init_app(
    app, origins=origins, limits=limits, credential_cookie="credential", **engine_options
)
server = socketio.server
ended: list[Any] = []  # connections: how
asking: set[str] = set()  # clients whose connect handler is at work
begun: list[float] = []  # requests for /slow


class Commands:
    def on_open(self, ws: websocket.WebSocket) -> None:
        pass

    def on_message_in_loop(self, ws: websocket.WebSocket, message: str | bytes) -> bool:
        if message == "quick":
            ws.write(ws_frames.text_frame("in the loop"))
            return True
        return False

    def on_message(self, ws: websocket.WebSocket, message: str | bytes) -> None:
        if isinstance(message, bytes):
            ws.write(ws_frames.binary_frame(message))
            return
        command, _, rest = message.partition(" ")
        if command == "flood":  # "flood COUNT SIZE": numbered frames
            count, size = map(int, rest.split())
            for number in range(count):
                ws.write(ws_frames.text_frame(f"{number} ".ljust(size, ".")))
        elif command == "mixed":  # "mixed COUNT SIZE": alternately now and in the next turn
            count, size = map(int, rest.split())
            for number in range(count):
                send = ws.enqueue if number % 3 else ws.write
                send(ws_frames.text_frame(f"{number} ".ljust(size, ".")))
                if number % 50 == 0:
                    loop.pause()
        elif command == "close":
            ws.write(ws_frames.text_frame("last words"))
            ws.close(int(rest), "as asked")
            ws.write(ws_frames.text_frame("never sent"))
        elif command == "enqueue":
            ws.enqueue(ws_frames.text_frame(rest))
        elif command == "break":  # "break WHAT", for this connection; "break next WHAT": the next
            what = rest.removeprefix("next ")
            faults.inject(what, None if rest != what else ws, Commands)
            ws.write(ws_frames.text_frame("broken"))
        elif command == "nap":
            loop.sleep(float(rest))
        elif command == "fail":
            raise RuntimeError(rest)
        else:
            ws.write(ws_frames.text_frame(message))

    def on_close(self, ws: websocket.WebSocket, code: int, reason: str) -> None:
        ended.append([code, reason])


@server.on("connect")
def connect(sid: str, environ: dict[str, Any], auth: Any = None) -> None:
    if auth == {"token": "bad"}:
        raise Refused("no", {"code": "invalid_token"})
    if auth == {"token": "broken"}:
        raise RuntimeError("a bug in connect")
    if isinstance(auth, dict) and "wait" in auth:
        asking.add(sid)
        loop.sleep(auth["wait"])
        asking.discard(sid)
    kept = {"cookie": environ.get("HTTP_COOKIE"), "auth": auth}
    server.save_session(sid, kept)


@server.on("disconnect")
def disconnect(sid: str, reason: str) -> None:
    ended.append(["socket.io", reason])


@server.on("join")
def join(sid: str, rooms: list[str]) -> dict[str, Any]:
    for room in rooms:
        server.enter_room(sid, room)
    return {"rooms": sorted(set(server.rooms(sid)) - {sid})}


@server.on("leave")
def leave(sid: str, room: str) -> bool:
    server.leave_room(sid, room)
    return True


@server.on("whoami")
def whoami(sid: str) -> Any:
    return server.get_session(sid), sid


@server.on("numbers")
def numbers(sid: str, count: int) -> int:
    for number in range(count):
        socketio.emit("number", number, to=sid)
    return count  # the acknowledgement comes behind them


@server.on("bytes")
def some_bytes(sid: str) -> None:
    socketio.emit("blob", {"data": b"\x00\x01\xff"}, to=sid)


@server.on("leave me")
def leave_me(sid: str, how: str) -> None:
    if how == "disconnect":
        server.disconnect(sid)
    elif how == "close_with":
        session = socketio.rooms.socket(sid)
        assert session is not None
        session.close_with(1008, "signed out", reconnect=False)


@server.on("fail")
def fail(sid: str) -> None:
    raise RuntimeError("a bug in a handler")


@server.on("large")
def large(sid: str, size: int) -> str:
    return "x" * size


@socketio.on("flask")
def in_flask(data: str) -> str:
    flask_socketio.join_room("by flask")
    flask_socketio.emit("greeting", data, to="by flask")
    return str(flask.request.sid)  # type: ignore[attr-defined]


@app.get("/stats")
def stats() -> Any:
    rooms = socketio.rooms
    return dataclasses.asdict(counters) | {
        "ended": ended,
        "begun": begun,
        "asking": len(asking),
        "sessions": len(server.eio.sockets),
        "environs": sum(one.handshake is not None for one in server.eio.sockets.values()),
        "rooms": {room: len(members) for room, members in rooms.rooms.get("/", {}).items()},
        "clients": len(rooms._clients.get("/", {})),
    }


@app.get("/alive")
def alive() -> Any:
    """The number of requests' environs that are still alive, this one's included."""
    gc.collect()
    environs = [one for one in gc.get_objects() if type(one) is dict and "wsgi.input" in one]
    return {"environs": len(environs)}


@app.get("/cast/<room>/<int:count>")
def cast(room: str, count: int) -> Any:
    for number in range(count):
        socketio.emit("number", number, to=room)
    return {"members": len(rooms_of(room))}


def rooms_of(room: str) -> Any:
    return socketio.rooms.sockets(room)


@app.get("/close/<room>")
def close_room(room: str) -> Any:
    socketio.close_room(room)
    return {}


@app.get("/slow/<float:seconds>")
def slow(seconds: float) -> Any:
    begun.append(seconds)
    loop.sleep(seconds)
    return {"slept": seconds}


@app.get("/freeze/<float:seconds>")
def freeze(seconds: float) -> Any:
    """In a moment, block the whole process for a while."""
    eventlet.spawn_after(0.1, eventlet.patcher.original("time").sleep, seconds)
    return {}


@app.post("/body")
def body() -> Any:
    return {"length": len(flask.request.get_data()), "args": dict(flask.request.args)}


@app.post("/ignored")
def ignored() -> Any:
    return {"read": False}


@app.get("/stream")
def stream() -> Any:
    return flask.Response((f"{number}" * 9000 for number in range(5)), mimetype="text/plain")


@app.get("/environ")
def environ() -> Any:
    return {k: v for k, v in flask.request.environ.items() if isinstance(v, str)}


def pieces(count: int, *, fails: bool = False) -> Any:
    for _ in range(count):
        yield b"x" * 20_000
    if fails:
        raise RuntimeError("half way")


def odd(environ: dict[str, Any], start_response: Any) -> Any:
    """An application that breaks the rules of WSGI, or uses them in unusual ways."""
    what = environ["PATH_INFO"].removeprefix("/odd/")
    plain = [("Content-Type", "text/plain")]
    if what == "split":
        start_response("200 OK", [("X-Split", "a\r\nSet-Cookie: b")])
        return [b"never sent"]
    if what == "split-stream":
        start_response("204 No Content", [("X-Split", "a\r\nSet-Cookie: b")])
        return pieces(2)
    if what == "fails":
        start_response("200 OK", plain)
        return pieces(2, fails=True)
    if what == "twice":
        start_response("200 OK", plain)
        start_response("404 Not Found", plain)
        return [b"which?"]
    if what == "instead":
        start_response("200 OK", plain)
        try:
            raise ValueError
        except ValueError:
            start_response("404 Not Found", plain, sys.exc_info())
        return [b"instead"]
    if what == "more":
        start_response("200 OK", [*plain, ("Content-Length", "2")])
        return [b"four"]
    if what == "less":
        start_response("200 OK", [*plain, ("Content-Length", "4")])
        return [b"tw"]
    if what == "large":
        start_response("200 OK", plain)
        return pieces(int(environ["QUERY_STRING"]))
    closes = [*plain, ("Connection", "Upgrade, Close"), ("Upgrade", "websocket")]
    start_response("200 OK", closes if what == "closes" else plain)
    return [b"ok"]


def application(environ: dict[str, Any], start_response: Any) -> Any:
    if environ["PATH_INFO"].startswith("/odd/"):
        return odd(environ, start_response)
    if environ["PATH_INFO"] == "/ws":
        protocol = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "").split(",")[0] or None
        try:
            check_origin(origins, environ)
            websocket.take_over(environ, Commands(), limits=limits, subprotocol=protocol)
        except DomainError as error:
            counters.refuse(error.code)
            return problems.refuse(error, start_response)
        return []
    return app(environ, start_response)


def fail_to_accept() -> Any:
    if accept_error in dir(errno):
        raise OSError(getattr(errno, accept_error), "made up by the test")
    raise RuntimeError(accept_error)


def announce(port: int) -> None:
    sys.stdout.write(f"port {port}\n")
    sys.stdout.flush()


bound = http_server.bind("localhost", 0)
if accept_error is not None:
    broken = http_server.bind("127.0.0.1", 0)[0]
    accept = http_server.accept
    http_server.accept = lambda opened: fail_to_accept() if opened is broken else accept(opened)
    bound.append(broken)
descriptors.raise_limit()
http_server.serve(
    application,
    bound,
    drain_seconds=drain_seconds,
    ready=announce,
    drain=socketio.drain,
    **({"capacity": 100_000} | serving_options),
)
