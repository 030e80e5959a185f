"""A TCP proxy that breaks, delays or refuses connections when a test says so.

    with TcpProxy(server.port) as proxy:
        client.connect(proxy.url)
        proxy.cut_after(1000)       # each direction counts for itself; see below
        proxy.pause()               # everything hangs, nothing breaks
        proxy.refuse()              # as if no process listened
        proxy.target = new_port     # the server came back elsewhere; clients find it here

Two threads pump each connection. All methods may be called from any thread, at any time.
"""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

CHUNK = 16 * 1024

# How soon a thread that waits to send notices that its connection was broken.
WAKE_SECONDS = 0.05

# SO_LINGER with no time: close() sends RST, as a machine does that lost the connection's state.
_RESET = struct.pack("ii", 1, 0)

UP = "up"  # from the client to the server
DOWN = "down"  # from the server to the client

Filter = Callable[[bytes], bytes]


class Connection:
    """One client's connection through the proxy.

    up, down        bytes passed on so far, to the server and to the client
    is_open         False once it was broken, or both sides have ended it
    """

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = {UP: (client, server), DOWN: (server, client)}
        self.ended: set[str] = set()  # directions in which no more comes
        self.passed = {UP: 0, DOWN: 0}
        self.limit: dict[str, int | None] = {UP: None, DOWN: None}
        self.filter: dict[str, Filter | None] = {UP: None, DOWN: None}
        self.is_open = True

    @property
    def up(self) -> int:
        return self.passed[UP]

    @property
    def down(self) -> int:
        return self.passed[DOWN]

    def cut(self) -> None:
        """Break it now: both sides see a reset."""
        self.close(reset=True)

    def cut_after(self, count: int, direction: str = DOWN) -> None:
        """Break it as soon as *count* more bytes have passed in *direction*."""
        self.limit[direction] = self.passed[direction] + count

    def send(self, sink: socket.socket, data: bytes) -> None:
        """Send all of *data* to one of the ends, unless the connection is broken meanwhile.

        A thread that blocks in `sendall` is woken by nothing but an end of the stream.
        """
        rest = memoryview(data)
        ready = select.poll()
        ready.register(sink, select.POLLOUT)
        while rest and self.is_open:
            if ready.poll(WAKE_SECONDS * 1000):
                rest = rest[sink.send(rest, socket.MSG_DONTWAIT) :]

    def close(self, *, reset: bool = False) -> None:
        self.is_open = False
        for _, sink in self.ends.values():
            with contextlib.suppress(OSError):
                # Wakes the thread that waits in recv, which close() alone would not. The peer must
                # get no end of the stream before the reset.
                sink.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
                if reset:
                    sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with contextlib.suppress(OSError):
                sink.close()


class TcpProxy:
    """Listens on a free port of 127.0.0.1 and passes everything on to *target*.

    target          the server's port; new connections go where it points now
    connections     those open now, oldest first
    accepted        how many there have been
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.accepted = 0
        self._connections: list[Connection] = []
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._dropping: set[str] = set()
        self._limit: tuple[int, str] | None = None
        self._new_filter: tuple[Callable[[], Filter], str] | None = None
        self._listener: socket.socket | None = None
        self.port = 0
        self.accept()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> list[Connection]:
        with self._lock:
            self._connections = [one for one in self._connections if one.is_open]
            return list(self._connections)

    # --- faults -----------------------------------------------------------------------------------

    def cut(self) -> None:
        """Break every open connection. New ones are accepted as before."""
        for connection in self.connections:
            connection.cut()

    def cut_after(self, count: int, direction: str = DOWN) -> None:
        """Break each connection, open or new, once *count* more bytes have passed; see `heal`."""
        self._limit = (count, direction)
        for connection in self.connections:
            connection.cut_after(count, direction)

    def pause(self) -> None:
        """Nothing passes any more, and nothing breaks: a lost network without a word."""
        self._flows.clear()

    def resume(self) -> None:
        """What waited passes, in order."""
        self._flows.set()

    def drop(self, direction: str = DOWN) -> None:
        """Swallow what comes; with DOWN requests are carried out and their answers are lost."""
        self._dropping.add(direction)

    def refuse(self) -> None:
        """Connections are refused, as by a machine on which nothing listens. Open ones stay."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            listener.close()

    def accept(self) -> None:
        """Listen (again), on the same port."""
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(1024)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._spawn(self._accept, listener)

    def heal(self) -> None:
        """Undo `cut_after`, `pause`, `drop` and `refuse`. Open connections may have lost bytes."""
        self._limit = None
        self._dropping.clear()
        for connection in self.connections:
            connection.limit = {UP: None, DOWN: None}
        self.resume()
        self.accept()

    def filter(self, make: Callable[[], Filter] | None, direction: str = DOWN) -> None:
        """Let *make()* change what passes on each new connection: bytes as they came → to send."""
        self._new_filter = None if make is None else (make, direction)

    def close(self) -> None:
        self.refuse()
        self.resume()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # --- at work ----------------------------------------------------------------------------------

    def _spawn(self, run: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=run, args=arguments, name="tcp-proxy", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # refused from now on
            self.accepted += 1
            self._spawn(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        self._flows.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=10)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(client, server)
        if self._limit is not None:
            connection.cut_after(*self._limit)
        if self._new_filter is not None:
            make, direction = self._new_filter
            connection.filter[direction] = make()
        with self._lock:
            self._connections.append(connection)
        self._spawn(self._pump, connection, UP)
        self._pump(connection, DOWN)

    def _pump(self, connection: Connection, direction: str) -> None:
        source, sink = connection.ends[direction]
        try:
            while data := source.recv(CHUNK):
                self._flows.wait()
                if direction in self._dropping:
                    continue
                change = connection.filter[direction]
                if change is not None:
                    data = change(data)
                limit = connection.limit[direction]
                if limit is not None:
                    data = data[: max(0, limit - connection.passed[direction])]
                connection.send(sink, data)
                connection.passed[direction] += len(data)
                if limit is not None and connection.passed[direction] >= limit:
                    connection.cut()
                    return
            self._flows.wait()
            if not connection.is_open:
                return
            sink.shutdown(socket.SHUT_WR)
        except (OSError, ValueError):  # closed by another thread: its descriptor is -1
            connection.cut()
            return
        connection.ended.add(direction)  # half closed: the other may still have something to say
        if connection.ended == {UP, DOWN}:
            connection.close()
