"""Reads requests with three parsers: ours, h11 and httptools (llhttp, which Node uses).

Each reader returns the requests that it could read, in order, and whether it refused the bytes
after them. All give a request the same form, so that they can be compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import h11
import httptools

from ordertrack.errors import PayloadTooLarge
from ordertrack.server.http_reader import RequestReader
from ordertrack.server.http_request import BadRequest, Environ
from ordertrack.server.http_response import ClientGone, keeps_open

MAX_BODY = 2_000


@dataclass
class Request:
    """headers: by name in small letters, values in order, blanks at their ends removed."""

    method: str = ""
    target: str = ""
    version: str = ""
    headers: dict[str, list[str]] = field(default_factory=dict)
    body: bytes = b""

    def add(self, name: bytes, value: bytes) -> None:
        known = name.decode("latin-1").lower()
        self.headers.setdefault(known, []).append(value.decode("latin-1").strip(" \t"))

    @property
    def closes(self) -> bool:
        """Whether nothing may follow it on the connection."""
        asked = {
            token.strip().lower()
            for value in self.headers.get("connection", ())
            for token in value.split(",")
        }
        return "close" in asked or (self.version == "1.0" and "keep-alive" not in asked)


@dataclass
class Reading:
    """left: the last request asks for an upgrade, and its body was not read."""

    requests: list[Request] = field(default_factory=list)
    refused: str | None = None
    left: bool = False


# --- ours ---------------------------------------------------------------------------------------


def ours(pieces: list[bytes]) -> tuple[list[Environ], str | None]:
    """The requests in these pieces, as the application would get them."""
    arriving = iter(pieces)

    def receive() -> bytes:
        try:
            return next(arriving)
        except StopIteration:
            raise ClientGone from None

    reader = RequestReader(receive, MAX_BODY, lambda: None)
    read: list[Environ] = []
    try:
        while True:
            environ: Environ = {}
            reader.read(environ, lambda: None)
            environ["body"] = environ.pop("wsgi.input").read()
            read.append(environ)
            if not keeps_open(environ):
                return read, None
    except ClientGone:
        return read, None
    except BadRequest as error:
        return read, f"{error.status.value} {error.detail}"
    except PayloadTooLarge as error:
        return read, f"413 {error.detail}"


def as_environ(request: Request) -> Environ:
    """The environ that ours must be, for a request that another parser has read."""
    environ: Environ = {
        "REQUEST_METHOD": request.method,
        "RAW_URI": request.target,
        "SERVER_PROTOCOL": f"HTTP/{request.version}",
        "body": request.body,
    }
    for name, values in request.headers.items():
        if "_" in name:
            continue  # ours ignores those
        known = name.upper().replace("-", "_")
        if known not in ("CONTENT_LENGTH", "CONTENT_TYPE"):
            known = f"HTTP_{known}"
        environ[known] = ("; " if known == "HTTP_COOKIE" else ",").join(values)
    _apply_rfc(environ, request)
    return environ


def _apply_rfc(environ: Environ, request: Request) -> None:
    """Apply what a server does beyond parsing, as our environ shows it."""
    if request.target.lower().startswith("http://"):
        rest = request.target[len("http://") :]
        authority = rest.replace("?", "/").split("/")[0]
        environ["HTTP_HOST"] = authority
    has_body = "HTTP_TRANSFER_ENCODING" in environ or int(environ.get("CONTENT_LENGTH") or 0) > 0
    if environ.pop("HTTP_TRANSFER_ENCODING", None) is not None:
        environ["CONTENT_LENGTH"] = str(len(request.body))
    if request.version == "1.0" or has_body:
        environ.pop("HTTP_UPGRADE", None)
    if request.version == "1.0":
        environ.pop("HTTP_EXPECT", None)


# --- h11 ----------------------------------------------------------------------------------------


def by_h11(data: bytes) -> Reading:
    reading = Reading()
    while data:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
        connection.receive_data(data)
        request = Request()
        try:
            for event in _h11_events(connection):
                if isinstance(event, h11.Request):
                    request.method = event.method.decode()
                    request.target = event.target.decode("latin-1")
                    request.version = event.http_version.decode()
                    for name, value in event.headers:
                        request.add(name, value)
                elif isinstance(event, h11.Data):
                    request.body += event.data
                else:
                    break
            else:
                return reading  # incomplete
        except h11.RemoteProtocolError as error:
            reading.refused = str(error)
            return reading
        reading.requests.append(request)
        if request.closes:
            return reading
        data = bytes(connection.trailing_data[0])
    return reading


def _h11_events(connection: h11.Connection) -> Iterator[h11.Request | h11.Data | h11.EndOfMessage]:
    """The events until the end of a message, or of the bytes."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return
        assert isinstance(event, (h11.Request, h11.Data, h11.EndOfMessage))
        yield event


# --- httptools ----------------------------------------------------------------------------------


class _Callbacks:
    def __init__(self, reading: Reading) -> None:
        self.parser: httptools.HttpRequestParser
        self._reading = reading
        self._request = Request()
        self._in_head = True

    def on_message_begin(self) -> None:
        self._request = Request()
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._request.target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer
            self._request.add(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._request.method = self.parser.get_method().decode()
        self._request.version = self.parser.get_http_version()

    def on_body(self, body: bytes) -> None:
        self._request.body += body

    def on_message_complete(self) -> None:
        self._reading.requests.append(self._request)


def _has_body(request: Request) -> bool:
    length = request.headers.get("content-length", ["0"])[-1]
    return "transfer-encoding" in request.headers or int(length) > 0


def by_httptools(data: bytes) -> Reading:
    reading = Reading()
    while data:
        callbacks = _Callbacks(reading)
        callbacks.parser = httptools.HttpRequestParser(callbacks)
        try:
            callbacks.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:  # it stops there; we need not
            data = data[upgrade.args[0] :]
            if _has_body(reading.requests[-1]):
                reading.left = True
                return reading
            continue
        except httptools.HttpParserError as error:
            reading.refused = f"{type(error).__name__}: {error}"
        return reading
    return reading
