"""Takes pictures of every page, for the documentation and for reviewing changes of style sheets."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.services import demo
from tests.support.databases import running_postgres, settings_for
from tests.support.people import PASSWORD, Person
from tests.support.servers import Server, running_server

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "screenshots"
SCHEMES = ("light", "dark")
WIDTHS = {390: 844, 1440: 900}


class Scene:
    """The demo's users with some orders, and the pages to take pictures of."""

    def __init__(self, server: Server) -> None:
        people = server.people
        customer, driver, admin = (
            _signed_in(server, name, email) for name, email, _ in demo.PEOPLE
        )
        noor = {"name": "Noor", "email": "noor@example.org", "password": PASSWORD}
        people.nobody.post("/api/register", json=noor)
        newcomer = _signed_in(server, noor["name"], noor["email"])
        ours = customer.order("Forty chairs and a long table, to the garden gate")
        admin.edit(ours, "Forty chairs and two long tables, to the garden gate")
        admin.assign(ours, driver)
        driver.move(ours, "Processing")
        driver.move(ours, "Shipped", note="Both tables are on the first van")
        cancelled = customer.order("A tent, 6 by 12 m")
        driver.move(cancelled, "Processing")
        admin.move(cancelled, "Cancelled", note="Sold out until Monday")
        pending = customer.order("Candles, white, two dozen")
        self.pages: dict[str, tuple[Person | None, str]] = {
            "sign-in": (None, "/login"),
            "register": (None, "/register"),
            "orders": (customer, "/orders"),
            "orders-empty": (newcomer, "/orders"),
            "order": (customer, f"/orders/{ours['id']}"),
            "order-pending": (customer, f"/orders/{pending['id']}"),
            "order-cancelled": (customer, f"/orders/{cancelled['id']}"),
            "order-admin": (admin, f"/orders/{ours['id']}"),
            "deliveries": (driver, "/deliveries"),
            "board": (admin, "/board"),
            "board-empty": (admin, "/board?q=a+piano"),
            "users": (admin, "/users"),
            "account": (customer, "/account"),
            "reset": (None, "/reset?token=example"),
            "audit-trail": (admin, f"/orders/{ours['id']}/history"),
            "not-found": (customer, "/orders/999999"),
            "offline": (None, "/offline"),
        }


def _signed_in(server: Server, name: str, email: str) -> Person:
    person = Person("", name, email, PASSWORD, "", "", server.people.nobody).signed_in_again()
    return replace(person, id=person.api.get("/api/me").json()["id"])


@contextmanager
def scene() -> Iterator[tuple[Server, Scene]]:
    with running_postgres() as postgres:
        dsn = postgres.clone()
        app = create_app(settings_for(dsn))
        with app.app_context():
            demo.make(PASSWORD)
            db.engine.dispose()
        with running_server(dsn) as server:
            yield server, Scene(server)


def main(wanted: list[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    program = "/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else None
    arguments = ["--disable-gpu", "--disable-background-networking", "--font-render-hinting=none"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with scene() as (server, shown), sync_playwright() as playwright:
        unknown = set(wanted) - set(shown.pages)
        if unknown:
            sys.exit(f"No such page: {', '.join(unknown)}. There are: {', '.join(shown.pages)}")
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        for name, (person, path) in shown.pages.items():
            if not wanted or name in wanted:
                take(browser, server, name, person, path)
        browser.close()


def take(browser: Browser, server: Server, name: str, person: Person | None, path: str) -> None:
    for scheme in SCHEMES:
        for width, height in WIDTHS.items():
            context = browser.new_context(
                color_scheme=scheme,
                viewport={"width": width, "height": height},
                reduced_motion="reduce",
                locale="en-GB",
                timezone_id="Europe/Amsterdam",
            )
            if person is not None:
                tokens = {
                    "access_token_cookie": person.token,
                    "refresh_token_cookie": person.refresh_token,
                }
                context.add_cookies(
                    [{"name": k, "value": v, "url": server.url} for k, v in tokens.items()]
                )
            page = context.new_page()
            page.goto(server.url + path)
            settle(page)
            file = FOLDER / f"{name}-{scheme}-{width}.png"
            page.screenshot(path=file)
            make_small(file)
            print(f"{file.name}: {file.stat().st_size // 1000} kB")
            context.close()


def make_small(file: Path) -> None:
    """Reduces a picture to 256 colours, which halves its size; does nothing without Pillow."""
    try:
        image_module = import_module("PIL.Image")
    except ImportError:
        return
    with image_module.open(file) as image:
        small = image.convert("RGB").quantize(256, dither=image_module.Dither.NONE)
    small.save(file, optimize=True)


def settle(page: Page) -> None:
    """Waits until the page is connected and has loaded its live data."""
    if page.locator("link[rel=modulepreload]").count():
        page.wait_for_selector('#link-state[data-state="live"]', timeout=60_000)


if __name__ == "__main__":
    main(sys.argv[1:])
