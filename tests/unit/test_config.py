"""Settings: what is accepted, what is refused, and that a refusal names the setting."""

import re
from dataclasses import fields
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from ordertrack.config import EXAMPLE_JWT_SECRET, Settings, SettingsError, load

ROOT = Path(__file__).resolve().parents[2]

SECRET = "a-secret-that-is-long-enough-for-hs256"
DSN = "host=localhost user=postgres password=postgres dbname=order_tracking port=5432"


def refused(**environ: str) -> SettingsError:
    with pytest.raises(SettingsError) as refusal:
        load(environ)
    return refusal.value


def url(dsn: str) -> dict[str, object]:
    """What SQLAlchemy hands to psycopg2 for this DSN."""
    chosen = load({"DB_DSN": dsn, "JWT_SECRET": SECRET}).database_url
    return chosen.get_dialect()().create_connect_args(chosen)[1]


def test_no_setting_is_required() -> None:
    settings = load({})
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.db_dsn is None
    assert settings.jwt_secret is None


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load({"PORT": "", "DB_DSN": "", "JWT_SECRET": ""}) == load({})


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=1000\nDRIVER_SCOPE=assigned\n", encoding="utf-8")
    settings = load({"PORT": "2000"}, dotenv=file)
    assert (settings.port, settings.driver_scope) == (2000, "assigned")


def test_a_file_holds_a_dsn_with_spaces_and_a_password_with_a_dollar_sign(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(f"DB_DSN=host=db user=u password=a$HOME\nJWT_SECRET={SECRET}\n")
    settings = load({"HOME": "elsewhere"}, dotenv=file)
    assert settings.db_dsn == "host=db user=u password=a$HOME"


def test_a_missing_file_is_no_error(tmp_path: Path) -> None:
    assert load({}, dotenv=tmp_path / ".env") == load({})


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"PORT=\xff\n")
    with pytest.raises(SettingsError, match=re.escape(str(file))):
        load({}, dotenv=file)


# The database ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsn",
    [
        f"{DSN} sslmode=disable",
        "host=/run/postgresql user=postgres dbname=o",
        "host=::1 user=u dbname=o",
        "host=a,b port=5432,5433 user=u dbname=o target_session_attrs=read-write",
        r"host=db user=u password='it\'s a secret' dbname=o options='-c synchronous_commit=off'",
        "postgresql://u:p%40ss%2Fword@db:5433/o?sslmode=require&connect_timeout=3",
        "postgres://u@[::1]:5433/o",
        "postgresql://u@%2Frun%2Fpostgresql/o",
        "postgresql:///o?host=/run/postgresql&user=u",
    ],
)
def test_a_dsn_reaches_psycopg2_with_every_option_it_had(dsn: str) -> None:
    assert url(dsn) == parse_dsn(dsn)


@pytest.mark.parametrize(
    ("dsn", "hint"),
    [
        ("localhost", "cannot be read"),
        ("mysql://u@db/o", "cannot be read"),
        ("host=db user=u TimeZone=UTC", "'TimeZone'"),
        ("postgresql://u@db/o?pool=3", "'pool'"),
    ],
)
def test_a_dsn_that_libpq_cannot_read_is_refused(dsn: str, hint: str) -> None:
    refusal = refused(DB_DSN=dsn, JWT_SECRET=SECRET)
    assert refusal.setting == "DB_DSN"
    assert hint in str(refusal)


def test_neither_an_error_nor_a_repr_shows_a_password() -> None:
    badly_quoted = "host=db user=u password=two words"
    with pytest.raises(psycopg2.ProgrammingError, match="words"):
        parse_dsn(badly_quoted)
    assert "words" not in str(refused(DB_DSN=badly_quoted, JWT_SECRET=SECRET))

    settings = load({"DB_DSN": f"{DSN} password=hunter2", "JWT_SECRET": SECRET})
    shown = f"{settings!r} {settings.database_url} {settings.database_url!r}"
    assert "hunter2" not in shown
    assert SECRET not in shown


