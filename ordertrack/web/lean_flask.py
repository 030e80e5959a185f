"""Flask with less work for each request: `LeanFlask` overrides hooks that Flask documents, and
answers what plain Flask answers.

Flask finds out again at every request what is the same for all requests of a client or a route:

| hook                                     | what is left out                                     |
|------------------------------------------|------------------------------------------------------|
| `create_url_adapter`                     | to check and encode a host that was asked before     |
| the adapter's `match`                    | the walk over the routes: only the path's id differs |
| `preprocess_request`, `request_class`    | to look up the request, and its blueprints, 3 times  |
| `request_class`                          | to bound the reading of a body that is here, bounded |
| `session_interface`                      | to look for the key of sessions, which are not used  |
| `ensure_sync`                            | to ask whether a function is a coroutine: none is    |
| `do_teardown_request`                    | to look for functions that nobody registered         |

`JsonResponse` is a response whose head is known when it is made. Together they halve what a small
request costs outside the database. The tests of HTTP also run on plain Flask (`TEST_FLASK=plain`),
and tests/web/test_lean_flask.py compares the answers of both.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from io import BytesIO
from typing import IO, Any, Final
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Flask, Request, Response
from flask.globals import request_ctx
from flask.sessions import NullSession, SessionInterface
from flask.signals import request_tearing_down
from werkzeug.datastructures import Headers
from werkzeug.routing import MapAdapter, Rule
from werkzeug.utils import cached_property

# Hosts that are remembered. Clients can ask for any number: then each costs what it costs Flask.
MAX_HOSTS: Final = 32

# An id in a path, shorter than the longest that `parsing.IdConverter` takes: it is never too large.
_ID: Final = re.compile(r"(?<=/)[0-9]{1,18}(?![^/])")

# What decides which route answers: the method, and the path before and after its first id. Without
# an id the last is None.
_Shape = tuple[str, str, str | None]

# The route of a shape, and the name of its id.
_Route = tuple[Rule, str | None]

# Statuses of a whole answer: others may lose headers, or have no body.
_WHOLE: Final = (200, 201)


class _Adapter(MapAdapter):
    """Finds the route of a request, without a walk where a path of its shape was matched before.

    So to each route one id must be as good as another: `test_every_route_takes_any_id`.
    """

    def __init__(self, known: dict[_Shape, _Route], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._known = known

    def match(self, *arguments: Any, **options: Any) -> Any:
        if arguments or options != {"return_rule": True} or self.websocket:
            return super().match(*arguments, **options)
        path = self.path_info
        found = _ID.search(path)
        if found is None:
            shape: _Shape = (self.default_method, path, None)
        else:
            shape = (self.default_method, path[: found.start()], path[found.end() :])
        known = self._known.get(shape)
        if known is None:
            return self._walk(shape, [int(found[0])] if found is not None else [])
        rule, name = known
        return rule, {name: int(found[0])} if found is not None else {}

    def _walk(self, shape: _Shape, ids: list[int]) -> Any:
        rule, values = super().match(return_rule=True)  # raises where no route answers
        # Only routes get in here, not paths: a route that takes any text has it among its values.
        if [*values.values()] == ids:
            self._known[shape] = rule, next(iter(values), None)
        return rule, values


@cache
def _blueprints(endpoint: str) -> list[str]:
    """The names of the blueprints that a route belongs to, from the inside out."""
    names = endpoint.split(".")[:-1]
    return [".".join(names[:n]) for n in range(len(names), 0, -1)]


class _Request(Request):
    @property
    def blueprints(self) -> list[str]:
        rule = self.url_rule
        return _blueprints(rule.endpoint) if rule is not None else []

    @cached_property
    def stream(self) -> IO[bytes]:
        # Our server has read the whole body before the request.
        body = self.environ["wsgi.input"]
        if type(body) is BytesIO and "wsgi.input_terminated" in self.environ:
            most = self.max_content_length
            if most is None or body.getbuffer().nbytes <= most:
                return body
        return super().stream

    def close(self) -> None:
        if "files" in self.__dict__:
            super().close()


class JsonResponse(Response):
    """A JSON answer, whole from the start. *headers* are sent as they are, Location too."""

    def __init__(
        self, text: str, status: int = 200, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        body = text.encode()
        self.headers = Headers()
        # As `add` does it for each, without looking for line ends: our server refuses those.
        self.headers._list = [
            *headers,
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
        ]
        self.status = status
        self.response = [body]
        self.direct_passthrough = False
        self._on_close = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if (
            type(self.response) is not list
            or self._on_close
            or self.status_code not in _WHOLE
            or environ["REQUEST_METHOD"] == "HEAD"
        ):
            return super().__call__(environ, start_response)
        start_response(self.status, self.headers.to_wsgi_list())
        return self.response


class _NoSession(SessionInterface):
    """One session for all: Flask's, which says at every change that there are no sessions."""

    _session = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return self._session


class LeanFlask(Flask):
    """The application's class. Routes and hooks are registered before its first request."""

    request_class = _Request
    session_interface = _NoSession()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # What a request says about its host → the host, and the adapter's arguments for it.
        self._hosts: dict[tuple[Any, ...], tuple[str, tuple[Any, ...]]] = {}
        self._routes: dict[_Shape, _Route] = {}

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if (
            request is None
            or self.config["TRUSTED_HOSTS"] is not None
            or "HTTP_UPGRADE" in request.environ
            or not request.environ.get("PATH_INFO")
        ):
            return super().create_url_adapter(request)
        environ = request.environ
        said = (
            environ["wsgi.url_scheme"],
            environ.get("HTTP_HOST"),
            environ.get("SERVER_NAME"),
            environ.get("SERVER_PORT"),
            environ.get("SCRIPT_NAME"),
        )
        known = self._hosts.get(said)
        if known is None:
            made = super().create_url_adapter(request)  # raises for what is no host
            assert made is not None
            if len(self._hosts) >= MAX_HOSTS:
                self._hosts.clear()
            known = self._hosts[said] = (
                request.host,
                (made.map, made.server_name, made.script_name, made.subdomain, made.url_scheme),
            )
        request.host, bound = known
        query = request.query_string.decode(errors="replace")
        return _Adapter(self._routes, *bound, request.path, request.method, query)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func

    def preprocess_request(self) -> Any:
        request = request_ctx.request
        names = (None, *reversed(request.blueprints))
        for name in names:
            for note in self.url_value_preprocessors.get(name, ()):
                note(request.endpoint, request.view_args)
        for name in names:
            for check in self.before_request_funcs.get(name, ()):
                answer = check()
                if answer is not None:
                    return answer
        return None

    def do_teardown_request(self, *arguments: Any) -> None:
        if self.teardown_request_funcs or request_tearing_down.receivers:
            super().do_teardown_request(*arguments)
