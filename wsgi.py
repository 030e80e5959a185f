"""The way in: ``python wsgi.py`` serves; ``flask --app wsgi …`` is the command line.

Patching comes before every other import, so that all that is imported afterwards cooperates.
"""

import eventlet

eventlet.monkey_patch()

# ruff: noqa: E402 (see above)
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from flask import Flask
from flask_migrate import upgrade
from psycopg2.extensions import get_wait_callback

from ordertrack import app as application
from ordertrack import embedded, serving
from ordertrack.config import Settings, SettingsError, load
from ordertrack.embedded import EmbeddedError

# Without it one slow query would stop every socket of the process.
assert get_wait_callback() is not None, "psycopg2 does not cooperate with the event loop"


def prepare(stack: ExitStack) -> Settings:
    """The settings, with a database behind them: the given one, or the embedded one, started."""
    settings = load(os.environ, dotenv=Path(__file__).with_name(".env"))
    if settings.db_dsn is None:
        postgres = stack.enter_context(embedded.start(settings.data_dir))
        secret = embedded.load_or_create_secret(settings.data_dir)
        settings = settings.with_embedded(postgres.dsn, secret)
        print(f"Data is kept in {postgres.data_dir} (embedded PostgreSQL).", flush=True)
    return settings


def create_app() -> Flask:
    """For ``flask --app wsgi``: the application on a migrated database."""
    stack = ExitStack()
    app = application.create_app(prepare(stack))
    migrate(app)
    return app


def migrate(app: Flask) -> None:
    with app.app_context():
        upgrade()


def main() -> None:
    with ExitStack() as stack:
        settings = prepare(stack)
        app = application.create_app(settings)
        migrate(app)
        serving.serve(app, settings)


if __name__ == "__main__":
    try:
        main()
    except (SettingsError, EmbeddedError) as error:
        sys.exit(f"OrderTrack does not start: {error}")