def test_the_embedded_database_supplies_dsn_and_secret() -> None:
    settings = load({}).with_embedded("host=/somewhere dbname=ordertrack", SECRET)
    assert settings.database_url.database == "ordertrack"
    assert settings.signing_secret == SECRET


def test_a_given_secret_is_kept_with_the_embedded_database() -> None:
    settings = load({"JWT_SECRET": SECRET}).with_embedded("dbname=ordertrack", "another")
    assert settings.signing_secret == SECRET


def test_a_missing_dsn_or_secret_raises() -> None:
    with pytest.raises(SettingsError, match="DB_DSN"):
        _ = load({}).database_url
    with pytest.raises(SettingsError, match="JWT_SECRET"):
        _ = load({}).signing_secret


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.safety("unsafe-settings")
@pytest.mark.parametrize("secret", ["", "short", EXAMPLE_JWT_SECRET, "x" * 31])
def test_with_db_dsn_a_good_secret_is_required(secret: str) -> None:
    assert refused(DB_DSN=DSN, JWT_SECRET=secret).setting == "JWT_SECRET"


def test_a_secret_is_measured_in_bytes() -> None:
    assert load({"DB_DSN": DSN, "JWT_SECRET": "ü" * 16}).signing_secret == "ü" * 16


@pytest.mark.parametrize("secret", ["short", EXAMPLE_JWT_SECRET])
def test_a_bad_secret_is_refused_with_the_embedded_database_too(secret: str) -> None:
    assert refused(JWT_SECRET=secret).setting == "JWT_SECRET"


@pytest.mark.safety("unsafe-settings")
@pytest.mark.parametrize("value", ["1", "true", "On", "anything"])
def test_debug_is_refused_with_a_real_database(value: str) -> None:
    refusal = refused(DB_DSN=DSN, JWT_SECRET=SECRET, FLASK_DEBUG=value)
    assert refusal.setting == "FLASK_DEBUG"
    assert load({"DB_DSN": DSN, "JWT_SECRET": SECRET, "FLASK_DEBUG": "0"})


@pytest.mark.safety("unsafe-settings")
@pytest.mark.parametrize(
    "origins",
    [
        "*",
        "https://*.example.com",
        "https://a.example.com,*",
        "null",
        "shop.example.com",
        "https://shop.example.com/path",
        "https://user@shop.example.com",
        "https://shop.example.com?x=1",
        "https://shop.example.com:port",
        "ftp://shop.example.com",
        "https://",
        "https://[half",
    ],
)
def test_what_is_not_one_origin_is_refused(origins: str) -> None:
    assert refused(ALLOWED_ORIGINS=origins).setting == "ALLOWED_ORIGINS"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "eighty"),
        ("PORT", "80.5"),
        ("PORT", "٨٠"),
        ("PORT", "9" * 30),
        ("HOST", "localhost:8080"),
        ("HOST", "[::1]"),
        ("HOST", "999.1.1.1"),
        ("HOST", "http://localhost"),
        ("DRIVER_SCOPE", "some"),
        ("LOG_LEVEL", "LOUD"),
        ("COOKIE_SECURE", "maybe"),
        ("TRUSTED_PROXIES", "*"),
        ("DRAIN_SECONDS", "nan"),
        ("DRAIN_SECONDS", "inf"),
        ("QUEUE_MAX_SECONDS", "-1"),
        ("DB_POOL_TIMEOUT", "0"),
        ("DB_POOL_SIZE", "0"),
        ("MAX_BODY_BYTES", "0"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: str) -> None:
    refusal = refused(**{name: value})
    assert refusal.setting == name
    assert str(refusal).startswith(f"{name} ")


