"""Decides whether a request comes from one of our own web pages, for sockets and forms alike.

Pure functions of a WSGI environ. Behind trusted proxies its scheme and host are those that the
browser sees: Werkzeug's ProxyFix has put them there, so nothing here reads X-Forwarded headers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

# The values of Sec-Fetch-Site for a request from our own page, and for one that no page sent.
_OWN_SITES: Final = ("same-origin", "none")


@dataclass(frozen=True, slots=True)
class Origins:
    """The web pages that may send requests here: those of this server and of `allowed` origins.

    A program that is no browser sends neither Origin nor Sec-Fetch-Site, and has no cookies that
    another site could abuse: it is permitted.
    """

    allowed: frozenset[str] = frozenset()

    def permit(self, environ: Mapping[str, Any]) -> bool:
        """Whether no header shows that another site's page sent the request."""
        origin = _origin(environ)
        if origin in self.allowed:
            return True
        site = environ.get("HTTP_SEC_FETCH_SITE")
        if site is not None:
            return site in _OWN_SITES
        return origin is None or origin == _own(environ)

    def vouch(self, environ: Mapping[str, Any]) -> bool:
        """Whether a header shows that one of our pages sent the request.

        For requests that a cookie alone authenticates. Without TLS browsers send no Sec-Fetch-Site,
        and with a GET to the page's own origin no Origin either: then the Referer decides.
        """
        if not self.permit(environ):
            return False
        if "HTTP_SEC_FETCH_SITE" in environ or "HTTP_ORIGIN" in environ:
            return True
        referer = urlsplit(environ.get("HTTP_REFERER", ""))
        origin = _without_default_port(f"{referer.scheme}://{referer.netloc}".lower())
        return origin in self.allowed or origin == _own(environ)


def _origin(environ: Mapping[str, Any]) -> str | None:
    origin = environ.get("HTTP_ORIGIN")
    return None if origin is None else _without_default_port(origin.lower())


def _own(environ: Mapping[str, Any]) -> str | None:
    """This server's own origin, as the client sees it."""
    host = environ.get("HTTP_HOST", "")
    scheme = environ.get("wsgi.url_scheme", "http")
    return _without_default_port(f"{scheme}://{host}".lower()) if host else None


def _without_default_port(origin: str) -> str:
    if origin.startswith("http://"):
        return origin.removesuffix(":80")
    return origin.removesuffix(":443") if origin.startswith("https://") else origin
