"""Socket.IO on `transport`: Flask-SocketIO above, our own connections beneath.

Three libraries lie between an order's event and a browser:

- Flask-SocketIO: `SocketIO` below is its class; `init_app` gives it our `Server`.
- python-socketio: `Server` is its class, with a dispatch of its own; `RoomManager` keeps the rooms.
  Packets, the registry of handlers and the interface for applications stay stock.
- python-engineio: `EngineIOServer` stands in its server's place; packets and payloads stay.

What is used of the libraries beyond their documentation is listed in tests/sio/test_canary.py,
which fails first when a new release changes it.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

import flask
import flask_socketio
import socketio
from engineio.packet import MESSAGE, Packet
from socketio import packet as sio_packet
from socketio.exceptions import ConnectionRefusedError as Refused

from ordertrack.server import websocket
from ordertrack.server.ws_frames import CloseCode
from ordertrack.sio.engineio import (
    EngineIOSession,
    MalformedPacketError,
    Outgoing,
    encode_event,
)
from ordertrack.sio.engineio_server import EngineIOServer

__all__ = ["EngineIOSession", "Outgoing", "RoomManager", "Server", "SocketIO", "encode_event"]

log = logging.getLogger(__name__)

# Of the handshake, what Flask needs for an event when CONNECT has been handled.
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
    """python-socketio's server, with a connection that ends when its last namespace is left.

    Handlers of one client run one after the other, the connect handler first and the disconnect
    handler last, and that one whenever the client had been let in.
    """

    flask_app: flask.Flask | None = None
    manager: "RoomManager"
    eio: EngineIOServer

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.eio.receiver = self

    def _engineio_server_class(self) -> type[EngineIOServer]:
        return EngineIOServer

    def disconnect(
        self, sid: str, namespace: str | None = None, ignore_queue: bool = False
    ) -> None:
        """Send DISCONNECT, run the handler, and close the connection, which stock would keep."""
        del ignore_queue
        namespace = namespace or "/"
        session = self.manager.socket(sid, namespace)
        if session is not None and self.manager.is_connected(sid, namespace):
            self._tell(session, sio_packet.DISCONNECT, namespace)
            self._leave(sid, namespace, self.reason.SERVER_DISCONNECT)
            session.close(reason=self.reason.SERVER_DISCONNECT)

    def get_environ(self, sid: str, namespace: str | None = None) -> dict[str, Any] | None:
        """The handshake's environ until CONNECT has been handled; later a bare one for Flask."""
        session = self.manager.socket(sid, namespace or "/")
        if session is None:
            return None
        return session.handshake or {"flask.app": self.flask_app, **_BARE_ENVIRON}

    # As the receiver of an EngineIOServer ---------------------------------------------------------

    def on_message(self, session: EngineIOSession, data: str) -> None:
        """Handle a packet. Raises `MalformedPacketError`; there are no binary ones."""
        try:
            packet = self.packet_class(encoded_packet=data)
            kind = packet.packet_type
            if kind == sio_packet.EVENT and not self._is_event(packet.data):
                raise ValueError("An event is a list that begins with a name of the client's own")
            if kind == sio_packet.ACK and not isinstance(packet.data, list):
                raise ValueError("An acknowledgement is a list")
        except (ValueError, IndexError, TypeError, RecursionError) as error:
            raise MalformedPacketError(str(error)) from None
        namespace = packet.namespace or "/"
        if kind == sio_packet.CONNECT:
            self._connect(session, namespace, packet.data)
            return
        sid = self.manager.sid_from_eio_sid(session.sid, namespace)
        if kind == sio_packet.EVENT:
            self._event(session, sid, namespace, packet)
        elif kind == sio_packet.DISCONNECT:
            left = self._leave(sid, namespace, self.reason.CLIENT_DISCONNECT)
            if left and not self.manager.namespaces_of(session.sid):
                session.close(reason=self.reason.CLIENT_DISCONNECT)
        elif kind == sio_packet.ACK:
            self.manager.trigger_callback(sid, packet.id, packet.data)
        else:
            raise MalformedPacketError("This kind of packet is not accepted")

    def on_end(self, session: EngineIOSession, reason: str | None) -> None:
        for namespace, sid in self.manager.namespaces_of(session.sid):
            self._leave(sid, namespace, reason)
        self.manager.forget(session.sid)

    def _is_event(self, data: object) -> bool:
        # Stock would run the connect handler, with whatever the client sends as its environ.
        return (
            isinstance(data, list)
            and bool(data)
            and isinstance(data[0], str)
            and data[0] not in self.reserved_events
        )

    def _connect(self, session: EngineIOSession, namespace: str, auth: Any) -> None:
        """Ask the connect handler whether a client may join a namespace, and tell the client."""
        if namespace not in self.handlers and namespace not in self.namespace_handlers:
            self._tell(session, sio_packet.CONNECT_ERROR, namespace, data=_INVALID_NAMESPACE)
            return
        sid = self.manager.pre_connect(session.sid, namespace)
        if sid is None:
            self._tell(session, sio_packet.CONNECT_ERROR, namespace, data=_ALREADY_CONNECTED)
            return
        self.eio.session_asks(session)
        refusal = self._ask(sid, namespace, auth)
        if refusal is not None:
            self._tell(session, sio_packet.CONNECT_ERROR, namespace, data=refusal)
            self.manager.basic_disconnect(sid, namespace)
            self.eio.session_refused(session)
            return
        self._tell(session, sio_packet.CONNECT, namespace, data={"sid": sid})
        self.manager.connect(sid, namespace)
        session.joined = True
        session.handshake = None  # the cookies in it are not needed any more

    def _ask(self, sid: str, namespace: str, auth: Any) -> Any:
        """Run the connect handler; why it refuses, or None."""
        environ = self.get_environ(sid, namespace)
        try:
            if self._trigger_event("connect", namespace, sid, environ, auth) is False:
                return Refused().error_args
        except Refused as refused:
            return refused.error_args
        except Exception:  # the client must not stay half connected
            log.exception("A connect handler failed")
            return {"message": "internal error"}
        return None

    def _event(
        self, session: EngineIOSession, sid: str | None, namespace: str, packet: Any
    ) -> None:
        """Run an event's handler; what it returns is the acknowledgement, if one is wanted."""
        if sid is None or not self.manager.is_connected(sid, namespace):
            return
        answer = self._trigger_event(packet.data[0], namespace, sid, *packet.data[1:])
        if packet.id is None or answer is self.not_handled:
            return
        arguments = (
            list(answer) if isinstance(answer, tuple) else [] if answer is None else [answer]
        )
        self._tell(session, sio_packet.ACK, namespace, id=packet.id, data=arguments)

    def _leave(self, sid: str | None, namespace: str, reason: str | None) -> bool:
        """A client leaves a namespace; False if it was not in it."""
        if sid is None or not self.manager.is_connected(sid, namespace):
            return False
        self.manager.pre_disconnect(sid, namespace)
        try:
            self._trigger_event("disconnect", namespace, sid, reason)
        except Exception:  # it is gone all the same
            log.exception("A disconnect handler failed")
        self.manager.basic_disconnect(sid, namespace)
        return True

    def _tell(self, session: EngineIOSession, kind: int, namespace: str, **content: Any) -> None:
        """Send a Socket.IO packet now."""
        encoded = self.packet_class(kind, namespace=namespace, **content).encode()
        for part in encoded if isinstance(encoded, list) else [encoded]:
            session.send(Packet(MESSAGE, part))


