"""Security headers on every answer: pages, REST, polling, refusals and errors alike."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from flask import Flask

from ordertrack.config import Settings

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# Scripts and styles are files of ours; nothing is inline, framed, embedded or sent elsewhere.
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
    # What an answer holds is the caller's own, unless it says otherwise itself.
    ("Cache-Control", "no-store"),
)

STRICT_TRANSPORT: Final = ("Strict-Transport-Security", "max-age=31536000")


def init_app(app: Flask, settings: Settings) -> None:
    """Add them around all that answers so far; what an answer sets itself is left alone."""
    inner: Wsgi = app.wsgi_app

    def with_headers(
        environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            present = {name.lower() for name, _ in headers}
            added = [pair for pair in HEADERS if pair[0].lower() not in present]
            if settings.cookie_secure and environ.get("wsgi.url_scheme") == "https":
                added.append(STRICT_TRANSPORT)
            return start_response(status, [*headers, *added], *rest)

        return inner(environ, start)

    app.wsgi_app = with_headers  # type: ignore[method-assign]
