"""The way in: ``python wsgi.py`` serves; ``flask --app wsgi …`` is the command line.

The server patches the standard library before every other import, so that all that is imported
afterwards cooperates. The command line has no loop and stays as it is.
"""

import warnings

# Said at every import of it; docs/adr/ says what its retirement means for us.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")

import eventlet

if __name__ == "__main__":
    eventlet.monkey_patch()

# ruff: noqa: E402 (see above)
import atexit
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg2
from click import ClickException
from flask import Flask
from flask_migrate import upgrade
from psycopg2.errors import InsufficientPrivilege
from psycopg2.extensions import get_wait_callback
from sqlalchemy.exc import DBAPIError

from ordertrack import app as application
from ordertrack import embedded, logs
from ordertrack.config import Settings, SettingsError, load, reached_at, secrets_of
from ordertrack.connector import require_own_sessions, say_what_is_overridden
from ordertrack.db import connector, is_passing
from ordertrack.embedded import EmbeddedError, EmbeddedPostgres
from ordertrack.errors import Unavailable
from ordertrack.eventlet_support import bound_database_waits
from ordertrack.realtime.relay import RelayStuck
from ordertrack.server import descriptors, server
from ordertrack.server.descriptors import TooFewDescriptors
from ordertrack.server.waiting import MAX_PER_ADDRESS
from ordertrack.services import schema
from ordertrack.services.housekeeping import Housekeeper
from ordertrack.services.log_adoption import LogFromElsewhere, require_own_log
from ordertrack.services.schema import SchemaTooNew

DOTENV = Path(__file__).with_name(".env")


def with_database(settings: Settings, stack: ExitStack) -> tuple[Settings, EmbeddedPostgres | None]:
    """The settings with a database behind them: the given one, or the embedded one, started."""
    if settings.db_dsn is not None:
        return settings, None
    postgres = stack.enter_context(embedded.start(settings.data_dir))
    secret = embedded.load_or_create_secret(settings.data_dir)
    return settings.with_embedded(postgres.dsn, secret), postgres


def create_app() -> Flask:
    """For ``flask --app wsgi``: the application. Commands see to the tables themselves."""
    stack = ExitStack()
    atexit.register(stack.close)
    try:
        settings, _ = with_database(load(os.environ, dotenv=DOTENV), stack)
        app = application.create_app(settings)
    except (SettingsError, EmbeddedError) as error:
        raise ClickException(str(error)) from error  # shown without a traceback
    return app


def migrate(app: Flask) -> None:
    """Bring the tables up to date, after a look at what the connections to them are."""
    connect = connector(app.extensions["ordertrack_settings"])
    say_what_is_overridden(connect)
    with app.app_context():
        try:
            require_own_sessions(connect)
            if schema.is_behind():
                upgrade()
        except (DBAPIError, psycopg2.Error) as error:
            original = error.orig if isinstance(error, DBAPIError) else error
            if isinstance(original, InsufficientPrivilege):
                raise SettingsError(
                    "MIGRATE_DSN",
                    "must name the role that owns the tables, which are to be brought up to date: "
                    f"this role may not ({str(original).strip()})",
                ) from error
            if not is_passing(original):
                raise
            because = " ".join(str(original).split())  # one line, also in the log
            raise SettingsError(
                "DB_DSN", f"names a database that cannot be used: {because}"
            ) from error


def announce(settings: Settings, port: int, *, is_embedded: bool) -> None:
    """What somebody who has just started it wants to know."""
    where = (
        f"{settings.data_dir} (embedded PostgreSQL)" if is_embedded else "the database of DB_DSN"
    )
    sys.stdout.write(
        f"OrderTrack serves on {reached_at(settings.host, port)}\n"
        f"  data    {where}\n"
        "  admin   .venv/bin/flask --app wsgi users create"
        " --email you@example.org --name You --role admin\n"
        "  demo    .venv/bin/flask --app wsgi demo\n"
    )
    sys.stdout.flush()


@contextmanager
def port_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            "HOST and PORT",
            f"name {settings.host} and {settings.port}, which cannot be listened on: {error}",
        ) from error


def main() -> None:
    # Without it one slow query would stop every socket of the process.
    assert get_wait_callback() is not None, "psycopg2 does not cooperate with the event loop"
    with ExitStack() as stack:
        settings = load(os.environ, dotenv=DOTENV)
        # First, before anything is started or changed: whoever starts it twice learns just that.
        # Nobody is let in before the rest is ready, so balancers and clients go elsewhere.
        with port_errors(settings):
            bound = server.bind(settings.host, settings.port)
        settings, postgres = with_database(settings, stack)
        logs.set_up(settings.log_level, secrets=secrets_of(settings))
        room = descriptors.room_for(
            settings.max_connections,
            descriptors=descriptors.raise_limit(),
            database=settings.db_pool_size + 2,  # the relay's
        )
        settings = replace(settings, max_connections=room.sockets)
        app = application.create_app(settings)
        connect_timeout = connector(settings).timeout
        # A migration takes as long as it takes, and who starts beside us waits for it.
        bound_database_waits(connect=connect_timeout, answer=None)
        migrate(app)
        # Room for PostgreSQL to say itself that a statement took too long.
        bound_database_waits(
            connect=connect_timeout, answer=settings.statement_timeout_ms / 1000 + 1
        )
        with app.app_context():
            require_own_log()
        relay = app.extensions["ordertrack_relay"]
        if postgres is not None:
            relay.revive = postgres.ensure_running
        relay.start()
        housekeeper = Housekeeper(app.app_context)
        housekeeper.start()
        app.extensions["ordertrack_loop"].start()
        with port_errors(settings):
            server.serve(
                app,
                bound,
                most=room.most,
                max_body_bytes=settings.max_body_bytes,
                # Behind a proxy all connections are the proxy's.
                per_address=None if settings.trusted_proxies else MAX_PER_ADDRESS,
                drain_seconds=settings.drain_seconds,
                ready=lambda port: announce(settings, port, is_embedded=postgres is not None),
                drain=app.extensions["ordertrack_drain"],
            )
        housekeeper.stop()
        relay.stop()


if __name__ == "__main__":
    try:
        main()
    except (
        SettingsError,
        EmbeddedError,
        LogFromElsewhere,
        Unavailable,
        RelayStuck,
        SchemaTooNew,
        TooFewDescriptors,
    ) as error:
        # Before `logs.set_up` Python prints it as it is.
        logging.getLogger("ordertrack").critical("OrderTrack does not start: %s", error)
        sys.exit(1)
