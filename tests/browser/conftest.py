"""Visitors: windows of a real browser, logged in on a real server."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from tests.support import missing
from tests.support.databases import Postgres
from tests.support.people import Person
from tests.support.servers import Server, running_server

AXE = missing.NODE_MODULES / "axe-core" / "axe.min.js"

# What waits for the page, waits this long at most (milliseconds): two cores may be shared by many.
PATIENCE = 20_000


@pytest.fixture(scope="session")
def database(postgres: Postgres) -> str:
    """Of their own: screens show so many orders and no more, and other tests make thousands."""
    return postgres.clone()


@pytest.fixture(scope="session")
def server(database: str) -> Iterator[Server]:
    with running_server(database) as started:
        yield started


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's source, to be run in a page."""
    missing.node()  # not to run it: it comes with npm, which fetches it
    return AXE.read_text()


# Chromium reports refusals of the server, and a missing network, as errors of the page.
_EXPECTED = ("Failed to load resource", "WebSocket connection to", "net::ERR_")


class Visitor:
    """One person's window: a browser context of its own, and the page in it.

    Everything that goes wrong in the page (an exception, a violation of the security policy, a
    message on the console) is kept in ``complaints``; a test fails when it ends with any.
    """

    def __init__(self, context: BrowserContext, server: Server) -> None:
        self.context = context
        self.server = server
        self.complaints: list[str] = []
        self.page = self._watched(context.new_page())

    def _watched(self, page: Page) -> Page:
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._heard)
        return page

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(
            expected in message.text for expected in _EXPECTED
        ):
            self.complaints.append(f"{message.type}: {message.text}")

    def another_tab(self) -> Page:
        return self._watched(self.context.new_page())

    def open(self, path: str, *, live: bool = False) -> Page:
        """Go there; *live*: and wait until changes would be seen."""
        self.page.goto(self.server.url + path)
        if live:
            self.wait_for_state("live")
        return self.page

    def wait_for_state(self, state: str) -> None:
        self.page.wait_for_selector(f'#link-state[data-state="{state}"]')

    def see(self, selector: str) -> None:
        """Wait until *selector* is visible."""
        self.page.wait_for_selector(selector)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(chromium: Browser, server: Server) -> Iterator[Visit]:
    """Opens a window: ``visit(person)`` signed in, ``visit()`` not. Options go to the context."""
    visitors: list[Visitor] = []

    def open_window(
        person: Person | None = None, *, at: Server | None = None, **options: Any
    ) -> Visitor:
        context = chromium.new_context(**options)
        where = at or server
        if person is not None:
            context.add_cookies(
                [
                    {"name": name, "value": value, "url": where.url}
                    for name, value in (
                        ("access_token_cookie", person.token),
                        ("refresh_token_cookie", person.refresh_token),
                    )
                ]
            )
        visitors.append(Visitor(context, where))
        return visitors[-1]

    yield open_window
    for visitor in visitors:
        visitor.context.close()
    complaints = [complaint for visitor in visitors for complaint in visitor.complaints]
    assert not complaints, complaints
