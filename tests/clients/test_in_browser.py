"""order-stream.js in a real browser: offline, online, a page that becomes visible again."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.support.frames import mangling
from tests.support.people import Person
from tests.support.tcp_proxy import DOWN, TcpProxy
from tests.support.waiting import eventually

OPEN = """async ({ token, order, options }) => {
  const { io } = await import("/static/vendor/socket.io/socket.io.esm.min.js");
  const { OrderStream } = await import("/static/js/order-stream.js");
  window.events = [];
  window.stream = new OrderStream({ io, auth: () => ({ token }), ...options });
  window.states = [stream.state];
  stream.addEventListener("state", (e) => states.push(e.detail.state));
  stream.watch(order, 0, { onEvent: (event) => events.push(event.version) });
}"""

SHOW_AGAIN = "() => document.dispatchEvent(new Event('visibilitychange'))"

Open = Callable[..., Page]


@pytest.fixture
def open_page(chromium: Browser, network: TcpProxy) -> Iterator[Open]:
    """A page from behind `network` with a stream in it: ``open_page(person, order)``."""
    context = chromium.new_context(bypass_csp=True)  # it is this test's script that runs there

    def open_(person: Person, order: dict[str, Any], **options: Any) -> Page:
        page = context.new_page()
        page.goto(network.url + "/login")
        page.evaluate(OPEN, {"token": person.token, "order": order["id"], "options": options})
        return page

    yield open_
    context.close()


def until(page: Page, name: str, value: Any) -> None:
    """Wait until the last of the page's *name* is *value*."""

    def came() -> bool:
        found = page.evaluate(f"() => window.{name}")
        assert found[-1:] == [value], (found, page.evaluate("() => window.states"))
        return True

    eventually(came)


def test_offline_is_reported_at_once_and_online_resumes(
    open_page: Open, customer: Person, driver: Person
) -> None:
    order = customer.order()
    page = open_page(customer, order)
    until(page, "states", "live")
    page.context.set_offline(True)
    until(page, "states", "offline")
    driver.move(order, "Processing", "Shipped")
    page.context.set_offline(False)
    until(page, "events", 3)
    until(page, "states", "live")
    assert page.evaluate("() => events") == [1, 2, 3]
    assert page.evaluate("() => states")[:3] == ["connecting", "live", "offline"]


def test_a_connection_that_died_in_the_background_is_detected_when_the_page_is_visible(
    open_page: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    order = customer.order()
    page = open_page(customer, order)
    until(page, "states", "live")
    for connection in network.connections:
        connection.filter[DOWN] = lambda _data: b""  # as when the phone has changed networks
    driver.move(order, "Processing", "Shipped")
    page.evaluate(SHOW_AGAIN)
    until(page, "events", 3)
    assert page.evaluate("() => events") == [1, 2, 3]
    until(page, "states", "live")


def test_a_live_connection_is_kept_when_the_page_is_visible(
    open_page: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    order = customer.order()
    page = open_page(customer, order)
    until(page, "states", "live")
    for status in ("Processing", "Shipped", "Completed"):
        page.evaluate(SHOW_AGAIN)
        driver.move(order, status)
    until(page, "events", 4)
    assert page.evaluate("() => events") == [1, 2, 3, 4]
    assert page.evaluate("() => states") == ["connecting", "live"]


def test_a_visible_page_without_a_connection_reconnects_at_once(
    open_page: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    busy = '44{"message":"","data":{"code":"too_many_requests","status":429,"retry_after":30}}'
    refused: list[str] = []

    def refuse(message: str) -> list[str]:
        if not message.startswith("40"):
            return [message]
        refused.append(message)
        return [busy]

    network.filter(mangling(lambda: refuse))
    order = customer.order()
    page = open_page(customer, order, pollAfter=3_600_000)
    eventually(lambda: refused)
    network.filter(None)
    driver.move(order, "Processing")
    page.evaluate(SHOW_AGAIN)
    until(page, "events", 2)
    assert page.evaluate("() => events") == [1, 2]
