"""What all tests share: a real PostgreSQL, the application on it, a server process, people."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from flask import Flask
from playwright.sync_api import Browser

from ordertrack.app import create_app
from ordertrack.extensions import db
from tests.support.browsers import running_chromium
from tests.support.databases import Postgres, running_postgres, settings_for
from tests.support.http import Api, InProcess
from tests.support.people import People
from tests.support.servers import Server, running_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that uses the database, however indirectly, is a database test."""
    for item in items:
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.database)


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
    """Makes signed-in users: ``people.customer()``, ``.driver()``, ``.admin()``.

    They speak to `app`; a server's own people (``server.people``) speak to that server.
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
def chromium() -> Iterator[Browser]:
    """A browser; tests make contexts of their own in it."""
    with running_chromium() as browser:
        yield browser


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts server processes of a test's own: ``start_server(dsn, DRIVER_SCOPE="assigned")``."""
    with ExitStack() as stack:

        def start(dsn: str, **settings: str) -> Server:
            return stack.enter_context(running_server(dsn, **settings))

        yield start
