"""Parses the head of a request into a WSGI environ (RFC 9112), strictly: request smuggling needs a
request that two servers read in different ways.
"""

import re
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from ordertrack.errors import MalformedRequest

# Bytes. Browsers send about 1 KiB, and tokens and cookies take another two.
MAX_HEAD: Final = 32_768
MAX_TARGET: Final = 8_192
MAX_HEADERS: Final = 100

Environ = dict[str, Any]

# The key in an environ of a callable that gives the connection away: its socket, which does not
# block, and the bytes that were read beyond the request. The HTTP server then forgets about both.
TAKE_OVER: Final = "ordertrack.take_over"

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# Without a fragment ("#"): clients never send one, and servers disagree on what it would mean.
_TARGET: Final = re.compile(r"/[!\"$-~]*|\*")
_ABSOLUTE: Final = re.compile(r"http://([^/?#]+)((?:[/?][!\"$-~]*)?)", re.IGNORECASE)

# A name, an IPv4 address or an IPv6 address in brackets, and a port. RFC 3986 allows more in a
# name, none of which a DNS name holds, and all of which another server may read differently.
_HOST: Final = re.compile(r"(?:[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

# Methods of proxies and of HTTP/2's preface: what follows them would not be requests.
_UNSUPPORTED: Final = frozenset({"CONNECT", "PRI"})

_ONLY_ONCE: Final = frozenset(
    {"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING", "HTTP_AUTHORIZATION"}
)

# RFC 9110, 6.5.1: what must be known before the body is read cannot come after it.
_NOT_IN_TRAILERS: Final = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "host",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
    }
)

# Without a tab at its end: RFC 9110 allows one, but clients send none, and some servers overlook
# it.
_CHUNKED: Final = re.compile(
    r"^transfer-encoding:[ \t]*chunked *\r?$", re.IGNORECASE | re.MULTILINE
)


