"""Adds security headers to every answer: pages, REST, polling, refusals and errors alike."""

from collections.abc import Iterable
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# Scripts and styles are our own files; nothing is inline, framed, embedded or sent elsewhere.
# Bootstrap's style sheet draws its arrows from data: images.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; worker-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)

HEADERS: Final = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    # Not no-referrer: with it browsers send `Origin: null` with our own forms.
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    # An answer is for its caller alone, unless its view says otherwise.
    ("Cache-Control", "no-store"),
)

_NAMES: Final = frozenset(name.lower() for name, _ in HEADERS)

STRICT_TRANSPORT: Final = ("Strict-Transport-Security", "max-age=31536000")


class SecurityHeaders:
    """The middleware. A header that the answer sets itself is left alone.

    *strict_transport*: whether an answer over HTTPS demands HTTPS for the next year.
    """

    def __init__(self, inner: WSGIApplication, *, strict_transport: bool) -> None:
        self._inner = inner
        self._strict_transport = strict_transport

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            present = [name.lower() for name, _ in headers]
            if _NAMES.isdisjoint(present):
                answered = [*headers, *HEADERS]
            else:
                answered = headers + [pair for pair in HEADERS if pair[0].lower() not in present]
            if self._strict_transport and environ.get("wsgi.url_scheme") == "https":
                answered.append(STRICT_TRANSPORT)
            return start_response(status, answered, *rest)

        return self._inner(environ, start)
