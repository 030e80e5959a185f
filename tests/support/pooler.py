"""A connection pooler with the limits of PgBouncer's transaction mode, and no more of the protocol.

It lends one session to all clients in turn, and ignores the options of a client's connection.
"""

import socket
import struct
import tempfile
import threading
from pathlib import Path
from typing import Self

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

PORT = 6432
NO_TLS_REQUEST = 80877103, 80877104  # SSLRequest and GSSENCRequest


class Pooler:
    """In front of the PostgreSQL that *dsn* names by the folder of its socket, without a password.

    dsn             the same database through the pooler
    by_transaction  lend one session to all, for a transaction each; else one to each client
    """

    def __init__(self, dsn: str, *, by_transaction: bool) -> None:
        self._given = parse_dsn(dsn)
        self._folder = tempfile.TemporaryDirectory(prefix="ordertrack-pooler-")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self._folder.name, f".s.PGSQL.{PORT}")))
        self._listener.listen()
        self.dsn = make_dsn(dsn, host=self._folder.name, port=PORT)
        self._shared = self._session() if by_transaction else None
        self._lent = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _session(self) -> socket.socket:
        path = Path(self._given["host"], f".s.PGSQL.{self._given.get('port', 5432)}")
        session = socket.socket(socket.AF_UNIX)
        session.connect(str(path))
        asked = f"user\0{self._given['user']}\0database\0{self._given['dbname']}\0\0".encode()
        session.sendall(struct.pack("!ii", len(asked) + 8, 196608) + asked)
        while True:
            kind, body = _message(session)
            if kind == b"E":
                raise psycopg2.OperationalError(body.decode())
            if kind == b"Z":
                return session

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                self._greet(client)
                if self._shared is not None:
                    while True:
                        self._transaction(client, self._shared, self._lent)
                with self._session() as session:
                    while True:
                        self._transaction(client, session, threading.Lock())
        except OSError:
            return

    def _greet(self, client: socket.socket) -> None:
        while True:
            length, code = struct.unpack("!ii", _exactly(client, 8))
            _exactly(client, length - 8)
            if code not in NO_TLS_REQUEST:
                break
            client.sendall(b"N")
        _send(client, b"R", b"\0\0\0\0")
        for name, value in {"server_version": "15.0", "client_encoding": "UTF8",
                            "DateStyle": "ISO, MDY", "integer_datetimes": "on",
                            "standard_conforming_strings": "on"}.items():  # fmt: skip
            _send(client, b"S", f"{name}\0{value}\0".encode())
        _send(client, b"Z", b"I")

    def _transaction(
        self, client: socket.socket, session: socket.socket, lent: threading.Lock
    ) -> None:
        kind, body = _message(client)
        with lent:
            state = b"T"  # in a transaction
            while state != b"I":
                if kind == b"X":
                    raise ConnectionError
                _send(session, kind, body)
                answered = b""
                while answered != b"Z":
                    answered, state = _message(session)
                    _send(client, answered, state)
                if state != b"I":
                    kind, body = _message(client)

    def close(self) -> None:
        self._listener.close()
        if self._shared is not None:
            self._shared.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def _message(source: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(source, 1)
    (length,) = struct.unpack("!i", _exactly(source, 4))
    return kind, _exactly(source, length - 4)


def _send(target: socket.socket, kind: bytes, body: bytes) -> None:
    target.sendall(kind + struct.pack("!i", len(body) + 4) + body)
