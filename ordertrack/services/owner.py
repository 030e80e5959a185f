"""The role that owns the tables: it migrates, and may do what a server in service may not.

With MIGRATE_DSN it is another role than DB_DSN's, used only by migrations and a few commands.
Without it, both are the same role.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Engine, NullPool
from sqlalchemy.orm import Session

from ordertrack.config import Settings
from ordertrack.connector import Connector
from ordertrack.db import unavailable_when_down
from ordertrack.extensions import db

_BIND: Final = "owner"


def binds(settings: Settings) -> dict[str, Any]:
    """Flask-SQLAlchemy's ``SQLALCHEMY_BINDS``: the owner's engine, if it is another role."""
    if settings.migrate_dsn is None:
        return {}
    options = {
        # Seldom used, so no connection is kept.
        "poolclass": NullPool,
        "hide_parameters": True,
        "creator": Connector(settings.migrate_dsn, session={}, suffix=" owner"),
    }
    return {_BIND: {"url": settings.owner_url, **options}}


def is_separate() -> bool:
    """Whether the tables belong to another role than the one that serves."""
    return _BIND in db.engines


def engine() -> Engine:
    """Connections as the owner. Needs an application context."""
    return db.engines.get(_BIND, db.engine)


@contextmanager
def transaction() -> Iterator[Session]:
    """One transaction as the owner: committed when the block ends, rolled back when it raises."""
    with unavailable_when_down(), Session(engine()) as session, session.begin():
        yield session
