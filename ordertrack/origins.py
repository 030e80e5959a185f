"""Which web pages are ours: the one place that compares origins, for sockets and forms alike.

Pure functions of a WSGI environ. Behind trusted proxies its scheme and host are those that the
browser sees: Werkzeug's ProxyFix has put them there, and nothing here reads X-Forwarded headers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

# What browsers say in Sec-Fetch-Site of a request from our own page, and of one without a page.
_OWN_SITES: Final = ("same-origin", "none")


@dataclass(frozen=True, slots=True)
class Origins:
    """Which web pages may send requests here: those of this server, and the `allowed` origins.

    Programs that are not browsers say nothing about themselves, and have no cookies to abuse.
    """

    allowed: frozenset[str] = frozenset()

    def permit(self, environ: Mapping[str, Any]) -> bool:
        """Whether nothing says that a foreign page sent the request."""
        origin = _origin(environ)
        if origin in self.allowed:
            return True
        site = environ.get("HTTP_SEC_FETCH_SITE")
        if site is not None:
            return site in _OWN_SITES
        return origin is None or origin == _own(environ)

    def vouch(self, environ: Mapping[str, Any]) -> bool:
        """Whether the browser says that one of our pages sent the request.

        For what a cookie alone may start. Without TLS browsers send no Sec-Fetch-Site, and with a
        GET to the page's own origin no Origin either: then the Referer has to tell.
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
    """This server's own origin, as the request's sender sees it."""
    host = environ.get("HTTP_HOST", "")
    scheme = environ.get("wsgi.url_scheme", "http")
    return _without_default_port(f"{scheme}://{host}".lower()) if host else None


def _without_default_port(origin: str) -> str:
    if origin.startswith("http://"):
        return origin.removesuffix(":80")
    return origin.removesuffix(":443") if origin.startswith("https://") else origin
