"""Database connections: their session settings, hosts and poolers, lost connections, retries."""

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from flask import Flask
from psycopg2.extensions import make_dsn, parse_dsn
from sqlalchemy import event, exc, text

from ordertrack import db as database_module
from ordertrack.app import create_app
from ordertrack.config import SettingsError
from ordertrack.connector import Connector, require_dedicated_sessions, warn_of_overridden_options
from ordertrack.db import Statement, connector, fetch_all, transaction
from ordertrack.errors import Unavailable
from ordertrack.extensions import db, state
from ordertrack.realtime.relay import Relay
from ordertrack.services.log_adoption import require_own_log
from tests.support.databases import Postgres, settings_for
from tests.support.pooler import Pooler
from tests.support.servers import running_server

SETTINGS = "SELECT lower(name), setting FROM pg_settings WHERE lower(name) = ANY (%s)"

_WHO = Statement("SELECT pg_backend_pid() AS pid")
_WRITE = Statement(
    "INSERT INTO users (name, email, password_hash) VALUES (:n, :n, '-') RETURNING name", n="text"
)


@pytest.fixture
def own(fresh_database: Callable[[], str]) -> Iterator[Flask]:
    """An application with a pool, and a database, of the test's own."""
    made = create_app(settings_for(fresh_database()))
    with made.app_context():
        yield made
        db.engine.dispose()


def relay_of(dsn: str) -> Relay:
    def nothing(*_: object) -> None:
        return None

    return Relay(
        dsn, publish=nothing, revoke=nothing, before_read=nothing, after_read=nothing,
        on_gap=nothing, poll=1.0,
    )  # fmt: skip


def session(connect: Callable[[], Any], *names: str) -> dict[str, str]:
    with contextlib.closing(connect()) as connection, connection.cursor() as cursor:
        cursor.execute(SETTINGS, [list(names)])
        return dict(cursor.fetchall())


# Session settings --------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["the pool's", "the relay's"])
def test_sessions_have_the_settings_that_statements_rely_on_and_compile_nothing(
    fresh_database: Callable[[], str], postgres: Postgres, whose: str
) -> None:
    dsn = fresh_database()
    name = parse_dsn(dsn)["dbname"]
    others = {
        "jit": "on",
        "timezone": "Asia/Tokyo",
        "default_transaction_isolation": "serializable",
        "plan_cache_mode": "auto",
    }
    for setting, value in others.items():
        postgres.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    connect = connector(settings_for(dsn)) if whose == "the pool's" else relay_of(dsn)._connect
    wanted = {
        "jit": "off",
        "timezone": "UTC",
        "default_transaction_isolation": "read committed",
        "plan_cache_mode": "force_generic_plan",
    }
    assert session(connect, *wanted) == wanted


def test_the_pools_waits_are_bounded_by_the_settings(database: str) -> None:
    settings = settings_for(database, STATEMENT_TIMEOUT_MS="3000", LOCK_TIMEOUT_MS="800")
    wanted = {
        "statement_timeout": "3000",
        "lock_timeout": "400",
        "idle_in_transaction_session_timeout": "6000",
    }
    assert session(connector(settings), *wanted) == wanted


def test_the_pools_size_and_timeout_are_those_of_the_settings(database: str) -> None:
    settings = settings_for(database, DB_POOL_SIZE="3", DB_POOL_TIMEOUT="0.2", RELAY_POLL_MS="123")
    made = create_app(settings)
    assert state(made).relay._poll == 0.123
    with made.app_context(), contextlib.ExitStack() as held:
        for _ in range(3):
            held.enter_context(db.engine.connect())
        began = time.monotonic()
        with pytest.raises(Unavailable, match="All database connections are busy"):
            _WHO.one()
        assert time.monotonic() - began >= 0.2
        held.close()
        assert _WHO.one()
        db.engine.dispose()


