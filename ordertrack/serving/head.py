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
_ONLY_ONCE: Final = frozenset(
    {"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING", "HTTP_AUTHORIZATION"}
)


class BadRequest(ValueError):
    """A request that the application never sees."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


# Header names as they come → as WSGI calls them; None for those that are ignored. Only names that
# were checked are in it, so that a known name costs one look-up. Clients could fill it with names
# of their own making, so it stops growing.
_names: dict[str, str | None] = {}
_MAX_NAMES: Final = 1000


def _environ_name(name: str) -> str | None:
    if _TOKEN.fullmatch(name) is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "A header line has no proper name")
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
        raise BadRequest(HTTPStatus.BAD_REQUEST, "Lines must end with CRLF")
    if _CONTROL.search(head) is not None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "Control characters are not allowed")
    if len(lines) > MAX_HEADERS + 1:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Too many header lines")
    _parse_request_line(lines[0], environ)
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "A header line has no colon")
        known = _names.get(name, "")
        if known == "":
            known = _environ_name(name)
        if known is None:
            continue
        value = value.strip(" \t")
        if known not in environ:
            environ[known] = value
        elif known in _ONLY_ONCE:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"{name} may be given once")
        else:
            environ[known] += ("; " if known == "HTTP_COOKIE" else ",") + value
    _check_framing(environ)


def _parse_request_line(line: str, environ: Environ) -> None:
    parts = line.split(" ")
    if len(parts) != 3 or _TOKEN.fullmatch(parts[0]) is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "The request line is malformed")
    method, target, version = parts
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.0 and 1.1 are spoken here")
    if len(target) > MAX_TARGET:
        raise BadRequest(HTTPStatus.REQUEST_URI_TOO_LONG, "The address is too long")
    if target[:7].lower() == "http://":
        target = "/" + target[7:].partition("/")[2]  # as if it came through a proxy
    if not target.isascii() or not (target.startswith("/") or target == "*"):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "The address is malformed")
    path, _, query = target.partition("?")
    environ["REQUEST_METHOD"] = method
    environ["SERVER_PROTOCOL"] = version
    environ["RAW_URI"] = target
    environ["PATH_INFO"] = unquote(path, "latin-1") if "%" in path else path
    environ["QUERY_STRING"] = query


def _check_framing(environ: Environ) -> None:
    """That there is one way only to tell where the body ends."""
    is_old = environ["SERVER_PROTOCOL"] == "HTTP/1.0"
    if not is_old and "HTTP_HOST" not in environ:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "Host is missing")
    length = environ.get("CONTENT_LENGTH")
    if length is not None and not (length.isascii() and length.isdigit() and len(length) < 16):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
    encoding = environ.get("HTTP_TRANSFER_ENCODING")
    if encoding is not None:
        if length is not None or is_old:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "The body's length is ambiguous")
        if encoding.lower() != "chunked":
            raise BadRequest(HTTPStatus.NOT_IMPLEMENTED, "Only chunked transfer is spoken here")
    if environ.get("HTTP_EXPECT", "100-continue").lower() != "100-continue":
        raise BadRequest(HTTPStatus.EXPECTATION_FAILED, "Only 100-continue can be expected")
