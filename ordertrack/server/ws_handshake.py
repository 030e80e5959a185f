"""The HTTP side of a WebSocket: which handshakes are answered, and how the others are refused.

Pure functions of a WSGI environ, so that refusals are ordinary HTTP answers before any upgrade.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ordertrack.origins import Origins

_ACCEPT_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16


class Refused(Exception):
    """A handshake that gets an HTTP answer instead of a WebSocket.

    Make a new one for each refusal: an exception that is raised again keeps every frame that it has
    passed through, with the request in it.
    """

    def __init__(
        self, status: str, code: str, detail: str, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = tuple(headers)


def bad_request(detail: str) -> Refused:
    return Refused("400 Bad Request", "malformed_request", detail)


def too_many() -> Refused:
    """The refusal of a connection for which there is no room now."""
    return Refused(
        "503 Service Unavailable", "unavailable", "No more connections are taken now",
        [("Retry-After", "5")],
    )  # fmt: skip


def check_origin(origins: Origins, environ: Mapping[str, Any]) -> None:
    """Raises `Refused` (403 `forbidden`) for a foreign page."""
    if not origins.permit(environ):
        raise Refused("403 Forbidden", "forbidden", "This origin may not open sockets here")


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
        raise bad_request("Sec-WebSocket-Key is not 16 bytes")
    digest = hashlib.sha1(key.encode() + _ACCEPT_GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest)


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
