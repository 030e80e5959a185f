"""Fixtures of all tests: a real PostgreSQL, the application on it, a server process, people."""

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flask import Flask
from hypothesis import settings

from ordertrack.app import create_app
from ordertrack.extensions import db
from tests.support import missing, plain_flask
from tests.support.databases import Postgres, running_postgres, settings_for
from tests.support.http import Api, InProcess
from tests.support.people import People
from tests.support.servers import Server, running_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the database, also indirectly, as a database test."""
    for item in items:
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.database)


# New examples in every run, also in CI, where Hypothesis tries the same ones for ever. A failure
# prints how to repeat it. `scripts/test-long` asks for more examples, from one seed.
settings.register_profile("ordertrack", derandomize=False, print_blob=True, deadline=None)
settings.load_profile("ordertrack")


if plain_flask.wanted():
    plain_flask.use()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail, in CI, every test that skips itself, by whatever means."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and missing.in_ci():
        reason = _reason(report)
        if reason not in missing.NOT_MISSING:
            report.outcome = "failed"
            report.longrepr = f"Skipped, which in CI nothing may be: {reason}"
    return report


def _reason(report: pytest.TestReport) -> str:
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which tests did not run and why, each reason once.

    `scripts/test` runs pytest several times and says it at the very end; it collects the reasons
    in the file that TEST_SKIPPED names, one line for each test.
    """
    reasons = [
        _reason(report)
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report, pytest.TestReport)
    ]
    # pytest-xdist's workers come here as well, and their reports reach the controller.
    if not reasons or hasattr(terminalreporter.config, "workerinput"):
        return
    if file := os.environ.get("TEST_SKIPPED"):
        with Path(file).open("a", encoding="utf-8") as collected:
            collected.writelines(f"{reason}\n" for reason in reasons)
        return
    terminalreporter.write_sep("=", "not run on this machine")
    for reason, number in Counter(reasons).most_common():
        terminalreporter.write_line(f"{number:5} tests: {reason}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Maintenance access to the test server: TEST_DB_DSN's, or an embedded one."""
    with running_postgres() as started:
        yield started


@pytest.fixture(scope="session")
def database(postgres: Postgres) -> str:
    """The DSN of a migrated database that most tests share.

    Tests make their own users and orders in it, and never count or change what is not theirs.
    """
    return postgres.clone()


@pytest.fixture
def fresh_database(postgres: Postgres) -> Iterator[Callable[[], str]]:
    """Makes migrated databases of a test's own: ``dsn = fresh_database()``."""
    made: list[str] = []

    def make() -> str:
        made.append(postgres.clone())
        return made[-1]

    yield make
    for dsn in made:
        postgres.drop(dsn)


@pytest.fixture(scope="session")
def app(database: str) -> Iterator[Flask]:
    """The application on `database`, in this process: no relay, no loop."""
    made = create_app(settings_for(database))
    yield made
    with made.app_context():
        db.engine.dispose()


@pytest.fixture(scope="session")
def people(app: Flask, database: str) -> People:
    """Makes logged-in users: ``people.customer()``, ``.driver()``, ``.admin()``.

    Their requests go to `app`; those of ``server.people`` go to that server.
    """
    return People(database, InProcess(app))


@pytest.fixture(scope="session")
def nobody(people: People) -> Api:
    """Requests to `app` without a token."""
    return people.nobody


@pytest.fixture(scope="session")
def server(database: str) -> Iterator[Server]:
    """A server process on `database` that tests share; they leave it running."""
    with running_server(database) as started:
        yield started


@pytest.fixture(scope="session")
def chromium() -> Iterator["Browser"]:
    """A browser; tests make contexts of their own in it."""
    # Here, because most runs need no Playwright, and importing it takes long.
    from tests.support.browsers import running_chromium  # noqa: PLC0415

    with running_chromium() as browser:
        yield browser


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts server processes of a test's own: ``start_server(dsn, DRIVER_SCOPE="assigned")``."""
    with ExitStack() as stack:

        def start(dsn: str, **settings: str) -> Server:
            return stack.enter_context(running_server(dsn, **settings))

        yield start
