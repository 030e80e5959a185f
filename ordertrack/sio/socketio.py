"""Socket.IO on OrderTrack's own server: Flask-SocketIO above, `EngineIOSession` beneath.

Rules
-----
1. Handlers of one client run one after the other: connect first, disconnect last, and that exactly
   once if the client had been connected.
2. A connection closes when its client leaves its last namespace.
3. The handshake, with its cookies, is forgotten when a CONNECT has been accepted.
4. A client whose CONNECT was refused may send another one, within `CONNECT_SECONDS`.
5. A packet that is malformed, binary or named like a reserved event ends the connection.

What we override in the libraries, and why. tests/sio/test_canary.py fails when a new release
changes one of these.

    Flask-SocketIO    init_app                  it does not let one choose the server's class
    python-socketio   _engineio_server_class    `EngineIOServer` instead of python-engineio's
                      disconnect, get_environ   rules 2 and 3
                      its dispatch              rules 1, 4, 5: `on_message` and `on_disconnect`
                      Packet                    `packets`, where there is no binary data
                      Manager                   `RoomManager`, see there
    python-engineio   Server                    `EngineIOServer`, see there

Example
-------
    socketio = SocketIO(app, origins=Origins(), limits=Limits())
    server = socketio.server

    @server.on("connect")  # no Flask request; `socketio.on` gives one
    def connect(sid, environ, auth):
        socketio.rooms.socket(sid).application = Visitor(auth)
        server.enter_room(sid, "news")

    socketio.emit("headline", "…", to="news")  # or, encoded by the application:
    for session in socketio.rooms.sockets("news"):
        session.enqueue(encode_event("headline", '"…"'))

The protocol: https://socket.io/docs/v4/socket-io-protocol/
"""

import logging
from typing import Any, Final

import flask
import flask_socketio
import socketio
from socketio import packet as sio_packet

from ordertrack.server import websocket
from ordertrack.server.ws_frames import CloseCode
from ordertrack.sio import packets
from ordertrack.sio.engineio import EngineIOSession, MalformedPacketError
from ordertrack.sio.engineio_server import EngineIOServer
from ordertrack.sio.rooms import RoomManager, encode

log = logging.getLogger(__name__)

# What Flask needs for an event's request when the handshake has been forgotten.
_BARE_ENVIRON: Final = {
    "REQUEST_METHOD": "GET",
    "PATH_INFO": "/",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "0",
    "wsgi.url_scheme": "http",
}

_INVALID_NAMESPACE: Final = {"message": "Invalid namespace"}
_ALREADY_CONNECTED: Final = {"message": "Already connected"}


