"""The head of a request: parsed strictly, because what can be read in two ways is what request
smuggling is made of.
"""

import re
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

# Browsers send about 1 KiB, tokens and cookies another two.
MAX_HEAD: Final = 32_768
MAX_TARGET: Final = 8_192
MAX_HEADERS: Final = 100

Environ = dict[str, Any]

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# A fragment ("#") is never sent; some servers cut it off, others take it for part of the path.
_TARGET: Final = re.compile(r"/[!\"$-~]*|\*")
_ABSOLUTE: Final = re.compile(r"http://([^/?#]+)((?:[/?][!\"$-~]*)?)", re.IGNORECASE)

# A name, an IPv4 address or an IPv6 address in brackets, and a port. RFC 3986 allows more in a
# name, none of which a DNS name holds, and all of which somebody may read in another way.
_HOST: Final = re.compile(r"(?:[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

# For proxies, and the beginning of HTTP/2: what follows would be something else than requests.
_NOT_SPOKEN: Final = frozenset({"CONNECT", "PRI"})

_ONLY_ONCE: Final = frozenset(
    {"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING", "HTTP_AUTHORIZATION"}
)

# RFC 9110, 6.5.1: what must be known before the body is read cannot come behind it.
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

# A tab behind it is allowed, never sent, and known for being overlooked by one of two servers.
_CHUNKED: Final = re.compile(
    r"^transfer-encoding:[ \t]*chunked *\r?$", re.IGNORECASE | re.MULTILINE
)


class BadRequest(ValueError):
    """A request that the application never sees."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def malformed(detail: str) -> BadRequest:
    return BadRequest(HTTPStatus.BAD_REQUEST, detail)


# Header names as they come → as WSGI calls them; None for those that are ignored. Only names that
# were checked are in it, so that a known name costs one look-up. Clients could fill it with names
# of their own making, so it stops growing.
_names: dict[str, str | None] = {}
_MAX_NAMES: Final = 1000


def _environ_name(name: str) -> str | None:
    if _TOKEN.fullmatch(name) is None:
        raise malformed("A header line has no proper name")
    if "_" in name:
        known = None  # would be mistaken for the same name with "-", which proxies may filter
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
        raise malformed("Lines must end with CRLF")
    if _CONTROL.search(head) is not None:
        raise malformed("Control characters are not allowed")
    if len(lines) > MAX_HEADERS + 1:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Too many header lines")
    authority = _parse_request_line(lines[0], environ)
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise malformed("A header line has no colon")
        known = _names.get(name, "")
        if known == "":
            known = _environ_name(name)
        if known is None:
            continue
        value = value.strip(" \t")
        if known not in environ:
            environ[known] = value
        elif known in _ONLY_ONCE:
            raise malformed(f"{name} may be given once")
        else:
            environ[known] += ("; " if known == "HTTP_COOKIE" else ",") + value
    _check_host(environ, authority)
    _check_framing(environ, head)
    _drop_what_does_not_apply(environ)


def parse_trailer(line: bytes) -> None:
    """Check a line behind a chunked body; what it says is ignored. Raises `BadRequest`."""
    text = line.decode("latin-1")
    name, colon, value = text.removesuffix("\r\n").partition(":")
    if not text.endswith("\r\n") or "\r" in value or _CONTROL.search(value) is not None:
        raise malformed("A trailer must be a header line that ends with CRLF")
    if not colon or _TOKEN.fullmatch(name) is None:
        raise malformed("A trailer has no proper name")
    if name.lower() in _NOT_IN_TRAILERS:
        raise malformed(f"{name} must come before the body")


def _parse_request_line(line: str, environ: Environ) -> str | None:
    """Answers the host that the target names, if it does."""
    parts = line.split(" ")
    if len(parts) != 3 or _TOKEN.fullmatch(parts[0]) is None:
        raise malformed("The request line is malformed")
    method, sent, version = parts
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.0 and 1.1 are spoken here")
    if method in _NOT_SPOKEN:
        raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, f"{method} is not for this server")
    if len(sent) > MAX_TARGET:
        raise BadRequest(HTTPStatus.REQUEST_URI_TOO_LONG, "The address is too long")
    authority = None
    target = sent
    absolute = _ABSOLUTE.fullmatch(sent)
    if absolute is not None:  # as if it came through a proxy
        authority, target = absolute.groups()
        if not target.startswith("/"):
            target = f"/{target}"
    if _TARGET.fullmatch(target) is None or (target == "*" and method != "OPTIONS"):
        raise malformed("The address is malformed")
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
        raise malformed("Host is missing")
    if authority is not None:
        if _HOST.fullmatch(authority) is None:
            raise malformed("The address names no proper host")
        environ["HTTP_HOST"] = authority  # RFC 9112, 3.2.2: it counts, and Host does not
    if host is not None and _HOST.fullmatch(host) is None:
        raise malformed("Host must be a name or an address, and perhaps a port")


def _check_framing(environ: Environ, head: str) -> None:
    """That there is one way only to tell where the body ends."""
    length = environ.get("CONTENT_LENGTH")
    if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
        raise malformed("Content-Length is not a number")
    encoding = environ.get("HTTP_TRANSFER_ENCODING")
    if encoding is not None:
        if length is not None or environ["SERVER_PROTOCOL"] == "HTTP/1.0":
            raise malformed("The body's length is ambiguous")
        if _CHUNKED.search(head) is None:
            raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "Only chunked transfer is spoken here")


def _drop_what_does_not_apply(environ: Environ) -> None:
    """Headers that a server has to ignore in some requests, or may."""
    is_old = environ["SERVER_PROTOCOL"] == "HTTP/1.0"
    has_body = "HTTP_TRANSFER_ENCODING" in environ or int(environ.get("CONTENT_LENGTH") or 0) > 0
    if "HTTP_UPGRADE" in environ and (is_old or has_body):
        del environ["HTTP_UPGRADE"]  # RFC 9110, 7.8; a body is no beginning of another protocol
    expected = environ.get("HTTP_EXPECT")
    if expected is not None:
        if is_old:
            del environ["HTTP_EXPECT"]  # RFC 9110, 10.1.1
        elif expected.lower() != "100-continue":
            raise BadRequest(HTTPStatus.EXPECTATION_FAILED, "Only 100-continue can be expected")