class _Client:
    """A client of one namespace: its session, its rooms, and whether it is fully connected."""

    __slots__ = ("connected", "rooms", "session")

    def __init__(self, session: EngineIOSession) -> None:
        self.session = session
        self.rooms: set[str] = set()
        self.connected = False


class RoomManager(socketio.Manager):  # type: ignore[misc]
    """The stock manager's rooms in plain dictionaries, with each client's rooms beside them.

    So that a client leaves in time proportional to its own rooms, where the stock manager scans all
    rooms there are, and an event for a room is encoded once. As with the stock manager, a client's
    own id works as the name of a room with only that client, and None names the whole namespace.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rooms: dict[str, dict[str, dict[str, EngineIOSession]]] = {}
        self._clients: dict[str, dict[str, _Client]] = {}  # namespace → sid
        self._sids: dict[str, dict[str, str]] = {}  # Engine.IO session → namespace → sid

    # Our own fan-out ------------------------------------------------------------------------------

    def sockets(self, room: str, namespace: str = "/") -> Collection[EngineIOSession]:
        """The sockets in a room: a live view, so do not wait while iterating over it."""
        return self.rooms.get(namespace, {}).get(room, {}).values()

    def socket(self, sid: str, namespace: str = "/") -> EngineIOSession | None:
        client = self._client(sid, namespace)
        return client.session if client is not None else None

    def _client(self, sid: str, namespace: str) -> _Client | None:
        return self._clients.get(namespace, {}).get(sid)

    # The stock manager's interface ----------------------------------------------------------------

    def emit(
        self,
        event: str,
        data: Any,
        namespace: str,
        room: Any = None,
        skip_sid: Any = None,
        callback: Callable[..., Any] | None = None,
        to: Any = None,
        **kwargs: Any,
    ) -> None:
        """Send an event to a client, a room, several rooms, or all. It leaves in the next turn."""
        if callback is not None:  # each recipient gets its own acknowledgement id
            super().emit(
                event, data, namespace, room=room, skip_sid=skip_sid, callback=callback, to=to,
                **kwargs,
            )  # fmt: skip
            return
        arguments = list(data) if isinstance(data, tuple) else [] if data is None else [data]
        packet = self.server.packet_class(
            sio_packet.EVENT, namespace=namespace, data=[event, *arguments]
        )
        encoded = packet.encode()
        outgoing = Outgoing(encoded if isinstance(encoded, list) else [encoded])
        skipped = skip_sid if isinstance(skip_sid, list) else [skip_sid]
        for sid, session in self._recipients(namespace, to or room):
            if sid not in skipped:
                session.send_outgoing(outgoing)

    def _recipients(self, namespace: str, room: Any) -> Iterable[tuple[str, EngineIOSession]]:
        if room is None:
            clients = self._clients.get(namespace, {})
            return [(sid, client.session) for sid, client in clients.items()]
        if not isinstance(room, str):
            several = {pair for one in room for pair in self._recipients(namespace, one)}
            return list(several)
        client = self._client(room, namespace)
        if client is not None:
            return [(room, client.session)]
        return self.rooms.get(namespace, {}).get(room, {}).items()

    def get_namespaces(self) -> Iterable[str]:
        return self._clients.keys()

    def get_participants(self, namespace: str, room: Any) -> Iterator[tuple[str, str]]:
        for sid, session in list(self._recipients(namespace, room)):
            yield sid, session.sid

    def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        session = self.server.eio.sockets.get(eio_sid)
        if session is None or namespace in self._sids.get(eio_sid, {}):
            return None
        sids = self._sids.setdefault(eio_sid, {})
        sid: str = self.server.eio.generate_id()
        sids[namespace] = sid
        self._clients.setdefault(namespace, {})[sid] = _Client(session)
        return sid

    def connect(self, sid: str, namespace: str) -> str | None:
        client = self._client(sid, namespace)
        if client is not None:
            client.connected = True
        return sid

    def is_pre_connected(self, sid: str, namespace: str) -> bool:
        client = self._client(sid, namespace)
        return client is not None and not client.connected

    def is_connected(self, sid: str, namespace: str) -> bool:
        client = self._client(sid, namespace)
        return client is not None and client.connected

    def sid_from_eio_sid(self, eio_sid: str, namespace: str) -> str | None:
        return self._sids.get(eio_sid, {}).get(namespace)

    def eio_sid_from_sid(self, sid: str, namespace: str) -> str | None:
        session = self.socket(sid, namespace)
        return session.sid if session is not None else None

    def pre_disconnect(self, sid: str, namespace: str) -> str | None:
        """Its handlers may still look it up, but it counts as gone."""
        client = self._client(sid, namespace)
        if client is None:
            return None
        client.connected = False
        return client.session.sid

    def basic_disconnect(self, sid: str, namespace: str, **_: Any) -> None:
        client = self._clients.get(namespace, {}).pop(sid, None)
        self.callbacks.pop(sid, None)
        if client is None:
            return
        for room in client.rooms:
            self._remove(sid, namespace, room)
        sids = self._sids.get(client.session.sid, {})
        sids.pop(namespace, None)
        if not sids:
            self._sids.pop(client.session.sid, None)

    def namespaces_of(self, eio_sid: str) -> list[tuple[str, str]]:
        """Where a session's client is, or is about to be: namespaces, and its ids in them."""
        return list(self._sids.get(eio_sid, {}).items())

    def forget(self, eio_sid: str) -> None:
        """Remove whatever is left of a session in any namespace."""
        for namespace, sid in self.namespaces_of(eio_sid):
            self.basic_disconnect(sid, namespace)
        self._sids.pop(eio_sid, None)

    def is_sid_room(self, namespace: str, room: str) -> bool:
        return self._client(room, namespace) is not None

    def basic_enter_room(
        self, sid: str, namespace: str, room: str, eio_sid: str | None = None
    ) -> None:
        del eio_sid
        client = self._client(sid, namespace)
        if client is None:
            raise ValueError("sid is not connected to requested namespace")
        if self.is_sid_room(namespace, room):
            raise ValueError("cannot enter a sid room")
        client.rooms.add(room)
        self.rooms.setdefault(namespace, {}).setdefault(room, {})[sid] = client.session

    def basic_leave_room(self, sid: str, namespace: str, room: str) -> None:
        client = self._client(sid, namespace)
        if client is not None and room in client.rooms:
            client.rooms.remove(room)
            self._remove(sid, namespace, room)

    def _remove(self, sid: str, namespace: str, room: str) -> None:
        rooms = self.rooms[namespace]
        members = rooms[room]
        del members[sid]
        if not members:
            del rooms[room]

    def basic_close_room(self, room: str, namespace: str) -> None:
        if self.is_sid_room(namespace, room):
            raise ValueError("cannot close a sid room")
        for sid in list(self.rooms.get(namespace, {}).get(room, {})):
            self.basic_leave_room(sid, namespace, room)

    def get_rooms(self, sid: str, namespace: str) -> list[str]:
        client = self._client(sid, namespace)
        return [sid, *client.rooms] if client is not None else []