class BadRequest(MalformedRequest):
    """A request that cannot be parsed; the application never sees it."""

    def __init__(self, detail: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(detail)
        self.status = status


# A cache: header names as they come → as WSGI calls them; None for those that are ignored. Only
# valid names are in it, so that a known name costs one look-up. It stops growing, because clients
# could fill it with names that they make up.
_names: dict[str, str | None] = {}
_MAX_NAMES: Final = 1000


def _environ_name(name: str) -> str | None:
    if _TOKEN.fullmatch(name) is None:
        raise BadRequest("The name of a header line is invalid")
    if "_" in name:
        known = None  # WSGI would not tell it from the same name with "-", which proxies may filter
    else:
        known = name.upper().replace("-", "_")
        if known not in ("CONTENT_LENGTH", "CONTENT_TYPE"):
            known = f"HTTP_{known}"
    if len(_names) < _MAX_NAMES:
        _names[name] = known
    return known


def parse_head(head: str, environ: Environ) -> None:
    """Add a request's head (without the empty line at its end) to `environ`.

    Raises `BadRequest` for everything that is not exactly HTTP/1.0 or 1.1.
    """
    lines = head.split("\r\n")
    if len(lines) - 1 != head.count("\n") or len(lines) - 1 != head.count("\r"):
        raise BadRequest("Lines must end with CRLF")
    if _CONTROL.search(head) is not None:
        raise BadRequest("Control characters are not allowed")
    if len(lines) > MAX_HEADERS + 1:
        raise BadRequest("Too many header lines", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    authority = _parse_request_line(lines[0], environ)
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest("A header line has no colon")
        known = _names.get(name, "")
        if known == "":
            known = _environ_name(name)
        if known is None:
            continue
        value = value.strip(" \t")
        if known not in environ:
            environ[known] = value
        elif known in _ONLY_ONCE:
            raise BadRequest(f"{name} may be given once")
        else:
            environ[known] += ("; " if known == "HTTP_COOKIE" else ",") + value
    _check_host(environ, authority)
    _check_framing(environ, head)
    _drop_inapplicable(environ)


def parse_trailer(line: bytes) -> None:
    """Check a line after a chunked body; its value is ignored. Raises `BadRequest`."""
    text = line.decode("latin-1")
    name, colon, value = text.removesuffix("\r\n").partition(":")
    if not text.endswith("\r\n") or "\r" in value or _CONTROL.search(value) is not None:
        raise BadRequest("A trailer must be a header line that ends with CRLF")
    if not colon or _TOKEN.fullmatch(name) is None:
        raise BadRequest("The name of a trailer is invalid")
    if name.lower() in _NOT_IN_TRAILERS:
        raise BadRequest(f"{name} must come before the body")


def _parse_request_line(line: str, environ: Environ) -> str | None:
    """Add the request line to `environ`; returns the host, if the target names one."""
    parts = line.split(" ")
    if len(parts) != 3 or _TOKEN.fullmatch(parts[0]) is None:
        raise BadRequest("The request line is malformed")
    method, sent, version = parts
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(
            "Only HTTP/1.0 and 1.1 are supported", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
        )
    if method in _UNSUPPORTED:
        raise BadRequest(f"The method {method} is not supported", HTTPStatus.NOT_IMPLEMENTED)
    if len(sent) > MAX_TARGET:
        raise BadRequest("The address is too long", HTTPStatus.REQUEST_URI_TOO_LONG)
    authority = None
    target = sent
    absolute = _ABSOLUTE.fullmatch(sent)
    if absolute is not None:  # as a proxy would be asked
        authority, target = absolute.groups()
        if not target.startswith("/"):
            target = f"/{target}"
    if _TARGET.fullmatch(target) is None or (target == "*" and method != "OPTIONS"):
        raise BadRequest("The address is malformed")
    path, _, query = target.partition("?")
    environ["REQUEST_METHOD"] = method
    environ["SERVER_PROTOCOL"] = version
    environ["RAW_URI"] = sent
    environ["PATH_INFO"] = unquote(path, "latin-1") if "%" in path else path
    environ["QUERY_STRING"] = query
    return authority


def _check_host(environ: Environ, authority: str | None) -> None:
    host = environ.get("HTTP_HOST")
    if host is None and environ["SERVER_PROTOCOL"] != "HTTP/1.0":
        raise BadRequest("Host is missing")
    if authority is not None:
        if _HOST.fullmatch(authority) is None:
            raise BadRequest("The host in the address is invalid")
        environ["HTTP_HOST"] = authority  # RFC 9112, 3.2.2: it replaces Host
    if host is not None and _HOST.fullmatch(host) is None:
        raise BadRequest("Host must be a name or an address, and perhaps a port")


def _check_framing(environ: Environ, head: str) -> None:
    """Refuse a request whose body's end could be told in two ways (RFC 9112, 6.3)."""
    length = environ.get("CONTENT_LENGTH")
    if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
        raise BadRequest("Content-Length is not a number")
    encoding = environ.get("HTTP_TRANSFER_ENCODING")
    if encoding is not None:
        if length is not None or environ["SERVER_PROTOCOL"] == "HTTP/1.0":
            raise BadRequest("The body's length is ambiguous")
        if _CHUNKED.search(head) is None:
            raise BadRequest(
                "Only the transfer coding 'chunked' is supported", HTTPStatus.NOT_IMPLEMENTED
            )


def _drop_inapplicable(environ: Environ) -> None:
    """Remove headers that a server must or may ignore in such a request."""
    is_old = environ["SERVER_PROTOCOL"] == "HTTP/1.0"
    has_body = "HTTP_TRANSFER_ENCODING" in environ or int(environ.get("CONTENT_LENGTH") or 0) > 0
    if "HTTP_UPGRADE" in environ and (is_old or has_body):
        del environ["HTTP_UPGRADE"]  # RFC 9110, 7.8; no upgrade of ours begins with a body
    expected = environ.get("HTTP_EXPECT")
    if expected is not None:
        if is_old:
            del environ["HTTP_EXPECT"]  # RFC 9110, 10.1.1
        elif expected.lower() != "100-continue":
            raise BadRequest("Only 100-continue can be expected", HTTPStatus.EXPECTATION_FAILED)