class Server(socketio.Server):  # type: ignore[misc]
    """python-socketio's server with a dispatch of its own, as `SessionHandler`: see the rules."""

    flask_app: flask.Flask | None = None
    manager: RoomManager
    eio: EngineIOServer

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.eio.handler = self

    def _engineio_server_class(self) -> type[EngineIOServer]:
        return EngineIOServer

    def disconnect(
        self, sid: str, namespace: str | None = None, ignore_queue: bool = False
    ) -> None:
        """Send DISCONNECT, run the handler, and close the connection, which the stock one keeps."""
        del ignore_queue
        namespace = namespace or "/"
        session = self.manager.socket(sid, namespace)
        if session is not None and self.manager.is_connected(sid, namespace):
            self._send(session, sio_packet.DISCONNECT, namespace)
            self._leave(sid, namespace, self.reason.SERVER_DISCONNECT)
            session.close(self.reason.SERVER_DISCONNECT)

    def get_environ(self, sid: str, namespace: str | None = None) -> dict[str, Any] | None:
        """The handshake's environ until a CONNECT has been accepted; later a bare one for Flask."""
        session = self.manager.socket(sid, namespace or "/")
        if session is None:
            return None
        return session.handshake or {"flask.app": self.flask_app, **_BARE_ENVIRON}

    # As the handler of an EngineIOServer ----------------------------------------------------------

    def on_message(self, session: EngineIOSession, data: str) -> None:
        """Handle a packet. Raises `MalformedPacketError`, also for binary ones."""
        try:
            kind, namespace, number, content = packets.decode(data)
            if kind == sio_packet.EVENT and not self._is_event(content):
                raise ValueError("An event is a list that begins with a name, not a reserved one")
            if kind == sio_packet.ACK and not isinstance(content, list):
                raise ValueError("An acknowledgement is a list")
        except (ValueError, IndexError, TypeError, RecursionError) as error:
            raise MalformedPacketError(str(error)) from None
        if kind == sio_packet.CONNECT:
            self._connect(session, namespace, content)
            return
        sid = self.manager.sid_from_eio_sid(session.sid, namespace)
        if kind == sio_packet.EVENT:
            self._event(session, sid, namespace, number, content)
        elif kind == sio_packet.DISCONNECT:
            left = self._leave(sid, namespace, self.reason.CLIENT_DISCONNECT)
            if left and not self.manager.namespaces_of(session.sid):
                session.close(self.reason.CLIENT_DISCONNECT)
        elif kind == sio_packet.ACK:
            self.manager.trigger_callback(sid, number, content)
        else:
            raise MalformedPacketError("This kind of packet is not accepted")

    def on_disconnect(self, session: EngineIOSession, reason: str | None) -> None:
        for namespace, sid in self.manager.namespaces_of(session.sid):
            self._leave(sid, namespace, reason)
        self.manager.forget(session.sid)

    def _is_event(self, data: object) -> bool:
        # The stock server lets a client call the connect handler, with an environ of its own.
        return (
            isinstance(data, list)
            and bool(data)
            and isinstance(data[0], str)
            and data[0] not in self.reserved_events
        )

    def _connect(self, session: EngineIOSession, namespace: str, auth: Any) -> None:
        """Let a client join a namespace if the connect handler accepts it, and answer it."""
        if namespace not in self.handlers and namespace not in self.namespace_handlers:
            self._send(session, sio_packet.CONNECT_ERROR, namespace, _INVALID_NAMESPACE)
            return
        sid = self.manager.pre_connect(session.sid, namespace)
        if sid is None:
            self._send(session, sio_packet.CONNECT_ERROR, namespace, _ALREADY_CONNECTED)
            return
        self.eio.connect_received(session)
        refusal = self._run_connect_handler(sid, namespace, auth)
        if refusal is not None:
            self._send(session, sio_packet.CONNECT_ERROR, namespace, refusal)
            self.manager.basic_disconnect(sid, namespace)
            self.eio.connect_refused(session)
            return
        self._send(session, sio_packet.CONNECT, namespace, {"sid": sid})
        self.manager.connect(sid, namespace)
        session.handshake = None  # from now on it is authenticated

    def _run_connect_handler(self, sid: str, namespace: str, auth: Any) -> Any:
        """What a CONNECT_ERROR has to say, or None if the handler accepts the client."""
        environ = self.get_environ(sid, namespace)
        try:
            if self._trigger_event("connect", namespace, sid, environ, auth) is False:
                return socketio.exceptions.ConnectionRefusedError().error_args
        except socketio.exceptions.ConnectionRefusedError as refused:
            return refused.error_args
        except Exception:  # the client must not stay half connected
            log.exception("A connect handler failed")
            return {"message": "internal error"}
        return None

    def _event(
        self,
        session: EngineIOSession,
        sid: str | None,
        namespace: str,
        number: int | None,
        content: list[Any],
    ) -> None:
        """Run an event's handler; what it returns is the acknowledgement, if *number* wants one."""
        if sid is None or not self.manager.is_connected(sid, namespace):
            return
        answer = self._trigger_event(content[0], namespace, sid, *content[1:])
        if number is None or answer is self.not_handled:
            return
        arguments = (
            list(answer) if isinstance(answer, tuple) else [] if answer is None else [answer]
        )
        self._send(session, sio_packet.ACK, namespace, arguments, number)

    def _leave(self, sid: str | None, namespace: str, reason: str | None) -> bool:
        """Remove a client from a namespace and run its handler; False if it was not connected."""
        if sid is None or not self.manager.is_connected(sid, namespace):
            return False
        self.manager.pre_disconnect(sid, namespace)
        try:
            self._trigger_event("disconnect", namespace, sid, reason)
        except Exception:  # the client has left all the same
            log.exception("A disconnect handler failed")
        self.manager.basic_disconnect(sid, namespace)
        return True

    def _send(
        self,
        session: EngineIOSession,
        kind: int,
        namespace: str,
        data: Any = None,
        number: int | None = None,
    ) -> None:
        """Send a Socket.IO packet."""
        try:
            text = packets.encode(kind, namespace, data, number)
        except TypeError:  # it has attachments
            packet = self.packet_class(kind, namespace=namespace, data=data, id=number)
            session.send(encode(packet))
        else:
            session.answer(text)


class SocketIO(flask_socketio.SocketIO):  # type: ignore[misc]
    """Flask-SocketIO with our server. Its documented interface is unchanged.

    Of the library's options `init_app` takes those that are set below, and beyond them `origins`
    (`Origins`), `limits` (`websocket.Limits`) and `credential_cookie` (see `EngineIOServer`).
    A handler that needs no Flask request is cheaper on `server.on`.
    """

    server: Server

    def init_app(self, app: flask.Flask, **options: Any) -> None:
        quiet = logging.getLogger(f"{__name__}.library")
        quiet.setLevel(logging.ERROR)  # it would warn of every packet for a client that has left
        defaults = {
            "async_mode": "eventlet",
            "async_handlers": False,  # True may reorder one client's events
            "client_manager": RoomManager(),
            "ping_interval": websocket.PING_INTERVAL,
            "ping_timeout": websocket.PING_TIMEOUT,
            "logger": quiet,
            "engineio_logger": quiet,
        }
        super().init_app(app, **(defaults | options))
        # It has made a stock server: replace it by ours.
        self.server = Server(**self.server_options)
        self.server.flask_app = app
        self.sockio_mw.engineio_app = self.server
        for event, handler, namespace in self.handlers:
            self.server.on(event, handler, namespace=namespace)
        for namespace_handler in self.namespace_handlers:
            self.server.register_namespace(namespace_handler)

    @property
    def rooms(self) -> RoomManager:
        return self.server.manager

    def drain(self, seconds: float) -> None:
        """Close every session with 1012: polling ones at once, WebSockets spread over `seconds`.

        There is no Socket.IO DISCONNECT, so the stock clients reconnect by themselves.
        """
        for session in list(self.server.eio.sockets.values()):
            try:
                if session.ws is None:
                    session.close_with(
                        CloseCode.SERVICE_RESTART, "server restarting", reconnect=True
                    )
            except Exception:  # the others have to be closed as well
                log.exception("A session could not be closed")
        websocket.close_all(CloseCode.SERVICE_RESTART, "server restarting", seconds)
