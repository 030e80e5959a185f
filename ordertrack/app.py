"""The application factory: the parts of the server, step by step."""

from pathlib import Path
from wsgiref.types import WSGIApplication

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from ordertrack import auth, cli, metrics
from ordertrack.config import Settings
from ordertrack.db import engine_options
from ordertrack.extensions import State, db, jwt, migrate
from ordertrack.realtime import setup
from ordertrack.services import owner
from ordertrack.web import api, assets, error_handlers, pages
from ordertrack.web.lean_flask import LeanFlask
from ordertrack.web.middleware.request_log import RequestLog, note_route
from ordertrack.web.middleware.security_headers import SecurityHeaders
from ordertrack.web.parsing import IdConverter

ROOT = Path(__file__).resolve().parent.parent


def create_app(settings: Settings) -> Flask:
    """Make the application on the database of *settings*, which has a DSN and a secret by now."""
    app = LeanFlask(
        "ordertrack",
        root_path=str(ROOT),
        template_folder="templates",
        static_folder=None,  # web.assets serves it
    )
    app.config.update(
        SQLALCHEMY_DATABASE_URI=settings.database_url,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(settings),
        SQLALCHEMY_BINDS=owner.binds(settings),
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        **auth.jwt_options(settings),
    )
    app.url_map.converters["id"] = IdConverter
    app.url_value_preprocessor(note_route)
    db.init_app(app)
    migrate.init_app(app, db, directory=str(ROOT / "migrations"))
    jwt.init_app(app)
    error_handlers.init_app(app)
    auth.init_app(app)
    api.init_app(app)
    assets.init_app(app, ROOT / "static")
    pages.init_app(app)
    cli.init_app(app)
    realtime = setup.init_app(app, settings)
    socketio_and_flask = app.wsgi_app  # Flask-SocketIO has put its middleware there itself

    # What a request passes through, from the outside in.
    request_log = RequestLog(
        _behind_proxies(
            settings.trusted_proxies,
            SecurityHeaders(
                realtime.order_sockets(socketio_and_flask), strict_transport=settings.cookie_secure
            ),
        )
    )
    app.wsgi_app = request_log  # type: ignore[method-assign]

    loop_watch = metrics.LoopWatch()
    app.extensions["ordertrack"] = State(
        settings=settings,
        verify_token=auth.verifier(),
        relay=realtime.relay,
        drain=realtime.socketio.drain,
        watch_loop=loop_watch.start,
        metrics=metrics.registry(app, realtime, request_log, loop_watch),
    )
    return app


def _behind_proxies(n: int, inner: WSGIApplication) -> WSGIApplication:
    """*inner*, told the scheme, host and client address that *n* trusted proxies forward."""
    return ProxyFix(inner, x_for=n, x_proto=n, x_host=n) if n else inner
