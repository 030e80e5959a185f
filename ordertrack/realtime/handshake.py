"""The HTTP side of a WebSocket: which handshakes are answered, and how the others are refused.

Pure functions of a WSGI environ, so that refusals are ordinary HTTP answers before any upgrade.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

_ACCEPT_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16


class Refused(Exception):
    """A handshake that gets an HTTP answer instead of a WebSocket."""

    def __init__(
        self, status: str, code: str, detail: str, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = tuple(headers)


@dataclass(frozen=True, slots=True)
class Origins:
    """Which web pages may open sockets: those of this server, and the `allowed` origins.

    Programs that are not browsers send no Origin and are not concerned. Behind a proxy that is
    trusted, scheme and host are what it says in X-Forwarded-Proto and X-Forwarded-Host.
    """

    allowed: frozenset[str] = frozenset()
    behind_proxy: bool = False

    def permit(self, environ: Mapping[str, Any]) -> bool:
        origin = environ.get("HTTP_ORIGIN")
        if origin is None:
            return True
        origin = _without_default_port(origin.lower())
        return origin in self.allowed or origin == self._own(environ)

    def _own(self, environ: Mapping[str, Any]) -> str | None:
        scheme, host = environ.get("wsgi.url_scheme", "http"), environ.get("HTTP_HOST", "")
        if self.behind_proxy:
            scheme = _nearest(environ.get("HTTP_X_FORWARDED_PROTO")) or scheme
            host = _nearest(environ.get("HTTP_X_FORWARDED_HOST")) or host
        return _without_default_port(f"{scheme}://{host}".lower()) if host else None

    def check(self, environ: Mapping[str, Any]) -> None:
        """Raises `Refused` (403 `forbidden`) for a foreign page."""
        if not self.permit(environ):
            raise Refused("403 Forbidden", "forbidden", "This origin may not open sockets here")


def _nearest(header: str | None) -> str:
    """The value that the nearest proxy added; what stands before it anybody may have written."""
    return header.rpartition(",")[2].strip() if header else ""


def _without_default_port(origin: str) -> str:
    if origin.startswith("http://"):
        return origin.removesuffix(":80")
    return origin.removesuffix(":443") if origin.startswith("https://") else origin


def check_handshake(environ: Mapping[str, Any]) -> bytes:
    """The answer to a valid handshake's key. Raises `Refused` for anything else."""
    if environ["REQUEST_METHOD"] != "GET":
        raise Refused(
            "405 Method Not Allowed", "method_not_allowed", "WebSockets begin with GET",
            [("Allow", "GET")],
        )  # fmt: skip
    upgrade = environ.get("HTTP_UPGRADE", "").lower()
    connection = environ.get("HTTP_CONNECTION", "").lower()
    if upgrade.strip() != "websocket" or "upgrade" not in {
        token.strip() for token in connection.split(",")
    }:
        raise Refused(
            "426 Upgrade Required", "upgrade_required", "This address speaks WebSocket",
            [("Upgrade", "websocket"), ("Connection", "Upgrade")],
        )  # fmt: skip
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        raise Refused(
            "426 Upgrade Required", "upgrade_required", "Only WebSocket version 13 is spoken",
            [("Sec-WebSocket-Version", "13")],
        )  # fmt: skip
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip()
    try:
        size = len(base64.b64decode(key, validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if size != _KEY_BYTES:
        raise Refused("400 Bad Request", "malformed_request", "Sec-WebSocket-Key is not 16 bytes")
    digest = hashlib.sha1(key.encode() + _ACCEPT_GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest)


TOO_MANY: Final = Refused(
    "503 Service Unavailable", "unavailable", "No more connections are taken now",
    [("Retry-After", "5")],
)  # fmt: skip


def refuse(start_response: Callable[..., Any], refused: Refused) -> list[bytes]:
    """Answer a handshake with a problem document (RFC 9457)."""
    number, _, title = refused.status.partition(" ")
    problem = {
        "type": "about:blank",
        "title": title,
        "status": int(number),
        "detail": refused.detail,
        "code": refused.code,
    }
    body = json.dumps(problem).encode()
    headers = [
        ("Content-Type", "application/problem+json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        *refused.headers,
    ]
    start_response(refused.status, headers)
    return [body]
