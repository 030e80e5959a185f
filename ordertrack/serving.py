"""The HTTP server: eventlet.wsgi with limits that suit many connections, and an orderly end."""

import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

import eventlet
import eventlet.green.socket
import eventlet.wsgi
from eventlet.hubs import trampoline

log = logging.getLogger(__name__)

# Connections that the kernel accepts while we are busy: a thousand clients may come back at once.
BACKLOG: Final = 4096

# Descriptors for everything that is not a client: database, log files, the embedded PostgreSQL.
SPARE_DESCRIPTORS: Final = 100

# How long a connection may idle between two requests, and how long a client may take to send the
# next piece of a request (or to read the next piece of an answer) before it is closed.
KEEPALIVE_SECONDS: Final = 75
REQUEST_SECONDS: Final = 30.0

Wsgi = Callable[..., Iterable[bytes]]


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as the system lets it; answers how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:
            log.warning("File descriptors stay limited to %d: %s", soft, error)
    log.info("Up to %d file descriptors may be open", soft)
    return soft


def listen(host: str, port: int, *, reuse_port: bool = False) -> list[Any]:
    """Listening sockets on every address that `host` stands for (localhost: IPv4 and IPv6).

    With port 0, all listen on the same free port. Raises `OSError` when none could be opened.
    """
    listening: list[Any] = []
    failure: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(found):
        opened = eventlet.green.socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6 and len(found) > 1:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Accepted sockets inherit it: small frames must not wait for the peer's ACK.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            same_port = listening[0].getsockname()[1] if listening else address[1]
            opened.bind((address[0], same_port, *address[2:]))
            opened.listen(BACKLOG)
        except OSError as error:
            opened.close()
            failure = failure or error
        else:
            listening.append(opened)
    if not listening:
        raise failure or OSError(f"{host} has no address")
    return listening


class Server:
    """A WSGI application on listening sockets, from `start` to `stop`."""

    def __init__(self, app: Wsgi, listening: list[Any], *, descriptors: int = 1024) -> None:
        self._app = app
        self._listening = listening
        self._pool = eventlet.GreenPool(max(1, descriptors - SPARE_DESCRIPTORS))
        self._accepting: list[Any] = []

    @property
    def port(self) -> int:
        return int(self._listening[0].getsockname()[1])

    def start(self) -> None:
        """Begin to accept; returns at once."""
        self._accepting = [eventlet.spawn(self._serve, opened) for opened in self._listening]

    def _serve(self, opened: Any) -> None:
        eventlet.wsgi.server(
            opened,
            self._app,
            custom_pool=self._pool,
            log_output=False,
            debug=False,
            keepalive=KEEPALIVE_SECONDS,
            socket_timeout=REQUEST_SECONDS,
        )

    def wait(self) -> None:
        """Until accepting has ended, for whatever reason. Raises what ended it unexpectedly."""
        for accepting in self._accepting:
            accepting.wait()

    def stop_accepting(self) -> None:
        """Close the listening sockets and idle connections; requests in flight go on."""
        for accepting in self._accepting:
            accepting.kill()
        for opened in self._listening:
            opened.close()

    def finish(self, seconds: float) -> bool:
        """Wait until every request in flight has been answered; False if some were not in time."""
        with eventlet.Timeout(seconds, False):
            self._pool.waitall()
        return not self._pool.running()


def serve(
    app: Wsgi,
    *,
    host: str,
    port: int,
    drain_seconds: float = 8.0,
    reuse_port: bool = False,
    ready: Callable[[int], object] = lambda _port: None,
    drain: Callable[[float], object] = lambda _seconds: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then end in order within `drain_seconds`.

    `ready` is told the port once connections are accepted. At the end nothing new is accepted,
    `drain` is called with the seconds over which it may spread the closing of live connections, and
    requests in flight are finished.
    """
    descriptors = raise_descriptor_limit()
    server = Server(app, listen(host, port, reuse_port=reuse_port), descriptors=descriptors)
    stop = StopSignal()
    server.start()
    ready(server.port)
    name = stop.wait()
    log.info("%s: stopping within %g seconds", name, drain_seconds)
    server.stop_accepting()
    draining = eventlet.spawn(drain, drain_seconds / 2)
    in_time = server.finish(drain_seconds)
    with eventlet.Timeout(max(0.1, drain_seconds / 2), False):
        draining.wait()
    log.info("Stopped" if in_time else "Stopped with requests in flight")


class StopSignal:
    """SIGTERM or SIGINT as something that a greenlet can wait for.

    A signal's handler runs between two instructions of whatever runs then, so it only takes a note;
    the interpreter itself writes a byte to a pipe that the event loop watches, which wakes it.
    """

    def __init__(self) -> None:
        self._received: list[str] = []
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._received.append(signal.Signals(number).name)

    def wait(self) -> str:
        """Wait for the first of them; answers its name."""
        while not self._received:
            trampoline(self._reading, read=True)
        return self._received[0]
