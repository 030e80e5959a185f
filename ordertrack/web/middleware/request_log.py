"""Gives each request an id, measures it, and writes the line of the log for some.

It is the outermost WSGI middleware, so that the answers of sockets and error pages are counted as
well. What it costs, and why most reads are not logged, is in docs/adr/040-watching-it.md.
"""

import logging
import re
import secrets
from collections.abc import Iterable
from itertools import count
from time import perf_counter
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import request

from ordertrack import logs
from ordertrack.histogram import Histogram

log = logging.getLogger(__name__)

# A request that takes longer gets a line, whatever it is.
SLOW_SECONDS: Final = 1.0

# Dense where most answers are (below 10 ms), and around the limits (lock_timeout 2 s, statements
# 5 s).
BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# A client may send an id. UUIDs, ULIDs and trace ids have this form; any other is replaced, so that
# a client cannot write arbitrary text into the log.
_SANE_ID: Final = re.compile(r"[0-9A-Za-z._-]{1,64}")

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

# Changes below this path are in `order_events`, with actor and time. A line costs 20 µs more.
_AUDITED: Final = "/api/orders"

# A metric's labels are kept for ever, so no value that a client makes up may become one.
_METHODS: Final = _READS | {"POST", "PUT", "PATCH", "DELETE"}
NO_ROUTE: Final = "(none)"

# Paths that are answered in front of Flask, by their beginning. Some of these requests wait for
# events, so a long one is not slow.
_IN_FRONT: Final = {"/ws/orders/": "/ws/orders/<id:order_id>", "/socket.io/": "/socket.io/"}

Key = tuple[str, str, int]


class RequestLog:
    """The middleware, and the figures of its requests.

    in_flight   requests that are being answered
    seen        durations by (route template, method, status class)

    A duration ends when the answer begins; streaming the rest is not part of it. A connection that
    became a WebSocket counts as 101.
    """

    def __init__(self, inner: WSGIApplication) -> None:
        self._inner = inner
        self.in_flight = 0
        self.seen: dict[Key, Histogram] = {}
        # Ids are unique across processes and restarts, and cost one addition each.
        self._prefix = secrets.token_hex(5)
        self._numbers = count(1)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
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

    def _observe(
        self, environ: WSGIEnvironment, noted: logs.Request, status: int, seconds: float
    ) -> None:
        method = environ["REQUEST_METHOD"]
        if method not in _METHODS:
            method = "(other)"
        route = noted.route
        if route is None:
            path = environ["PATH_INFO"]
            found = (template for start, template in _IN_FRONT.items() if path.startswith(start))
            route = next(found, NO_ROUTE)
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


def _level(method: str, route: str, status: int, seconds: float) -> int:
    if status >= 500:
        return logging.WARNING  # an exception behind it has been logged as an error
    if status < 400 and (method in _READS or route.startswith(_AUDITED)):
        is_slow = seconds >= SLOW_SECONDS and route not in _IN_FRONT.values()
        return logging.INFO if is_slow else logging.DEBUG
    if route == "/socket.io/":
        return logging.DEBUG  # a polling client's POSTs are its messages
    return logging.INFO


def note_route(_endpoint: str | None, _values: dict[str, Any] | None) -> None:
    """Tell the log which route answers; a URL value preprocessor, called before all checks.

    The route's template and not the path: templates are few, and clients cannot make them up.
    """
    rule = request.url_rule
    if rule is not None:
        logs.note_route(rule.rule)
