"""Opens connections to PostgreSQL, with the session settings that our statements rely on.

Both the pool and the relay use it. A DSN may name several hosts (a primary and its standbys); each
is tried in turn here, because libpq, when it is driven by an event loop, goes on to the next host
only after a refusal, not after a timeout.
"""

import logging
import re
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import psycopg2
from psycopg2.extensions import parse_dsn

from ordertrack.config import SettingsError

log = logging.getLogger(__name__)

# The settings of every session, whatever the defaults of the server, the role or DB_DSN.
SESSION = {
    "timezone": "UTC",
    # Conditional updates, and reads of the log whose statement is one snapshot, depend on it.
    "default_transaction_isolation": "read committed",
    # The plans of prepared statements do not depend on the values, so they are made once.
    "plan_cache_mode": "force_generic_plan",
    # A generic plan is costed without the values: `xid >= $1` as a third of the log. From about a
    # million events on, PostgreSQL would compile each read that finds nothing, for 100 ms at 10^8.
    "jit": "off",
}

# Seconds that libpq waits for one host, unless DB_DSN says another number.
CONNECT_TIMEOUT = 5

_LISTS = ("host", "hostaddr", "port")


class Connector:
    """Opens connections to the database of *dsn*: ``connector()`` returns a psycopg2 connection.

    name        application_name where *dsn* gives none; *suffix* is appended to either
    session     settings of the session. They override those in the DSN's own ``options``
    defaults    libpq parameters where *dsn* gives none
    """

    def __init__(
        self,
        dsn: str,
        *,
        session: Mapping[str, str],
        name: str = "ordertrack",
        suffix: str = "",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.session = {**SESSION, **session}
        given: dict[str, Any] = {
            "application_name": name,
            "connect_timeout": CONNECT_TIMEOUT,
            # Not a standby: it takes no writes, and its snapshots do not list running transactions.
            "target_session_attrs": "read-write",
            **(defaults or {}),
            **parse_dsn(dsn),
        }
        given["application_name"] += suffix
        own_options = given.get("options", "")
        self.overridden = sorted(
            set(re.findall(r"(?:-c\s*|--)([\w.]+)=", own_options.lower())) & self.session.keys()
        )
        given["options"] = " ".join(
            [own_options, *(f"-c {key}={_escaped(value)}" for key, value in self.session.items())]
        ).strip()
        self.timeout = _seconds(given["connect_timeout"])  # for each host
        self._hosts = _one_by_one(given)
        self._first = 0  # the host that accepted the last connection

    def __call__(self) -> Any:
        """Raises `psycopg2.OperationalError` when no host accepts the connection."""
        failures = []
        for n in range(len(self._hosts)):
            number = (self._first + n) % len(self._hosts)
            try:
                connection = psycopg2.connect(**self._hosts[number])
            except psycopg2.OperationalError as error:
                failures.append(error)
            else:
                self._first = number
                return connection
        if len(failures) == 1:
            raise failures[0]
        raise psycopg2.OperationalError("; ".join(str(error).strip() for error in failures))


def _seconds(value: Any) -> float:
    """As libpq reads it, but 0 and less, which mean no limit there, give the default."""
    try:
        return int(value) if int(value) > 0 else CONNECT_TIMEOUT
    except ValueError:  # libpq reports it
        return CONNECT_TIMEOUT


def _escaped(value: str) -> str:
    return re.sub(r"([\\ ])", r"\\\1", value)


def _one_by_one(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parameters for each host in *given*. Lists that do not match are left to libpq."""
    lists = {key: str(given[key]).split(",") for key in _LISTS if key in given}
    number = max((len(values) for values in lists.values()), default=1)
    if any(len(values) not in (1, number) for values in lists.values()):
        return [dict(given)]
    return [
        {**given, **{key: values[n % len(values)] for key, values in lists.items()}}
        for n in range(number)
    ]


def require_dedicated_sessions(connect: Connector) -> None:
    """Raises `SettingsError` unless each connection has a session of its own with our settings.

    A pooler may ignore the settings that a connection asks for, or give each transaction to another
    session, which lacks our prepared statements and LISTEN. Raises `psycopg2.OperationalError` when
    the database cannot be reached.
    """
    with closing(connect()) as first, closing(connect()) as second:
        first.autocommit = True
        if _ask(first, "SELECT pg_is_in_recovery()"):
            raise SettingsError(
                "DB_DSN", "leads to a standby, which takes no changes: name the primary, too"
            )
        _require_settings(first, connect.session)
        before = _ask(first, "SELECT pg_backend_pid()")
        # In a transaction that stays open: a pooler that pools by transaction gives it the first
        # connection's session now, or has to give the first connection another one.
        shared = _ask(second, "SELECT pg_backend_pid()") == before
        if shared or _ask(first, "SELECT pg_backend_pid()") != before:
            raise SettingsError(
                "DB_DSN",
                "leads through a pooler that gives each transaction to another session. OrderTrack "
                "prepares statements and listens, so let it pool by session (PgBouncer: "
                "pool_mode=session), or connect to PostgreSQL directly",
            )


def _require_settings(connection: Any, wanted: Mapping[str, str]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT lower(name), setting FROM pg_settings WHERE lower(name) = ANY (%s)",
            [list(wanted)],
        )
        found = dict(cursor.fetchall())
    for name, value in wanted.items():
        if found.get(name) != value:
            raise SettingsError(
                "DB_DSN",
                f"leads to sessions whose {name} is {found.get(name)!r}, although {value!r} was "
                "asked for when connecting. Does a pooler ignore the parameter `options`? Let it "
                "pass that on (PgBouncer: pool_mode=session, and not in ignore_startup_parameters)",
            )


def _ask(connection: Any, question: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchone()[0]


def warn_of_overridden_options(connect: Connector) -> None:
    """Log a warning about options of DB_DSN that have no effect."""
    if connect.overridden:
        log.warning(
            "DB_DSN's options set %s, which OrderTrack sets itself: they have no effect",
            ", ".join(connect.overridden),
        )
