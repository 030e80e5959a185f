"""Listening, accepting, and ending in order. Of this package the one module that knows eventlet."""

import errno
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import eventlet
import eventlet.green.socket
from eventlet.hubs import trampoline

from ordertrack.serving.answer import Wsgi
from ordertrack.serving.connection import Connection
from ordertrack.serving.head import Environ

log = logging.getLogger(__name__)

# Connections that the kernel accepts while we are busy: a thousand clients may come back at once.
BACKLOG: Final = 4096

# Descriptors for everything that is not a client: database, log files, the embedded PostgreSQL.
SPARE_DESCRIPTORS: Final = 100


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
        self.app = app
        self.stopping = False
        self.idle: set[Connection] = set()  # those that wait for a next request
        name, port = listening[0].getsockname()[:2]
        self.environ: Environ = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": name,
            "SERVER_PORT": str(port),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }
        self._listening = listening
        self._pool = eventlet.GreenPool(max(1, descriptors - SPARE_DESCRIPTORS))
        self._accepting: list[Any] = []

    @property
    def port(self) -> int:
        return int(self.environ["SERVER_PORT"])

    def start(self) -> None:
        """Begin to accept; returns at once."""
        self._accepting = [eventlet.spawn(self._accept, opened) for opened in self._listening]

    def _accept(self, opened: Any) -> None:
        accepted = 0
        while True:
            try:
                client, address = opened.accept()
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    return  # closed, by `stop`
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.warning("Cannot accept more connections now: %s", error.strerror)
                    eventlet.sleep(0.5)
                continue  # else it was the client that failed
            self._pool.spawn_n(Connection(self, client, address).serve)
            accepted += 1
            if accepted % 64 == 0:  # a storm of connections leaves the others their turn
                eventlet.sleep(0)

    def stop(self) -> None:
        """Close the listening sockets and idle connections; requests in flight go on.

        Their answers say that the connection is closed afterwards.
        """
        self.stopping = True
        for accepting in self._accepting:
            accepting.kill()
        for opened in self._listening:
            opened.close()
        for connection in list(self.idle):
            connection.hang_up()

    def finish(self, seconds: float) -> bool:
        """Wait until every request in flight has been answered; False if some were not in time."""
        with eventlet.Timeout(seconds, False):
            self._pool.waitall()
        return not self._pool.running()


class Stopping:
    """The order to stop: from SIGTERM, SIGINT, or a part of the process that cannot go on.

    A signal's handler runs between two instructions of whatever runs then, so it only takes a note;
    the interpreter itself writes a byte to a pipe that the event loop watches, which wakes it.
    """

    def __init__(self) -> None:
        self.failed = False
        self._reason: str | None = None
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)

    def catch_signals(self) -> None:
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._reason = self._reason or signal.Signals(number).name

    def fail(self, reason: str) -> None:
        """Stop, and let the process end with an error: better gone than half there."""
        self.failed = True
        self._reason = self._reason or reason
        os.write(self._writing, b"!")

    def wait(self) -> str:
        """Wait for the order; answers why it was given."""
        while self._reason is None:
            trampoline(self._reading, read=True)
            os.read(self._reading, 64)
        return self._reason


def serve(
    app: Wsgi,
    *,
    host: str,
    port: int,
    drain_seconds: float = 8.0,
    reuse_port: bool = False,
    stopping: Stopping | None = None,
    ready: Callable[[int], object] = lambda _port: None,
    drain: Callable[[float], object] = lambda _seconds: None,
) -> None:
    """Serve until SIGTERM, SIGINT or `stopping.fail`, then end in order within `drain_seconds`.

    `ready` is told the port once connections are accepted. At the end nothing new is accepted,
    `drain` is called with the seconds over which it may spread the closing of live connections, and
    requests in flight are finished. Raises `SystemExit` with 1 after `stopping.fail`.
    """
    descriptors = raise_descriptor_limit()
    server = Server(app, listen(host, port, reuse_port=reuse_port), descriptors=descriptors)
    stopping = stopping or Stopping()
    stopping.catch_signals()
    # What was made so far stays for good: the collector need not look at it again, which would stop
    # every socket for some 60 ms each time.
    gc.collect()
    gc.freeze()
    server.start()
    ready(server.port)
    reason = stopping.wait()
    log.info("%s: stopping within %g seconds", reason, drain_seconds)
    began = time.monotonic()
    server.stop()
    # Half of the time to tell the sockets, so that the last of them can still say goodbye.
    draining = eventlet.spawn(drain, drain_seconds / 2)
    in_time = server.finish(drain_seconds)
    with eventlet.Timeout(max(0.0, began + drain_seconds - time.monotonic()), False):
        draining.wait()
    log.info("Stopped" if in_time else "Stopped with requests in flight")
    if stopping.failed:
        raise SystemExit(1)
