"""One Socket.IO connection, on python-socketio's client: the only module that knows the library."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import engineio
import requests
import socketio

# The library would log every lost connection as a warning, and set up handlers of its own.
_quiet = logging.getLogger("ordertrack_client.socketio")
_quiet.setLevel(logging.CRITICAL)


class _InOrderEngine(engineio.Client):  # type: ignore[misc]
    """An engine that handles messages in order, on the thread that reads them.

    The library's own runs each on a new thread, so that one may overtake another.
    """

    def _trigger_event(self, event: str, *args: Any, **kwargs: Any) -> Any:
        kwargs["run_async"] = False
        return super()._trigger_event(event, *args, **kwargs)

    def disconnect(self, abort: bool = False, reason: str | None = None) -> None:
        # The reading thread, which now handles the server's DISCONNECT, cannot wait for itself.
        abort = abort or threading.current_thread() is self.read_loop_task
        super().disconnect(abort=abort, reason=reason)


class _Client(socketio.Client):  # type: ignore[misc]
    def _engineio_client_class(self) -> type[engineio.Client]:
        return _InOrderEngine


class Owner(Protocol):
    """Receives what happens on a connection, on threads of that connection."""

    def on_connected(self, connection: "Connection") -> None: ...

    def on_lost(self, connection: "Connection", problem: Any) -> None:
        """The connection failed (with the server's problem, if it sent one), or it ended."""

    def on_message(self, connection: "Connection", name: str, data: Any) -> None: ...


class Connection:
    """One attempt to connect, and the connection if it succeeds. It is not used a second time."""

    def __init__(
        self,
        owner: Owner,
        url: str,
        *,
        transports: Sequence[str],
        timeout: float,
        session: requests.Session | None,
    ) -> None:
        self.is_up = False
        self.token: str | None = None
        self._owner = owner
        self._url = url
        self._transports = list(transports)
        self._dropped = threading.Event()
        self._client = _Client(
            reconnection=False,
            handle_sigint=False,
            request_timeout=timeout,
            http_session=session,
            logger=_quiet,
            engineio_logger=_quiet,
        )
        self._client.on("connect", lambda: owner.on_connected(self))
        self._client.on("connect_error", self._refused)
        self._client.on("disconnect", lambda _reason: owner.on_lost(self, None))
        for name in ("order_update", "signed_out"):
            self._client.on(name, lambda data, name=name: owner.on_message(self, name, data))

    @property
    def transport(self) -> str | None:
        """The transport of the connection: "websocket" or "polling"."""
        name: str | None = self._client.transport()
        return name

    def open(self, auth: Mapping[str, Any]) -> None:
        """Try to connect; blocks. The owner is told the result."""
        try:
            self._client.connect(self._url, auth=auth, transports=self._transports, wait=False)
        except (socketio.exceptions.ConnectionError, OSError, ValueError):
            self._owner.on_lost(self, None)
            return
        if self._client.eio.state != "connected":
            # It ended so early that the library called no handler.
            self._owner.on_lost(self, None)
        if self._dropped.is_set():
            self._close()

    def emit(self, name: str, data: Any, answered: Callable[[Any], None] | None = None) -> None:
        """Send an event. *answered* gets its acknowledgement, if one comes, on another thread."""
        try:
            self._client.emit(name, data, callback=answered)
        except socketio.exceptions.SocketIOError:
            self._owner.on_lost(self, None)

    def drop(self) -> None:
        """Close it. Does not block: closing a dead connection can take seconds."""
        self.is_up = False
        self._dropped.set()
        threading.Thread(target=self._close, name="ordertrack-close", daemon=True).start()

    def _close(self) -> None:
        try:
            self._client.disconnect()
        except Exception:  # noqa: BLE001 (the library, while it is being torn down)
            _quiet.debug("closing a connection", exc_info=True)
        websocket = self._client.eio.ws
        if websocket is not None:
            websocket.shutdown()  # which the library leaves open after a failure

    def _refused(self, data: Any = None) -> None:
        # A refused CONNECT carries {"message", "data": problem}; a refused request, its body.
        problem = data.get("data", data) if isinstance(data, dict) else None
        self._owner.on_lost(self, problem if isinstance(problem, dict) else None)
