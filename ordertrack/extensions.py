"""The objects that one application's parts share: Flask's extensions, and our own `State`.

They stand alone, below everything that uses them, so that no function needs an import inside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from flask import Flask, current_app
from flask_jwt_extended import JWTManager
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from prometheus_client import CollectorRegistry
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase

from ordertrack.config import Settings


class Base(DeclarativeBase):
    """All tables. Constraints have predictable names, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Database(SQLAlchemy):
    """Flask-SQLAlchemy, which looks for a session to close only where one is open."""

    def _teardown_session(self, exc: BaseException | None) -> None:
        # Most requests open none: a hot use case is a statement of its own (`db.Statement`).
        if self.session.registry.registry:
            super()._teardown_session(exc)


db = Database(model_class=Base)
migrate = Migrate()
jwt = JWTManager()


class Relay(Protocol):
    """What others need of `ordertrack.realtime.relay.Relay`, which stands above them."""

    restart_database: Callable[[], object]

    @property
    def is_following(self) -> bool: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


@dataclass(slots=True)
class State:
    """What belongs to one application. `ordertrack.app.create_app` makes it, `state` finds it."""

    settings: Settings
    verify_token: Callable[[str], Any]  # an access token's `auth.Credential`, cached
    relay: Relay
    drain: Callable[[float], None]  # closes all sockets, spread over the given seconds
    watch_loop: Callable[[], None]  # begins to measure the event loop's lag
    metrics: CollectorRegistry  # of /metrics


def state(app: Flask | None = None) -> State:
    """The `State` of *app*; of the current application where none is given."""
    found: State = (app or current_app).extensions["ordertrack"]
    return found
