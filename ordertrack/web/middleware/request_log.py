"""Around every request: an id, a measurement, and for some a line in the log.

The outermost WSGI application, so that what sockets and error pages answer is counted, too.
What it costs, and why most reads are not logged, is in docs/adr/040-watching-it.md.
"""

import logging
import re
import secrets
from collections.abc import Callable, Iterable
from itertools import count
from time import perf_counter
from typing import Any, Final

from flask import Flask, request

from ordertrack import logs
from ordertrack.histogram import Histogram

log = logging.getLogger(__name__)

Environ = dict[str, Any]
Wsgi = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

# What takes longer is worth a line, whatever it was.
SLOW_SECONDS: Final = 1.0

# Around where answers are (below 10 ms) and where limits are (lock_timeout 2 s, statements 5 s).
BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Whoever calls may bring an id. This is what UUIDs, ULIDs and trace ids are made of; another is
# replaced, so that nobody can write what they like into our log.
_SANE_ID: Final = re.compile(r"[0-9A-Za-z._-]{1,64}")

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

# What these change is in `order_events`, with who and when: no need to say it twice, at 20 µs each.
_AUDITED: Final = "/api/orders"

# Labels are kept for ever: what a client can make up must not become one.
_METHODS: Final = _READS | {"POST", "PUT", "PATCH", "DELETE"}
NO_ROUTE: Final = "(none)"

# What is answered in front of Flask, by the beginning of its path. These also wait on purpose.
_IN_FRONT: Final = {"/ws/orders/": "/ws/orders/<id:order_id>", "/socket.io/": "/socket.io/"}

Key = tuple[str, str, int]


class Requests:
    """The requests of this process. ``seen``: durations by (route template, method, status class).

    A duration ends when the answer begins; the rest of a streamed one is not in it. A connection
    that became a WebSocket counts as 101.
    """

    def __init__(self, inner: Wsgi) -> None:
        self._inner = inner
        self.in_flight = 0
        self.seen: dict[Key, Histogram] = {}
        # Unique across processes and restarts, at the price of one addition.
        self._prefix = secrets.token_hex(5)
        self._numbers = count(1)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        began = perf_counter()
        given = environ.get("HTTP_X_REQUEST_ID")
        if given is not None and _SANE_ID.fullmatch(given):
            request_id = given
        else:
            request_id = f"{self._prefix}-{next(self._numbers):x}"
        status = 101

        def start(line: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            nonlocal status
            status = int(line[:3])
            return start_response(line, [*headers, ("X-Request-ID", request_id)], *rest)

        noted = logs.Request(request_id)
        token = logs.enter(noted)
        self.in_flight += 1
        try:
            answer = self._inner(environ, start)
            self._observe(environ, noted, status, perf_counter() - began)
        except BaseException:
            self._observe(environ, noted, 500, perf_counter() - began)
            raise
        finally:
            self.in_flight -= 1
            logs.leave(token)
        return answer

    def _observe(self, environ: Environ, noted: logs.Request, status: int, seconds: float) -> None:
        method = environ["REQUEST_METHOD"]
        if method not in _METHODS:
            method = "(other)"
        route = noted.route or _route_in_front(environ["PATH_INFO"])
        key = (route, method, status // 100)
        histogram = self.seen.get(key)
        if histogram is None:
            histogram = self.seen[key] = Histogram(BOUNDS)
        histogram.observe(seconds)
        level = _level(method, route, status, seconds)
        if log.isEnabledFor(level):
            log.log(
                level,
                "request",
                extra=logs.fields(
                    method=method,
                    path=route,
                    status=status,
                    duration_ms=round(seconds * 1000, 2),
                    user_id=None if noted.user_id is None else str(noted.user_id),
                    client=environ.get("REMOTE_ADDR"),
                ),
            )


def _route_in_front(path: str) -> str:
    for beginning, template in _IN_FRONT.items():
        if path.startswith(beginning):
            return template
    return NO_ROUTE


def _level(method: str, route: str, status: int, seconds: float) -> int:
    if status >= 500:
        return logging.WARNING  # an exception behind it has been logged as an error
    if status < 400 and (method in _READS or route.startswith(_AUDITED)):
        is_slow = seconds >= SLOW_SECONDS and route not in _IN_FRONT.values()
        return logging.INFO if is_slow else logging.DEBUG
    if route == "/socket.io/":
        return logging.DEBUG  # a polling client's POSTs are its messages
    return logging.INFO


def init_app(app: Flask) -> None:
    """Put it around all that answers so far."""
    requests = Requests(app.wsgi_app)
    app.extensions["ordertrack_requests"] = requests
    app.wsgi_app = requests  # type: ignore[method-assign]

    @app.url_value_preprocessor  # before all that may refuse the request
    def note(_endpoint: str | None, _values: dict[str, Any] | None) -> None:
        rule = request.url_rule
        if rule is not None:
            # `/api/orders/<id:order_id>`, not the path: few, and nothing of the client's in it.
            logs.note_route(rule.rule)