def test_options_in_a_dsn_are_kept(database: str, caplog: pytest.LogCaptureFixture) -> None:
    dsn = make_dsn(
        database,
        options="-c work_mem=7MB -c JIT=on --lock_timeout=1",
        application_name="shop",
        connect_timeout=3,
        keepalives_idle=77,
    )
    pool = connector(settings_for(dsn))
    with caplog.at_level(logging.WARNING):
        warn_of_overridden_options(pool)
    assert "jit, lock_timeout" in caplog.text
    assert pool.timeout == 3
    for connect, name in ((pool, "shop"), (relay_of(dsn)._connect, "shop relay")):
        assert session(connect, "work_mem", "application_name", "jit") == {
            "work_mem": str(7 * 1024),
            "application_name": name,
            "jit": "off",
        }
        with contextlib.closing(connect()) as connection:
            said = connection.info.dsn_parameters
            assert (said["connect_timeout"], said["keepalives_idle"]) == ("3", "77")


def test_a_dsn_without_target_session_attrs_asks_for_a_primary(database: str) -> None:
    for connect, name in (
        (connector(settings_for(database)), "ordertrack"),
        (relay_of(database)._connect, "ordertrack relay"),
    ):
        with contextlib.closing(connect()) as connection:
            said = connection.info.dsn_parameters
            assert (said["target_session_attrs"], said["connect_timeout"]) == ("read-write", "5")
            assert said["application_name"] == name


def test_a_statement_has_the_same_name_in_every_process_and_another_for_another_text() -> None:
    one, same, other = (Statement(f"SELECT {n} AS n") for n in (1, 1, 2))
    typed = Statement("SELECT 1 AS n", id="bigint")
    assert one._name == same._name
    assert len({one._name, other._name, typed._name}) == 3


def test_a_statement_that_the_session_has_prepared_already_is_used(own: Flask) -> None:
    """As behind a pooler, whose session had another user before."""
    other = Statement("SELECT 5 AS five")
    with db.engine.connect() as connection:
        connection.execute(text(f"PREPARE {other._name} AS SELECT 5 AS five"))
        connection.commit()
    assert other.one().five == 5


# Poolers and hosts -------------------------------------------------------------------------------


def test_a_pooler_that_pools_by_transaction_is_detected(database: str) -> None:
    with Pooler(database, by_transaction=True) as pooler:
        # The pooler passes the session settings on; that is not what is refused.
        connect = Connector(pooler.dsn, session={})
        connect.session = {}
        with pytest.raises(SettingsError, match="DB_DSN leads through a pooler"):
            require_dedicated_sessions(connect)


def test_a_pooler_that_ignores_session_settings_is_detected(database: str) -> None:
    with Pooler(database, by_transaction=False) as pooler:
        with pytest.raises(SettingsError, match="leads to sessions whose"):
            require_dedicated_sessions(connector(settings_for(pooler.dsn)))
        connect = Connector(pooler.dsn, session={})
        connect.session = {}
        require_dedicated_sessions(connect)  # it is the settings, and nothing else


def test_a_server_does_not_start_behind_such_a_pooler(database: str) -> None:
    with (
        Pooler(database, by_transaction=True) as pooler,
        pytest.raises(RuntimeError, match="does not start: DB_DSN leads"),
    ):
        running_server(pooler.dsn).__enter__()


def test_a_host_that_does_not_answer_is_followed_by_the_next_one(database: str) -> None:
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as silent:
        port = parse_dsn(database).get("port", "5432")
        silent.bind(str(Path(folder, f".s.PGSQL.{port}")))
        silent.listen()  # connections are made, and nobody answers
        hosts = f"{folder},{parse_dsn(database)['host']}"
        dsn = make_dsn(database, host=hosts, port=f"{port},{port}", connect_timeout=1)
        with running_server(dsn) as server:
            # From then on the host that answered is tried first.
            for _ in range(3):
                body = {"email": "nobody@example.org", "password": "wrong password"}
                assert server.api.post("/api/login", json=body).status_code == 401


# Lost connections --------------------------------------------------------------------------------


@pytest.fixture
def end_the_pool(own: Flask, postgres: Postgres) -> Callable[[], None]:
    """The server closes the pool's connections, as when PostgreSQL restarts."""

    def end() -> None:
        name = db.engine.url.database
        postgres.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", name
        )

    return end


