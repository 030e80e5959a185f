"""`LeanFlask` answers what plain Flask answers, and does what it does, in the same order."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    after_this_request,
    g,
    request,
    request_tearing_down,
    session,
    stream_with_context,
    url_for,
)
from sqlalchemy import text
from werkzeug.test import create_environ, run_wsgi_app

from ordertrack import auth
from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.web.lean_flask import MAX_HOSTS, JsonResponse, LeanFlask
from tests.support import plain_flask
from tests.support.databases import settings_for
from tests.support.people import People

Answer = tuple[str, list[tuple[str, str]], bytes]

# Headers that differ from answer to answer.
OWN = {"X-Request-ID", "Date"}

# The key of a page's form, too.
OWN_KEY = re.compile(rb'(?<=name="key" value=")\w+')


def call(app: Flask, method: str, path: str, body: bytes = b"", **environ: str) -> Answer:
    """The answer to a request as our server passes it on."""
    asked = create_environ(method=method)
    path, _, query = path.partition("?")
    asked |= {
        "REQUEST_METHOD": method,
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": query,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        **environ,
    }
    found, status, headers = run_wsgi_app(app, asked, buffered=True)
    shown = OWN_KEY.sub(b"", b"".join(found))
    return status, [pair for pair in headers if pair[0] not in OWN], shown


@contextmanager
def plain_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name, replacement in plain_flask.PLAIN:
            patch.setattr(module, name, replacement)
        yield


@pytest.fixture(scope="module")
def both(database: str) -> Iterator[tuple[Flask, Flask]]:
    """The application, and the same on plain Flask."""
    lean = create_app(settings_for(database, TRUSTED_PROXIES="1"))
    with plain_parts():
        plain = create_app(settings_for(database, TRUSTED_PROXIES="1"))
    assert type(plain) is Flask
    yield lean, plain
    for app in (lean, plain):
        with app.app_context():
            db.engine.dispose()


JSON = {"CONTENT_TYPE": "application/json"}
HTML = {"HTTP_ACCEPT": "text/html"}
REQUESTS: list[tuple[str, str, bytes, dict[str, str]]] = [
    *[
        (method, path, b"", {})
        for path in (
            "/api/orders/{order}",
            "/api/orders/0{order}",
            "/api/orders/{order}/",
            "//api/orders/{order}",
            "/api//orders/{order}?a=1",
            "/api/orders/{order}/history?after=1",
            "/api/orders/0",
            "/api/orders/9223372036854775807",
            "/api/orders/9223372036854775808",
            "/api/orders/9999999999999999999",
            "/api/orders/99999999999999999999",
            "/api/orders/-1",
            "/api/orders/1x",
            "/api/orders/1/2",
            "/api/orders/1/status/2",
            "/api/orders/\u0663",
            "/api/me/sessions/1",
            "/api/orders?limit=1",
            "/api/orders?limit=none&x=%FF",
            "/api/nothing/1",
            "/static/js/order.js",
            "/static/12/34",
            "/static/",
            "/healthz",
            "/1",
            "/",
            "*",
            "",
        )
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "get", "BREW")
        if not (method == "DELETE" and "sessions" in path)
        if not (method == "DELETE" and path.endswith("{order}"))
    ],
    *[
        ("PUT", "/api/orders/{order}/status", body, {**JSON, **headers})
        for body in (b"", b"{", b'{"status": 1}', b'{"status": "Shipped"}', b"\xff", b"x" * 70_000)
        for headers in (
            {},
            {"CONTENT_TYPE": "application/json; charset=utf-8"},
            {"CONTENT_TYPE": "Application/JSON"},
            {"CONTENT_TYPE": "text/plain"},
            {"CONTENT_TYPE": ""},
            {"HTTP_IF_MATCH": '"77"'},
            {"HTTP_IF_MATCH": "W/x"},
            {"HTTP_IF_MATCH": " * "},
        )
    ],
    ("POST", "/login", b"email=a%40b.example&password=xxxxxxxx", HTML),
    (
        "POST",
        "/login",
        b"email=a%40b.example&password=xxxxxxxx",
        {**HTML, "CONTENT_TYPE": "application/x-www-form-urlencoded"},
    ),
    ("GET", "/orders", b"", HTML),
    ("GET", "/orders/{order}", b"", HTML),
    ("GET", "/nothing", b"", HTML),
    ("GET", "/board.csv", b"", {}),
    ("GET", "/static/js/order.js", b"", {"HTTP_RANGE": "bytes=0-9"}),
    ("GET", "/static/js/order.js", b"", {"HTTP_IF_NONE_MATCH": "*"}),
    *[
        ("GET", path, b"", {"HTTP_HOST": host, **forwarded})
        for path in ("/api/orders/{order}", "//login")
        for host in ("a.example", "A.EXAMPLE:80", "[::1]:8000", "a b", "a/b", "", "x" * 64, "é")
        for forwarded in (
            {},
            {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_FORWARDED_HOST": "b.example"},
            {"HTTP_X_FORWARDED_PROTO": "ws"},
            {"HTTP_CONNECTION": "upgrade", "HTTP_UPGRADE": "websocket"},
        )
    ],
]


@pytest.mark.parametrize("credential", ["token", "cookie", "none", "wrong"])
def test_plain_flask_gives_the_same_answers(
    both: tuple[Flask, Flask], people: People, credential: str
) -> None:
    lean, plain = both
    admin = people.admin()
    order = admin.order()["id"]
    headers = {
        "token": {"HTTP_AUTHORIZATION": f"Bearer {admin.token}"},
        "cookie": {"HTTP_COOKIE": f"access_token_cookie={admin.token}"},
        "none": {},
        "wrong": {"HTTP_AUTHORIZATION": "Basic x"},
    }[credential]
    for method, template, body, more in REQUESTS:
        path = template.format(order=order)
        with plain_parts():
            expected = call(plain, method, path, body, **headers, **more)
        for time in ("first", "second"):  # the second is answered by what the first has taught
            answer = call(lean, method, path, body, **headers, **more)
            assert answer == expected, (method, path, body[:40], more, time)


def test_the_application_is_made_of_the_class_that_is_asked_for(app: Flask) -> None:
    assert type(app) is (Flask if plain_flask.wanted() else LeanFlask)


def test_every_route_takes_any_id(app: Flask) -> None:
    """Otherwise a path that differs in its id might belong to another route."""
    for rule in app.url_map.iter_rules():
        assert set(re.findall(r"<(\w+):", rule.rule)) <= {"id", "path"}, rule
        assert rule.rule.count("<") == rule.rule.count(":"), rule
        assert not any(part.isdigit() for part in rule.rule.split("/")), rule
        assert not any((rule.defaults, rule.redirect_to, rule.alias)), rule


def test_no_view_is_a_coroutine_function(app: Flask) -> None:
    functions = [*app.view_functions.values()]
    for hooks in (app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs):
        functions += [function for some in hooks.values() for function in some]
    for function in [*functions, *app.teardown_appcontext_funcs]:
        assert Flask.ensure_sync(app, function) is function


def small(make: type[Flask]) -> Flask:
    """An application that records in ``app.extensions["seen"]`` what is called."""
    app = make("small")
    seen: list[Any] = app.extensions.setdefault("seen", [])
    outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)

    def note(what: str) -> Callable[..., Any]:
        def function(*arguments: Any) -> Any:
            shown = [one for one in arguments if not isinstance(one, Response)]
            seen.append((what, *map(repr, shown)))
            return next((one for one in arguments if isinstance(one, Response)), None)

        return function

    for name, some in (("app", app), ("outer", outer), ("inner", inner)):
        some.before_request(note(f"{name} before"))
        some.after_request(note(f"{name} after"))
        some.teardown_request(note(f"{name} teardown"))
        some.url_value_preprocessor(note(f"{name} values"))
    app.teardown_appcontext(note("context"))

    @inner.before_request
    def refuse() -> str | None:
        return request.args.get("refuse")

    @inner.get("/things/<int:thing>")
    def show(thing: int) -> Response:
        seen.append((request.endpoint, request.blueprint, request.blueprints, request.view_args))
        assert not session

        @after_this_request
        def mark(response: Response) -> Response:
            response.headers["X-Mark"] = "1"
            response.call_on_close(lambda: seen.append("closed"))
            return response

        if "fail" in request.args:
            raise RuntimeError(thing)
        with app.test_request_context(f"/things/{thing + 1}", base_url="https://other.example"):
            other = url_for(".show", thing=thing, _external=True)
        with app.app_context():
            seen.append(g.get("kept"))
        g.kept = thing
        return JsonResponse(f"{url_for('.show', thing=1, _external=True)} {other} {request.host}")

    @inner.get("/stream")
    def stream() -> Response:
        return Response(stream_with_context(str(n) + request.path for n in range(3)))

    @app.post("/body")
    def body() -> bytes:
        g.rest = request.stream.read(2)
        return request.get_data() + b"|" + g.rest

    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    return app


HOST = {"HTTP_HOST": "a.example"}

# Requests to `small`, one after the other.
SCENARIOS: list[list[tuple[str, str, bytes, dict[str, str]]]] = [
    [(method, f"/things/{n}", b"", {}) for n in (1, 2) for method in ("GET", "HEAD", "GET")],
    [("GET", f"/things/1?{query}", b"", {}) for query in ("fail", "", "refuse=", "refuse=no")],
    [
        ("GET", "/nothing/1", b"", {}),
        ("PUT", "/things/1", b"", {}),
        ("OPTIONS", "/things/1", b"", {}),
    ],
    [("GET", "/things/1", b"", {"SCRIPT_NAME": prefix}) for prefix in ("", "/a", "/b/")],
    [("GET", "/stream", b"", {}), ("GET", "/stream", b"", {})],
    [("POST", "/body", body, {}) for body in (b"one two", b"x" * 20, b"")],
]


@pytest.mark.parametrize("requests", SCENARIOS)
@pytest.mark.parametrize("listening", [False, True])
def test_hooks_run_as_in_plain_flask(
    requests: list[tuple[str, str, bytes, dict[str, str]]], listening: bool
) -> None:
    found = []
    for make in (Flask, LeanFlask):
        app = small(make)
        app.config["MAX_CONTENT_LENGTH"] = 10
        seen = app.extensions["seen"]

        def heard(_sender: Any, exc: Any, seen: list[Any] = seen) -> None:
            seen.append(("signal", repr(exc)))

        if listening:
            request_tearing_down.connect(heard, app)
        answers = [call(app, *one[:3], **{**HOST, **one[3]}) for one in requests]
        request_tearing_down.disconnect(heard, app)
        found.append((answers, seen))
    assert found[0] == found[1]
    assert ("signal" in str(found[1])) is listening


def test_a_signal_is_sent_where_no_function_is_registered() -> None:
    app, heard = LeanFlask("bare"), []

    def hear(_sender: Any, exc: Any) -> None:
        heard.append(exc)

    with request_tearing_down.connected_to(hear, app):
        call(app, "GET", "/")
    assert heard == [None]


def _stream(response: Response) -> None:
    response.response = (part for part in ("a", "é"))
    del response.headers["Content-Length"]


# What a hook may do with a response.
CHANGES: dict[str, Callable[[Response], Any]] = {
    "nothing": Response.get_data,
    "stream": _stream,
    "cookie": lambda response: response.set_cookie("a", "b"),
    "data": lambda response: response.set_data("other"),
    "type": lambda response: response.headers.set("Content-Type", "text/plain"),
    "status": lambda response: setattr(response, "status_code", 403),
    "condition": lambda response: response.make_conditional(
        create_environ(headers={"If-None-Match": "*"})
    ),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 201, 204, 206, 304, 404])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("is_closed_by_somebody", [False, True])
def test_a_json_response_is_a_response(
    change: str, status: int, method: str, is_closed_by_somebody: bool
) -> None:
    answers, closed = [], []
    for make in (JsonResponse, plain_flask.response):
        response = make('{"a":"\u00e9"}', status, [("ETag", '"3"')])
        CHANGES[change](response)
        if is_closed_by_somebody:
            response.call_on_close(lambda make=make: closed.append(make))
        answers.append(run_wsgi_app(response, create_environ(method=method), buffered=True))
    bodies = [b"".join(answer[0]) for answer in answers]
    assert bodies[0] == bodies[1]
    assert answers[0][1:] == answers[1][1:]
    assert len(closed) == 2 * is_closed_by_somebody


def test_a_test_client_keeps_the_context_of_its_last_request() -> None:
    app = small(LeanFlask)
    with app.test_client() as client:
        for thing in (1, 2):
            client.get(f"/things/{thing}")
            assert (request.view_args, g.kept) == ({"thing": thing}, thing)
            assert ("context", "None") in app.extensions["seen"]
            app.extensions["seen"].clear()


def test_a_url_outside_a_request_needs_a_server_name() -> None:
    app = small(LeanFlask)
    with app.app_context(), pytest.raises(RuntimeError):
        url_for("outer.inner.show", thing=1)
    app.config["SERVER_NAME"] = "named.example"
    with app.app_context():
        assert url_for("outer.inner.show", thing=1) == "http://named.example/things/1"


def test_no_client_can_fill_the_memory() -> None:
    app = small(LeanFlask)
    for n in range(3 * MAX_HOSTS):
        for path in (f"/things/{n}", f"/nothing/{n}", f"/{n}"):
            call(app, "GET", path, HTTP_HOST=f"h{n}.example")
            call(app, "GET", path, HTTP_HOST=f"h {n}")
        assert (
            f"http://h{n}.example/".encode()
            in call(app, "GET", "/things/1", HTTP_HOST=f"h{n}.example")[2]
        )
    assert isinstance(app, LeanFlask)
    assert 0 < len(app._hosts) <= MAX_HOSTS
    assert len(app._routes) == 1


def test_a_session_that_a_view_leaves_open_is_closed(database: str) -> None:
    app = create_app(settings_for(database))

    @app.get("/leave-open")
    @auth.public
    def leave_open() -> str:
        db.session.execute(text("SELECT 1"))
        return str(db.engine.pool.checkedout())  # type: ignore[attr-defined]

    assert call(app, "GET", "/leave-open")[2] == b"1"
    with app.app_context():
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        db.engine.dispose()
