"""A real browser, one for all tests of a process: Playwright can be started only once in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.support.missing import cannot, playwright_problem

SYSTEM_CHROMIUM = Path("/usr/bin/chromium")

# Without these Chromium asks its makers' servers for this and that, also where there is no network.
ARGUMENTS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Debian's Chromium when there is one, else Playwright's own."""
    # Chromium's sandbox does not run as root.
    arguments = [*ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    program = str(SYSTEM_CHROMIUM) if SYSTEM_CHROMIUM.exists() else None
    problem = playwright_problem()
    if problem is not None:
        cannot(f"Playwright's driver does not start ({problem})", "apt install libatomic1")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=arguments)
        except PlaywrightError as error:
            if program is not None:
                raise  # it is there, so that it does not start is no want of it
            first = str(error).strip().splitlines()[0]
            cannot(f"no browser ({first})", "apt install chromium")
        yield browser
        browser.close()
