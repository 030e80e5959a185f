"""Reads the settings from the environment and `.env`, and checks them before anything listens.

`load` returns valid settings or raises `SettingsError`, which names the variable and says what to
change. A setting is one field below and one line in `.env.example`; its variable is the field's
name in capitals. An empty variable counts as not set.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

import psycopg2
from dotenv import dotenv_values
from psycopg2.extensions import parse_dsn
from sqlalchemy import URL

from ordertrack.policy import DriverScope

# The value in `.env.example`, which is public and therefore refused.
EXAMPLE_JWT_SECRET = "replace-me-with-at-least-32-random-bytes"  # noqa: S105 (refused)

# RFC 7518 wants an HMAC key at least as long as the hash (HS256: 256 bits).
MIN_SECRET_BYTES = 32
_MAKE_ONE = "Make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(48))'"

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


class SettingsError(Exception):
    """A setting is missing or unusable. Its text names the setting and says what to change."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting} {message}")
        self.setting = setting


# How a field parses its variable. A parser raises ValueError with the rest of a sentence that
# begins with the setting's name, and never repeats a value that may be secret.


def _field(parse: Callable[[str], object], **options: Any) -> Any:
    return field(metadata={"parse": parse}, **options)


def _text(check: Callable[[str], object], default: str | None, *, secret: bool = False) -> Any:
    def parse(raw: str) -> str:
        check(raw)
        return raw

    return _field(parse, default=default, repr=not secret)


def _integer(default: int, *, low: int, high: int) -> int:
    def parse(raw: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", raw) or not low <= int(raw) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(raw)

    return cast(int, _field(parse, default=default))


def _seconds(default: float, *, low: float, high: float) -> float:
    def parse(raw: str) -> float:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", raw) or not low <= float(raw) <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:g}")
        return float(raw)

    return cast(float, _field(parse, default=default))


def _choice(default: str, choices: Iterable[str], fold: Callable[[str], str]) -> Any:
    by_name = {str(choice): choice for choice in choices}

    def parse(raw: str) -> str:
        if fold(raw) not in by_name:
            raise ValueError(f"must be one of {', '.join(by_name)}")
        return by_name[fold(raw)]

    return _field(parse, default=default)


def _flag(raw: str) -> bool:
    if raw.lower() not in _TRUE | _FALSE:
        raise ValueError("must be true or false")
    return raw.lower() in _TRUE


def _dsn(raw: str) -> None:
    try:
        parse_dsn(raw)
    except psycopg2.Error as error:
        # libpq's message may contain a part of a badly quoted password; an option's name is safe.
        option = re.search(
            r'invalid (?:URI query parameter|connection option):? "(\w+)"', str(error)
        )
        because = f": libpq has no option {option[1]!r}" if option else ""
        raise ValueError(
            "cannot be read. Use `host=… user=… password=… dbname=…`, with values that hold spaces "
            f"in single quotes, or postgresql://user:password@host:5432/dbname{because}"
        ) from None


def _secret(raw: str) -> None:
    if raw == EXAMPLE_JWT_SECRET:
        raise ValueError(f"is the example value, which is public. {_MAKE_ONE}")
    if len(os.fsencode(raw)) < MIN_SECRET_BYTES:
        raise ValueError(f"must have at least {MIN_SECRET_BYTES} bytes. {_MAKE_ONE}")


def _host(raw: str) -> None:
    try:
        ipaddress.ip_address(raw)
    except ValueError:
        if not re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", raw):
            raise ValueError(
                "must be one address or host name to listen on, without port or brackets, "
                "as in 127.0.0.1, 0.0.0.0 (every IPv4 address) or :: (every address)"
            ) from None


def _origins(raw: str) -> tuple[str, ...]:
    return tuple(_origin(part.strip()) for part in raw.split(",") if part.strip())


def _origin(raw: str) -> str:
    """The origin as a browser sends it: lower case, without the scheme's default port."""
    if "*" in raw:
        raise ValueError("must not contain *: name each origin, as in https://shop.example.com")
    wrong = f"holds {raw!r}, which is not an origin; write https://shop.example.com, without a path"
    try:
        url = urlsplit(raw)
        port = url.port
    except ValueError:
        raise ValueError(wrong) from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(wrong)
    if url.path not in ("", "/") or url.query or url.fragment or "@" in url.netloc:
        raise ValueError(wrong)
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    default_port = 443 if url.scheme == "https" else 80
    suffix = "" if port in (None, default_port) else f":{port}"
    return f"{url.scheme}://{host}{suffix}"


