"""Checks of a WebSocket handshake (RFC 6455, 4.2), as pure functions of a WSGI environ.

A handshake that fails a check is refused by an ordinary HTTP response (`problems.refuse`), before
any upgrade.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from ordertrack.errors import Forbidden, MalformedRequest, MethodNotAllowed, UpgradeRequired
from ordertrack.origins import Origins

_ACCEPT_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3
_KEY_BYTES: Final = 16


def check_origin(origins: Origins, environ: Mapping[str, Any]) -> None:
    """Raises `Forbidden` for a page of another site (section 10.2)."""
    if not origins.permit(environ):
        raise Forbidden("This origin may not open sockets here")


def check_handshake(environ: Mapping[str, Any]) -> bytes:
    """The ``Sec-WebSocket-Accept`` of a valid handshake (section 4.2.1).

    Raises `MethodNotAllowed`, `UpgradeRequired` or `MalformedRequest` for anything else.
    """
    if environ["REQUEST_METHOD"] != "GET":
        raise MethodNotAllowed("WebSockets begin with GET", headers=[("Allow", "GET")])
    upgrade = environ.get("HTTP_UPGRADE", "").lower()
    connection = environ.get("HTTP_CONNECTION", "").lower()
    if upgrade.strip() != "websocket" or "upgrade" not in {
        token.strip() for token in connection.split(",")
    }:
        raise UpgradeRequired(
            "This address accepts WebSocket handshakes only",
            headers=[("Upgrade", "websocket"), ("Connection", "Upgrade")],
        )
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        raise UpgradeRequired(
            "Only WebSocket version 13 is supported", headers=[("Sec-WebSocket-Version", "13")]
        )
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip()
    try:
        size = len(base64.b64decode(key, validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if size != _KEY_BYTES:
        raise MalformedRequest("Sec-WebSocket-Key is not 16 bytes")
    digest = hashlib.sha1(key.encode() + _ACCEPT_GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest)
