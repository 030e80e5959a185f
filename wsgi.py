"""Starts the server (``python wsgi.py``), and makes the application of ``flask --app wsgi …``.

The server patches the standard library before all other imports, so that everything imported
afterwards waits through eventlet's loop. The command line has no loop, and patches nothing.
"""

import warnings

# Eventlet warns at every import; docs/adr/005 says what its retirement means for us.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")

import eventlet

from ordertrack import eventlet_hub

if __name__ == "__main__":
    eventlet_hub.install()
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
from typing import Any

from click import ClickException
from flask import Flask
from flask_migrate import upgrade
from psycopg2.extensions import get_wait_callback

from ordertrack import app as application
from ordertrack import embedded, interpreter, logs
from ordertrack.config import Settings, SettingsError, load, reached_at, secrets_of
from ordertrack.connector import require_dedicated_sessions, warn_of_overridden_options
from ordertrack.db import connector
from ordertrack.embedded import EmbeddedError, EmbeddedPostgres
from ordertrack.errors import Unavailable
from ordertrack.eventlet_support import bound_database_waits
from ordertrack.extensions import state
from ordertrack.realtime.relay import RelayStuck
from ordertrack.server import descriptors, server
from ordertrack.server.descriptors import Capacity, TooFewDescriptors
from ordertrack.server.waiting_connections import MAX_PER_ADDRESS
from ordertrack.services import schema
from ordertrack.services.housekeeping import Housekeeper
from ordertrack.services.log_adoption import ForeignLog, require_own_log
from ordertrack.services.schema import SchemaTooNew

log = logging.getLogger("ordertrack")

DOTENV = Path(__file__).with_name(".env")


def with_database(settings: Settings, stack: ExitStack) -> tuple[Settings, EmbeddedPostgres | None]:
    """The settings with a DSN in them: the given one, or that of the embedded PostgreSQL, started.

    *stack* ends its use.
    """
    if settings.db_dsn is not None:
        return settings, None
    postgres = stack.enter_context(embedded.start(settings.data_dir))
    secret = embedded.load_or_create_secret(settings.data_dir)
    return settings.with_embedded(postgres.dsn, secret), postgres


def create_app() -> Flask:
    """Make the application for ``flask --app wsgi``. Each command migrates the tables itself."""
    stack = ExitStack()
    atexit.register(stack.close)
    try:
        settings, _ = with_database(load(os.environ, dotenv=DOTENV), stack)
        return application.create_app(settings)
    except (SettingsError, EmbeddedError) as error:
        raise ClickException(str(error)) from error  # shown without a traceback


@contextmanager
def port_errors(settings: Settings) -> Iterator[None]:
    """Raise `SettingsError` for an `OSError`: HOST and PORT cannot be listened on."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            "HOST and PORT",
            f"name {settings.host} and {settings.port}, which cannot be listened on: {error}",
        ) from error


def fit_descriptors(settings: Settings) -> tuple[Settings, Capacity]:
    """Share the file descriptors out; *settings* with as many WebSockets as they allow."""
    capacity = descriptors.capacity_for(
        settings.max_connections,
        descriptors=descriptors.raise_limit(),
        database=settings.db_pool_size + 2,  # the relay's
    )
    return replace(settings, max_connections=capacity.websockets), capacity


def advise_on_python() -> None:
    """Log a warning if this Python could be a faster one."""
    if interpreter.is_unoptimised():
        log.warning(interpreter.ADVICE)


def prepare_database(app: Flask) -> None:
    """Bring the tables up to date, and bound the waits for the database from then on.

    Raises `SettingsError`, `SchemaTooNew`, `ForeignLog`, `Unavailable`.
    """
    settings = state(app).settings
    connect = connector(settings)
    # A migration may take any time, and a server that starts meanwhile waits for its end.
    bound_database_waits(connect=connect.timeout, answer=None)
    warn_of_overridden_options(connect)
    with app.app_context():
        with schema.explain_errors():
            require_dedicated_sessions(connect)
            if schema.is_behind():
                upgrade()
        # A second more than PostgreSQL needs to say that a statement took too long.
        bound_database_waits(
            connect=connect.timeout, answer=settings.statement_timeout_ms / 1000 + 1
        )
        require_own_log()


def announce(settings: Settings, port: int, *, is_embedded: bool) -> None:
    """Print where the server is and what to do next: the last output of a start."""
    where = (
        f"{settings.data_dir} (embedded PostgreSQL)" if is_embedded else "the database of DB_DSN"
    )
    print(
        f"OrderTrack serves on {reached_at(settings.host, port)}",
        f"  data    {where}",
        "  admin   .venv/bin/flask --app wsgi users create"
        " --email you@example.org --name You --role admin",
        "  demo    .venv/bin/flask --app wsgi demo",
        sep="\n",
        flush=True,
    )


def serve(
    app: Flask, bound: list[Any], capacity: Capacity, postgres: EmbeddedPostgres | None
) -> None:
    """Serve until SIGTERM or SIGINT, with the relay and housekeeping beside the requests."""
    settings, relay = state(app).settings, state(app).relay
    housekeeper = Housekeeper(app.app_context)
    if postgres is not None:
        relay.restart_database = postgres.ensure_running
    relay.start()
    housekeeper.start()
    state(app).watch_loop()
    with port_errors(settings):
        server.serve(
            app,
            bound,
            capacity=capacity.connections,
            max_body_bytes=settings.max_body_bytes,
            # Behind a proxy all connections come from the proxy's address.
            per_address=None if settings.trusted_proxies else MAX_PER_ADDRESS,
            drain_seconds=settings.drain_seconds,
            ready=lambda port: announce(settings, port, is_embedded=postgres is not None),
            drain=state(app).drain,
        )
    housekeeper.stop()
    relay.stop()


def main() -> None:
    """Start the server, step by step. Raises one of `REASONS` if it cannot."""
    # Otherwise a slow query would block every socket of the process.
    assert get_wait_callback() is not None, "psycopg2 does not cooperate with the event loop"
    with ExitStack() as stack:
        settings = load(os.environ, dotenv=DOTENV)
        # First, so that a second server ends here, before anything is started or changed. No
        # connection is accepted yet: load balancers and clients use another server meanwhile.
        with port_errors(settings):
            bound = server.bind(settings.host, settings.port)
        settings, postgres = with_database(settings, stack)
        logs.set_up(settings.log_level, secrets=secrets_of(settings))
        advise_on_python()
        settings, capacity = fit_descriptors(settings)
        app = application.create_app(settings)
        prepare_database(app)
        serve(app, bound, capacity, postgres)


# Why a server does not start: told in words, without a traceback.
REASONS = (
    SettingsError,
    EmbeddedError,
    ForeignLog,
    Unavailable,
    RelayStuck,
    SchemaTooNew,
    TooFewDescriptors,
)

if __name__ == "__main__":
    try:
        main()
    except REASONS as error:
        # Before `logs.set_up` Python prints the message alone.
        log.critical("OrderTrack does not start: %s", error)
        sys.exit(1)
