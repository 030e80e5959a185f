"""A watcher without a connection, for tests of the hub and of the registry of connections."""

import time
from typing import Any

from ordertrack.auth import Credential
from ordertrack.errors import DomainError, Unavailable
from ordertrack.policy import Actor, Caller, DriverScope
from ordertrack.realtime.hub import Announcement
from ordertrack.schemas import present_event
from ordertrack.server.ws_frames import CloseCode


def credential_for(user_id: int, session_id: int, expires_in: float) -> Credential:
    return Credential(Caller(user_id, session_id, DriverScope.ALL), time.time() + expires_in)


class FakeWatcher:
    """Keeps the events that it is sent, and why it was closed."""

    kind = "socketio"

    def __init__(self, user_id: int = 1, session_id: int = 1, expires_in: float = 900) -> None:
        self.credential = credential_for(user_id, session_id, expires_in)
        self.actor: Actor | None = None
        self.rooms: tuple[str, ...] = ()
        self.is_alive = True
        self.closing: DomainError | None = None
        self.events: list[dict[str, Any]] = []
        self.logged_out: list[str] = []  # codes of the errors
        self.closed: list[CloseCode] = []

    def deliver(self, announcement: Announcement) -> None:
        self.events.append(present_event(announcement.event))

    def joined(self, room: str) -> None: ...

    def left(self, room: str) -> None: ...

    def stop(self, error: DomainError) -> None:
        self.closing = self.closing or error

    def close_with_error(self, error: DomainError) -> None:
        self.stop(error)
        self.logged_out.append(error.code)

    def close(self, code: CloseCode, reason: str) -> None:
        self.stop(Unavailable(reason))
        self.closed.append(code)

    @property
    def versions(self) -> list[int]:
        return [event["version"] for event in self.events]
