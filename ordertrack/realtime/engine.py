"""Socket.IO on `transport`: Flask-SocketIO above, our own connections beneath.

Three libraries lie between an order's event and a browser, each replaced at one seam only:

- Flask-SocketIO: `SocketIO` below is its class; `init_app` gives it our `Server`.
- python-socketio: `Server` changes what a disconnect means and what is remembered of a handshake;
  `RoomManager` keeps the rooms. Packets, events, acknowledgements and namespaces stay stock.
- python-engineio: `sessions.EngineServer`, which the `Server` makes for itself.

What is used of the libraries beyond their documentation is listed in tests/realtime/test_canary.py,
which fails first when a new release changes it.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import flask
import flask_socketio
import socketio
from socketio import packet as sio_packet

from ordertrack.realtime import transport
from ordertrack.realtime.sessions import (
    EngineServer,
    EngineSocket,
    MalformedPacketError,
    Outgoing,
    encode_event,
)

__all__ = ["EngineSocket", "Outgoing", "RoomManager", "Server", "SocketIO", "encode_event"]

log = logging.getLogger(__name__)


class Server(socketio.Server):  # type: ignore[misc]
    """python-socketio's server; a disconnect closes the connection, a handshake is not kept."""

    flask_app: flask.Flask | None = None
    manager: "RoomManager"
    eio: EngineServer

    def _engineio_server_class(self) -> type[EngineServer]:
        return EngineServer

    def disconnect(
        self, sid: str, namespace: str | None = None, ignore_queue: bool = False
    ) -> None:
        """Send DISCONNECT, run the handlers, and close the connection, which stock would keep."""
        session = self.manager.socket(sid, namespace or "/")
        super().disconnect(sid, namespace=namespace, ignore_queue=ignore_queue)
        if session is not None:
            session.close(reason=self.reason.SERVER_DISCONNECT)

    def get_environ(self, sid: str, namespace: str | None = None) -> dict[str, Any] | None:
        """The handshake's environ until CONNECT has been handled; later a bare one for Flask."""
        session = self.manager.socket(sid, namespace or "/")
        if session is None:
            return None
        return self.environ.get(session.sid) or {
            "flask.app": self.flask_app,
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "0",
            "wsgi.url_scheme": "http",
        }

    def _handle_connect(self, eio_sid: str, namespace: str | None, data: Any) -> None:
        namespace = namespace or "/"
        try:
            super()._handle_connect(eio_sid, namespace, data)
        except Exception:  # the stock server would leave the client half connected
            log.exception("A CONNECT handler failed")
            refusal = self.packet_class(
                sio_packet.CONNECT_ERROR, {"message": "internal error"}, namespace=namespace
            )
            self._send_packet(eio_sid, refusal)
            self.manager.forget(eio_sid)
            return
        session = self.eio.sockets.get(eio_sid)
        if session is None or session.closed:
            # It went away while the handler ran, so nobody else will clean up.
            self._handle_eio_disconnect(eio_sid, self.reason.TRANSPORT_CLOSE)
        elif self.manager.sid_from_eio_sid(eio_sid, namespace) is not None:
            session.joined = True
            self.environ.pop(eio_sid, None)

    def _handle_disconnect(
        self, eio_sid: str, namespace: str | None, reason: str | None = None
    ) -> None:
        super()._handle_disconnect(eio_sid, namespace, reason)
        session = self.eio.sockets.get(eio_sid)
        if session is not None:  # the client has left the one namespace there is
            session.close(reason=self.reason.CLIENT_DISCONNECT)

    def _handle_eio_message(self, eio_sid: str, data: str) -> None:
        """The stock dispatch without binary packets, which no event of ours has."""
        try:
            packet = self.packet_class(encoded_packet=data)
            kind = packet.packet_type
            if kind == sio_packet.EVENT and not _is_event(packet.data):
                raise ValueError("An event is a list that begins with a name of the client's own")
            if kind == sio_packet.ACK and not isinstance(packet.data, list):
                raise ValueError("An acknowledgement is a list")
        except (ValueError, IndexError, TypeError, RecursionError) as error:
            raise MalformedPacketError(str(error)) from None
        if kind == sio_packet.EVENT:
            self._handle_event(eio_sid, packet.namespace, packet.id, packet.data)
        elif kind == sio_packet.CONNECT:
            self._handle_connect(eio_sid, packet.namespace, packet.data)
        elif kind == sio_packet.DISCONNECT:
            self._handle_disconnect(eio_sid, packet.namespace, self.reason.CLIENT_DISCONNECT)
        elif kind == sio_packet.ACK:
            self._handle_ack(eio_sid, packet.namespace, packet.id, packet.data)
        else:
            raise MalformedPacketError("This kind of packet is not accepted")

    def _handle_eio_disconnect(self, eio_sid: str, reason: str) -> None:
        super()._handle_eio_disconnect(eio_sid, reason)
        self.manager.forget(eio_sid)


def _is_event(data: object) -> bool:
    # Stock would run the connect handler, with whatever the client sends as its environ.
    return (
        isinstance(data, list)
        and bool(data)
        and isinstance(data[0], str)
        and data[0] not in Server.reserved_events
    )


class _Client:
    """A client of one namespace: its session, its rooms, and whether it is fully connected."""

    __slots__ = ("connected", "rooms", "session")

    def __init__(self, session: EngineSocket) -> None:
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
        self.rooms: dict[str, dict[str, dict[str, EngineSocket]]] = {}
        self._clients: dict[str, dict[str, _Client]] = {}  # namespace → sid
        self._sids: dict[str, dict[str, str]] = {}  # Engine.IO session → namespace → sid

    # Our own fan-out ------------------------------------------------------------------------------

    def sockets(self, room: str, namespace: str = "/") -> Collection[EngineSocket]:
        """The sockets in a room: a live view, so do not wait while iterating over it."""
        return self.rooms.get(namespace, {}).get(room, {}).values()

    def socket(self, sid: str, namespace: str = "/") -> EngineSocket | None:
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

    def _recipients(self, namespace: str, room: Any) -> Iterable[tuple[str, EngineSocket]]:
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
        sids = self._sids.setdefault(eio_sid, {})
        if session is None or namespace in sids:
            return None
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

    def forget(self, eio_sid: str) -> None:
        """Remove whatever is left of a session in any namespace."""
        for namespace, sid in list(self._sids.get(eio_sid, {}).items()):
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

    Beyond the library's options `init_app` takes `origins` (`transport.Origins`) and `limits`
    (`transport.Limits`). Events whose handlers need no Flask request are best registered on
    `server.on`, which saves a request context for each.
    """

    server: Server

    def init_app(self, app: flask.Flask, **options: Any) -> None:
        quiet = logging.getLogger(f"{__name__}.library")
        quiet.setLevel(logging.ERROR)  # it warns of every packet for a client that has left
        defaults = {
            "async_mode": "eventlet",
            "async_handlers": False,  # True may reorder one client's events
            "client_manager": RoomManager(),
            "ping_interval": transport.PING_INTERVAL,
            "ping_timeout": transport.PING_TIMEOUT,
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
        """Close every session and raw WebSocket with 1012, spread over `seconds`.

        Without a Socket.IO DISCONNECT, after which the stock clients would not come back.
        """
        for session in list(self.server.eio.sockets.values()):
            if not session.upgraded:
                session.close_with(1012, "server restarting", goodbye=False)
        transport.close_all(1012, "server restarting", seconds)
