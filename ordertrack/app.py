"""The application factory: what the server is made of, step by step."""

from pathlib import Path

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from ordertrack import auth, cli, metrics
from ordertrack.config import Settings
from ordertrack.db import engine_options
from ordertrack.extensions import db, jwt, migrate
from ordertrack.realtime import setup
from ordertrack.services import owner
from ordertrack.web import api, assets, error_handlers, pages
from ordertrack.web.http import IdConverter
from ordertrack.web.middleware import request_log, security_headers

ROOT = Path(__file__).resolve().parent.parent


def create_app(settings: Settings) -> Flask:
    """A server on the database of *settings* (``db_dsn`` and ``jwt_secret`` are set by now)."""
    app = Flask(
        "ordertrack",
        root_path=str(ROOT),
        template_folder="templates",
        static_folder=None,  # blueprints.assets serves it
    )
    app.extensions["ordertrack_settings"] = settings
    app.url_map.converters["id"] = IdConverter
    app.config.update(
        SQLALCHEMY_DATABASE_URI=settings.database_url,
        SQLALCHEMY_ENGINE_OPTIONS=engine_options(settings),
        SQLALCHEMY_BINDS=owner.binds(settings),
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        **auth.jwt_options(settings),
    )
    db.init_app(app)
    migrate.init_app(app, db, directory=str(ROOT / "migrations"))
    jwt.init_app(app)
    error_handlers.init_app(app)
    auth.init_app(app)
    api.init_app(app)
    assets.init_app(app, ROOT / "static")
    pages.init_app(app)
    sockets = setup.init_app(app, settings)
    security_headers.init_app(app, settings)
    cli.init_app(app)
    if settings.trusted_proxies:
        n = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=n, x_proto=n, x_host=n)  # type: ignore[method-assign]
    request_log.init_app(app)
    metrics.init_app(app, sockets)
    return app
