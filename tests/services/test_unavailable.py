"""Which of PostgreSQL's errors are transient, and become 503; others are defects."""

import pytest
from flask import Flask
from sqlalchemy import exc, text

from ordertrack.db import Statement, transaction, unavailable_when_down
from ordertrack.errors import Unavailable
from ordertrack.extensions import db

# https://www.postgresql.org/docs/current/errcodes-appendix.html
PASSING = {
    "40001": "serialization_failure",
    "40P01": "deadlock_detected",
    "53100": "disk_full",
    "53300": "too_many_connections",
    "55P03": "lock_not_available",
    "57014": "query_canceled",
    "57P01": "admin_shutdown",
    "57P02": "crash_shutdown",
    "57P03": "cannot_connect_now",
}
DEFECTS = {
    "22012": "division_by_zero",
    "42601": "syntax_error",
    "23505": "unique_violation",
    "XX000": "internal_error",
}


def raising(state: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'made up' USING ERRCODE = '{state}'; END $$"


@pytest.mark.parametrize("state", PASSING, ids=PASSING.get)
def test_a_transient_error_is_unavailable(app: Flask, state: str) -> None:
    with app.app_context():
        with pytest.raises(Unavailable), transaction() as t:
            t.execute(text(raising(state)))
        with transaction() as t:  # the connection is good for the next one
            assert t.execute(text("SELECT 1")).scalar_one() == 1
        with pytest.raises(Unavailable):
            raise_on_a_bare_connection(state)


@pytest.mark.parametrize("state", DEFECTS, ids=DEFECTS.get)
def test_every_other_error_is_raised_unchanged(app: Flask, state: str) -> None:
    with app.app_context(), pytest.raises(exc.DBAPIError) as raised, transaction() as t:
        t.execute(text(raising(state)))
    assert getattr(raised.value.orig, "pgcode", None) == state


def raise_on_a_bare_connection(state: str) -> None:
    """`Statement` gets psycopg2's own exceptions, which SQLAlchemy has not wrapped."""
    with unavailable_when_down(), db.engine.pool.bare_connection() as (connection, _):  # type: ignore[attr-defined]
        connection.cursor().execute(raising(state))


def test_a_prepared_statement_raises_unavailable_too(app: Flask) -> None:
    slow = Statement("SELECT pg_sleep(:seconds)", seconds="double precision")
    with app.app_context():
        with transaction() as t:
            t.execute(text("SET SESSION statement_timeout = 50"))
        try:
            with pytest.raises(Unavailable):
                slow.all(seconds=5.0)
        finally:
            db.engine.dispose()  # with the connection goes its timeout