def default_data_dir() -> Path:
    """`.data` in the checkout; for root `/var/lib/ordertrack`.

    PostgreSQL refuses to run as root, so root's cluster belongs to another user, who must be able
    to reach it. A checkout is often in a folder that is closed to other users, such as `/root`.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/ordertrack")
    return Path(__file__).resolve().parent.parent / ".data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. Immutable; made by `load`."""

    # Database and secret --------------------------------------------------------------------------

    # libpq `key=value` form or a postgresql:// URL, PostgreSQL 14 or later. None: the embedded one.
    db_dsn: str | None = _text(_dsn, None, secret=True)

    # The same database with the role that owns the tables and runs migrations. None: DB_DSN's role
    # does both.
    migrate_dsn: str | None = _text(_dsn, None, secret=True)

    # Signs the tokens, for any user, so it has no default: with DB_DSN it must be given, with the
    # embedded database one is generated and stored beside it.
    jwt_secret: str | None = _text(_secret, None, secret=True)

    # The folder of the embedded database and its secret.
    data_dir: Path = _field(
        lambda raw: Path(raw).expanduser().absolute(), default_factory=default_data_dir
    )

    # Database connections of one process. This bounds the transactions in flight; more of them than
    # the database has cores for only wait there.
    db_pool_size: int = _integer(10, low=1, high=500)

    # Seconds that a request may wait for a free connection before it gets 503.
    db_pool_timeout: float = _seconds(2, low=0.05, high=60)

    # PostgreSQL cancels a statement, or its wait for a row lock, after this; the caller gets 503.
    statement_timeout_ms: int = _integer(5000, low=100, high=600_000)
    lock_timeout_ms: int = _integer(2000, low=50, high=600_000)

    # Listening ------------------------------------------------------------------------------------

    # Loopback by default: a server that is being tried out is not open to the whole network.
    host: str = _text(_host, "127.0.0.1")

    # 0: any free port.
    port: int = _integer(8080, low=0, high=65_535)

    # Web origins besides the server's own that may open sockets and send cookies. Never `*`.
    allowed_origins: tuple[str, ...] = _field(_origins, default=())

    # The number of reverse proxies in front, each of which appends to X-Forwarded-For. 0: that
    # header is ignored, because any client could have sent it.
    trusted_proxies: int = _integer(0, low=0, high=10)

    # Whether cookies are sent over TLS only. Not set: `_cookie_secure` decides.
    cookie_secure: bool = _field(_flag, default=True)

    # The largest request body, and the largest message from a socket, in bytes.
    max_body_bytes: int = _integer(65_536, low=1024, high=10_485_760)

    # Accounts and rights --------------------------------------------------------------------------

    # The orders that a driver sees and moves: all of them, or those assigned to the driver.
    driver_scope: DriverScope = _choice(DriverScope.ALL, DriverScope, str.lower)

    # Short, because a stolen access token works until it expires or its session is revoked …
    access_token_seconds: int = _integer(900, low=1, high=86_400)

    # … and long, because it keeps a phone logged in.
    refresh_token_seconds: int = _integer(30 * 86_400, low=60, high=366 * 86_400)

    # Sockets --------------------------------------------------------------------------------------

    # Sockets of one process, and of one user in it: enough for a dispatcher's tabs and for an
    # integration.
    max_connections: int = _integer(10_000, low=1, high=1_000_000)
    max_connections_per_user: int = _integer(100, low=1, high=1_000_000)

    # The largest send queue of one slow client in bytes, and the seconds that it may wait when the
    # client hardly reads (`Limits.min_bytes_per_second`). Past either the socket is closed (1013),
    # and the client resumes: some 4,000 events cost more to keep here than to read again from the
    # log.
    queue_max_bytes: int = _integer(1_000_000, low=65_536, high=1_000_000_000)
    queue_max_seconds: float = _seconds(20, low=1, high=3600)

    # How often the relay reads the log when nothing wakes it. Wake-ups may be lost; this bounds how
    # late events arrive and revocations take effect.
    relay_poll_ms: int = _integer(500, low=5, high=60_000)

    # Operation ------------------------------------------------------------------------------------

    # Seconds after SIGTERM in which requests may finish and sockets are closed (1012).
    drain_seconds: float = _seconds(8, low=0, high=300)

    log_level: LogLevel = _choice("INFO", get_args(LogLevel), str.upper)

    @property
    def database_url(self) -> URL:
        """For SQLAlchemy, with every libpq option kept. Its text hides the password."""
        if self.db_dsn is None:
            raise SettingsError("DB_DSN", "is not set, and no embedded database was started")
        return url_of(self.db_dsn)

    @property
    def owner_url(self) -> URL:
        """The same for the role that owns the tables, which may be DB_DSN's."""
        return self.database_url if self.migrate_dsn is None else url_of(self.migrate_dsn)

    @property
    def signing_secret(self) -> str:
        """`jwt_secret`, which must be set."""
        if self.jwt_secret is None:
            raise SettingsError("JWT_SECRET", "is not set")
        return self.jwt_secret

    def with_embedded(self, dsn: str, secret: str) -> "Settings":
        """The same settings with the embedded database. A JWT_SECRET that was set is kept."""
        return replace(self, db_dsn=dsn, jwt_secret=self.jwt_secret or secret)