@pytest.mark.parametrize("name", [field.name.upper() for field in fields(Settings)])
def test_every_setting_refuses_nonsense_or_keeps_it_as_text(name: str) -> None:
    try:
        settings = load({name: "\x01 not this, surely \x7f"})
    except SettingsError as refusal:
        assert refusal.setting == name  # noqa: PT017 (either outcome is right, but not a third)
    else:
        assert isinstance(getattr(settings, name.lower()), Path)


def test_settings_that_contradict_each_other_are_refused() -> None:
    short = refused(ACCESS_TOKEN_SECONDS="900", REFRESH_TOKEN_SECONDS="60")
    assert short.setting == "REFRESH_TOKEN_SECONDS"
    late = refused(LOCK_TIMEOUT_MS="5000", STATEMENT_TIMEOUT_MS="5000")
    assert late.setting == "LOCK_TIMEOUT_MS"


# Parsed values -----------------------------------------------------------------------------------


def test_origins_are_kept_in_the_form_in_which_browsers_send_them() -> None:
    given = (
        " HTTPS://Shop.Example.com:443/ ,http://localhost:80, http://[::1]:3000,https://a.b:8443"
    )
    assert load({"ALLOWED_ORIGINS": given}).allowed_origins == (
        "https://shop.example.com",
        "http://localhost",
        "http://[::1]:3000",
        "https://a.b:8443",
    )


@pytest.mark.parametrize(
    ("environ", "secure"),
    [
        ({}, False),
        ({"HOST": "localhost"}, False),
        ({"HOST": "::1"}, False),
        ({"HOST": "0.0.0.0"}, True),  # noqa: S104
        ({"HOST": "::"}, True),
        ({"HOST": "orders.example.com"}, True),
        ({"TRUSTED_PROXIES": "1"}, True),
        ({"COOKIE_SECURE": "true"}, True),
        ({"COOKIE_SECURE": "no", "HOST": "0.0.0.0"}, False),  # noqa: S104
    ],
)
def test_cookies_are_secure_wherever_tls_may_be_in_front(
    environ: dict[str, str], secure: bool
) -> None:
    assert load(environ).cookie_secure is secure


def test_the_case_of_a_choice_does_not_matter() -> None:
    settings = load({"LOG_LEVEL": "debug", "DRIVER_SCOPE": "ASSIGNED"})
    assert (settings.log_level, settings.driver_scope) == ("DEBUG", "assigned")


def test_the_data_directory_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({"DATA_DIR": "data"}).data_dir == tmp_path / "data"
    assert load({}).data_dir.is_absolute()


# The example file --------------------------------------------------------------------------------


def example() -> list[tuple[str, str]]:
    """Every `NAME=value` of `.env.example`, all of which are commented out."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    return re.findall(r"^#([A-Z_]+)=(.*)$", text, flags=re.MULTILINE)


def test_the_example_file_names_every_setting_and_no_other() -> None:
    assert {name for name, _ in example()} == {field.name.upper() for field in fields(Settings)}


def test_the_table_in_the_readme_names_every_setting_and_no_other() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` ", text, flags=re.MULTILINE)
    assert sorted(rows) == sorted(field.name.upper() for field in fields(Settings))


def test_the_example_file_changes_nothing_when_it_is_copied() -> None:
    assert load({}, dotenv=ROOT / ".env.example") == load({})


def test_what_the_example_file_shows_is_the_default_or_at_least_accepted() -> None:
    defaults = load({})
    not_defaults = {"DB_DSN", "JWT_SECRET", "DATA_DIR", "ALLOWED_ORIGINS", "COOKIE_SECURE"}
    not_defaults.add("MIGRATE_DSN")
    for name, value in example():
        environ = {name: value}
        if name in ("DB_DSN", "MIGRATE_DSN"):
            environ = {"DB_DSN": "dbname=orders", "JWT_SECRET": SECRET} | environ
        if name == "JWT_SECRET":
            assert refused(**environ).setting == name
        else:
            assert (load(environ) == defaults) or name in not_defaults, name
