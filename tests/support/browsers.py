"""A real browser, one for all tests of a process: Playwright can be started only once in it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Error as PlaywrightError

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


def cannot(reason: str) -> NoReturn:
    """Skip where something is missing; in CI nothing may be."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """Debian's Chromium when there is one, else Playwright's own."""
    # Chromium's sandbox does not run as root.
    arguments = [*ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    program = str(SYSTEM_CHROMIUM) if SYSTEM_CHROMIUM.exists() else None
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=arguments)
        except PlaywrightError as error:
            cannot(f"no browser: install chromium, or run `playwright install chromium` ({error})")
        yield browser
        browser.close()