def url_of(dsn: str) -> URL:
    """The SQLAlchemy URL of a libpq DSN."""
    options = parse_dsn(dsn)
    user, password = options.pop("user", None), options.pop("password", None)
    dbname = options.pop("dbname", None)
    # Host and port stay options: a socket's folder or a list of hosts has no place in a URL.
    return URL.create(
        "postgresql+psycopg2", user, password, database=dbname, query=cast(Any, options)
    )


def load(environ: Mapping[str, str], *, dotenv: Path | None = None) -> Settings:
    """Read settings from `environ`, and those that it lacks from `dotenv` if that file exists.

    Raises `SettingsError` for the first setting that cannot be used.
    """
    given = {name: value for name, value in _from_file(dotenv).items() if value}
    given |= {name: value for name, value in environ.items() if value}
    values: dict[str, object] = {}
    for setting in fields(Settings):
        name = setting.name.upper()
        if name in given:
            try:
                values[setting.name] = setting.metadata["parse"](given[name])
            except ValueError as error:
                raise SettingsError(name, str(error)) from None
    settings = Settings(**cast(Any, values))
    if "cookie_secure" not in values:
        settings = replace(settings, cookie_secure=_cookie_secure(settings))
    _check_together(settings, debug=given.get("FLASK_DEBUG", ""))
    return settings


_HERE = ("127.0.0.1", "::1", "0.0.0.0", "::")  # noqa: S104 (compared, not bound)


def reached_at(host: str, port: int) -> str:
    """The URL, on the same machine, of a server that listens on *host* and *port*."""
    name = "localhost" if host in _HERE else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """The values that must not appear in a log."""
    passwords = (
        parse_dsn(dsn or "").get("password") for dsn in (settings.db_dsn, settings.migrate_dsn)
    )
    return tuple(secret for secret in (settings.jwt_secret, *passwords) if secret)


def _from_file(path: Path | None) -> Mapping[str, str | None]:
    if path is None or not path.exists():
        return {}
    try:
        # Without interpolation: a `$` in a password is a dollar sign.
        return dotenv_values(path, interpolate=False, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(str(path), f"cannot be read: {error}") from None


def _cookie_secure(settings: Settings) -> bool:
    """True wherever TLS may be in front. A loopback server without a proxy is reached over plain
    HTTP, where some browsers drop Secure cookies, so that logging in would fail."""
    if settings.trusted_proxies:
        return True
    try:
        return not ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        return settings.host.lower() != "localhost"


def _check_together(settings: Settings, *, debug: str) -> None:
    if settings.db_dsn is not None:
        if settings.jwt_secret is None:
            needed = f"must be set when DB_DSN is: at least {MIN_SECRET_BYTES} random bytes."
            raise SettingsError("JWT_SECRET", f"{needed} {_MAKE_ONE}")
        if debug.lower() not in _FALSE | {""}:
            raise SettingsError(
                "FLASK_DEBUG", "must not be on with a real database (DB_DSN is set); remove it"
            )
    elif settings.migrate_dsn is not None:
        raise SettingsError("MIGRATE_DSN", "needs DB_DSN: the embedded database has one role")
    if settings.refresh_token_seconds < settings.access_token_seconds:
        raise SettingsError(
            "REFRESH_TOKEN_SECONDS", "must not be shorter than ACCESS_TOKEN_SECONDS"
        )
    if settings.lock_timeout_ms >= settings.statement_timeout_ms:
        # Else the wait for a lock would end as a slow statement, with the wrong error text.
        raise SettingsError("LOCK_TIMEOUT_MS", "must be shorter than STATEMENT_TIMEOUT_MS")