def test_a_connection_that_died_in_the_pool_is_replaced_before_anything_is_sent(
    own: Flask, end_the_pool: Callable[[], None]
) -> None:
    before = _WHO.one().pid
    end_the_pool()
    assert _WRITE.one(n="written").name == "written"
    end_the_pool()
    with transaction() as t:
        t.execute(text("INSERT INTO users (name, email, password_hash) VALUES ('-', 'again', '-')"))
    end_the_pool()
    assert len(fetch_all(text("SELECT * FROM users"), {})) == 2
    assert _WHO.one().pid != before


def test_a_read_that_loses_its_connection_is_retried_and_a_write_is_not(
    own: Flask, end_the_pool: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # After the pool has checked the connection, before the statement is sent.
    monkeypatch.setattr(database_module, "has_input", lambda _: False)
    before = _WHO.one().pid
    end_the_pool()
    assert _WHO.one().pid != before
    end_the_pool()
    assert len(fetch_all(text("SELECT * FROM alembic_version"), {})) == 1
    end_the_pool()
    with pytest.raises(Unavailable):
        _WRITE.one(n="in doubt")
    _WHO.one()
    end_the_pool()
    with pytest.raises(Unavailable), transaction() as t:
        t.execute(text("INSERT INTO users (name, email, password_hash) VALUES ('-', 'doubt', '-')"))


# Transient errors --------------------------------------------------------------------------------

NOT_NOW = (
    "08006", "08P01", "25006", "25P03", "25P04", "40001", "40P01", "53000", "53100", "53200",
    "53300", "55P03", "57014", "57P01", "57P02", "57P03", "57P05",
)  # fmt: skip
DEFECTS = ("22P02", "23505", "25001", "25P02", "40002", "42501", "42601", "55000", "XX000")


@pytest.mark.parametrize("state", [*NOT_NOW, *DEFECTS])
def test_transient_errors_are_unavailable_and_others_are_defects(app: Flask, state: str) -> None:
    failing = f"DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{state}'; END $$"
    expected: Any = Unavailable if state in NOT_NOW else exc.DBAPIError
    with app.app_context(), pytest.raises(expected), transaction() as t:
        t.execute(text(failing))


def test_a_read_only_session_is_a_transient_error(app: Flask) -> None:
    """As on a primary that has become a standby."""

    def write() -> None:
        with transaction() as t:
            t.execute(text("SET TRANSACTION READ ONLY"))
            t.execute(text("INSERT INTO alembic_version VALUES ('x')"))

    with app.app_context(), pytest.raises(Unavailable):
        write()


# The check before serving ------------------------------------------------------------------------


def test_the_check_of_the_log_before_serving_does_not_grow_with_it(
    own: Flask, postgres: Postgres
) -> None:
    """On tables that were never analysed, as after a restore."""
    dsn = postgres.as_superuser(state(own).settings.db_dsn)
    (user,) = postgres.execute(
        "INSERT INTO users (name, email, password_hash) VALUES ('A', 'a', '-') RETURNING id",
        dsn=dsn,
    )[0]
    for table in ("order_events", "access_changes"):
        postgres.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)", dsn=dsn)
    pages = []
    for _ in range(2):
        for _ in range(10):
            postgres.execute(
                "INSERT INTO access_changes (user_id, reason)"
                " SELECT %s, 'role_changed' FROM generate_series(1, 2000)",
                user,
                dsn=dsn,
            )
        with counted_pages() as counted:
            require_own_log()
        pages.append(sum(counted))
    assert 0 < pages[1] <= pages[0] + 4, pages
    assert pages[1] < 40, pages


@contextlib.contextmanager
def counted_pages() -> Iterator[list[int]]:
    """The pages that PostgreSQL looks at for each SELECT of this block."""
    pages: list[int] = []

    def explain(_: Any, cursor: Any, statement: str, values: Any, *__: Any) -> None:
        if statement.strip().startswith("SELECT"):
            with cursor.connection.cursor() as beside:
                beside.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", values)
                plan = beside.fetchone()[0][0]["Plan"]
            pages.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    event.listen(db.engine, "before_cursor_execute", explain)
    try:
        yield pages
    finally:
        event.remove(db.engine, "before_cursor_execute", explain)
