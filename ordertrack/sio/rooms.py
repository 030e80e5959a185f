"""Rooms of Socket.IO clients: membership, and fan-out to a room.

Replaces the rooms of python-socketio's manager, which scans all rooms when a client leaves, and
builds a frame for each recipient. tests/sio/test_canary.py compares the two interfaces.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import socketio
from socketio import packet as sio_packet

from ordertrack.sio.engineio import EncodedMessage, EngineIOSession


def encode(packet: Any) -> EncodedMessage:
    """A Socket.IO packet of any namespace, with its attachments."""
    encoded = packet.encode()
    return EncodedMessage(encoded if isinstance(encoded, list) else [encoded])


@dataclass(slots=True, eq=False)
class _Client:
    """A client of one namespace. It is connected between its connect and disconnect handlers."""

    session: EngineIOSession
    sid: str
    namespace: str
    rooms: tuple[str, ...] = ()  # a set would take 200 bytes more
    connected: bool = False


class RoomManager(socketio.Manager):  # type: ignore[misc]
    """Registry of clients and rooms, in plain dictionaries with each client's rooms beside them.

    As with the stock manager, a client's own id works as the name of a room with only that client,
    and None means everybody in the namespace. `sid` is a client's id in a namespace, `eio_sid` the
    id of its session.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rooms: dict[str, dict[str, dict[str, EngineIOSession]]] = {}
        self._clients: dict[str, dict[str, _Client]] = {}  # namespace → sid
        # By eio_sid: one client for each namespace that the session has joined or is joining.
        self._of_session: dict[str, tuple[_Client, ...]] = {}

    # For the application --------------------------------------------------------------------------

    def sockets(self, room: str, namespace: str = "/") -> Collection[EngineIOSession]:
        """The sessions in a room: a live view, so do not wait while iterating over it."""
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
        """Send an event to a client, a room, several rooms or all, at the loop's next flushes."""
        if callback is not None:  # each recipient gets its own acknowledgement id
            super().emit(
                event, data, namespace, room=room, skip_sid=skip_sid, callback=callback, to=to,
                **kwargs,
            )  # fmt: skip
            return
        arguments = list(data) if isinstance(data, tuple) else [] if data is None else [data]
        message = encode(
            self.server.packet_class(
                sio_packet.EVENT, namespace=namespace, data=[event, *arguments]
            )
        )
        skipped = skip_sid if isinstance(skip_sid, list) else [skip_sid]
        for sid, session in self._recipients(namespace, to or room):
            if sid not in skipped:
                session.enqueue(message)

    def _recipients(self, namespace: str, room: Any) -> Iterable[tuple[str, EngineIOSession]]:
        if room is None:
            clients = self._clients.get(namespace, {})
            return [(sid, client.session) for sid, client in clients.items()]
        if not isinstance(room, str):
            return {pair for one in room for pair in self._recipients(namespace, one)}
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
        if session is None or self.sid_from_eio_sid(eio_sid, namespace) is not None:
            return None
        sid: str = self.server.eio.generate_id()
        client = _Client(session, sid, namespace)
        self._of_session[eio_sid] = (*self._of_session.get(eio_sid, ()), client)
        self._clients.setdefault(namespace, {})[sid] = client
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
        for client in self._of_session.get(eio_sid, ()):
            if client.namespace == namespace:
                return client.sid
        return None

    def eio_sid_from_sid(self, sid: str, namespace: str) -> str | None:
        session = self.socket(sid, namespace)
        return session.sid if session is not None else None

    def pre_disconnect(self, sid: str, namespace: str) -> str | None:
        """Its disconnect handler may still look the client up, but it is not connected any more."""
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
        eio_sid = client.session.sid
        others = tuple(one for one in self._of_session.get(eio_sid, ()) if one is not client)
        if others:
            self._of_session[eio_sid] = others
        else:
            self._of_session.pop(eio_sid, None)

    def namespaces_of(self, eio_sid: str) -> list[tuple[str, str]]:
        """The namespaces that a session has joined or is joining, each with its sid there."""
        return [(client.namespace, client.sid) for client in self._of_session.get(eio_sid, ())]

    def forget(self, eio_sid: str) -> None:
        """Remove a session from all namespaces."""
        for namespace, sid in self.namespaces_of(eio_sid):
            self.basic_disconnect(sid, namespace)
        self._of_session.pop(eio_sid, None)

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
        if room not in client.rooms:
            client.rooms += (room,)
        self.rooms.setdefault(namespace, {}).setdefault(room, {})[sid] = client.session

    def basic_leave_room(self, sid: str, namespace: str, room: str) -> None:
        client = self._client(sid, namespace)
        if client is not None and room in client.rooms:
            client.rooms = tuple(one for one in client.rooms if one != room)
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
