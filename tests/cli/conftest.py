"""The command line, on databases of each test's own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from click.testing import Result
from flask import Flask

from ordertrack.app import create_app
from ordertrack.extensions import db
from tests.support.databases import settings_for
from tests.support.http import InProcess
from tests.support.people import People


@dataclass(frozen=True)
class Own:
    """A database of the test's own, the application on it, and its people."""

    dsn: str
    app: Flask
    people: People

    def flask(self, *arguments: str, typed: str | None = None) -> Result:
        """Run ``flask ARGUMENTS``; *typed* is what a person answers to prompts."""
        return self.app.test_cli_runner().invoke(args=list(arguments), input=typed)


@contextmanager
def opened(dsn: str) -> Iterator[Own]:
    app = create_app(settings_for(dsn))
    yield Own(dsn, app, People(dsn, InProcess(app)))
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def own(fresh_database: Callable[[], str]) -> Iterator[Own]:
    with opened(fresh_database()) as made:
        yield made