class SocketIO(flask_socketio.SocketIO):  # type: ignore[misc]
    """Flask-SocketIO on our transport. Its documented interface is unchanged.

    Of the library's options `init_app` takes those that are set below, and beyond them `origins`
    (`Origins`), `limits` (`websocket.Limits`) and `credential_cookie` (see `EngineIOServer`).
    Events whose handlers need no Flask request are best registered on `server.on`, which
    saves a request context for each.
    """

    server: Server

    def init_app(self, app: flask.Flask, **options: Any) -> None:
        quiet = logging.getLogger(f"{__name__}.library")
        quiet.setLevel(logging.ERROR)  # it warns of every packet for a client that has left
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
        # It has made a stock server, whose class it does not let one choose: put ours in its place.
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
        """Close every session and raw WebSocket with SERVICE_RESTART, spread over `seconds`.

        Without a Socket.IO DISCONNECT, after which the stock clients would not come back.
        """
        for session in list(self.server.eio.sockets.values()):
            try:
                if not session.upgraded:
                    session.close_with(
                        CloseCode.SERVICE_RESTART, "server restarting", goodbye=False
                    )
            except Exception:  # the others are to be told as well
                log.exception("A session could not be closed")
        websocket.close_all(CloseCode.SERVICE_RESTART, "server restarting", seconds)
