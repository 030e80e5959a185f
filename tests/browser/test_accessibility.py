"""Accessibility: axe finds nothing on any page, and everything works by keyboard."""

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Visit
from tests.support.servers import Server

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

# Content that a click reveals is checked as well.
OPEN_ALL = "() => { for (const one of document.querySelectorAll('details')) one.open = true; }"

SMALL_TARGETS = """() =>
    [...document.querySelectorAll("a, button, select, summary, input:not([type=hidden])")]
        .filter((one) => one.checkVisibility() && !one.closest("p, .hint, .skip"))
        .map((one) => [one, one.getBoundingClientRect()])
        .filter(([one, box]) => box.width < 24 || box.height < 24)
        .map(([one, box]) => `${one.outerHTML.slice(0, 90)} ${box.width}×${box.height}`)"""


def defects(page: Page, axe: str) -> list[str]:
    """The findings of axe, one line each."""
    page.evaluate(axe)
    found: dict[str, Any] = page.evaluate(
        "rules => axe.run({runOnly: {type: 'tag', values: rules}})", RULES
    )
    return [
        f"{page.url} {one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1920), ("dark", 360)])
def test_axe_finds_nothing_on_any_page(
    visit: Visit, server: Server, axe: str, scheme: str, width: int
) -> None:
    people = server.people
    customer, driver, admin = people.customer(), people.driver(), people.admin()
    orders = [customer.order(f"parcel {number}") for number in range(5)]
    driver.move(orders[0], "Processing", "Shipped", "Completed", note="At the door")
    admin.edit(orders[1], "another parcel")
    admin.assign(orders[1], driver)
    admin.move(orders[1], "Processing", "Cancelled")
    driver.move(orders[2], "Processing")
    admin.assign(orders[2], driver)
    driver.move(orders[3], "Processing", "Shipped")
    admin.assign(orders[3], driver)
    deleted = customer.order("a mistake")
    customer.delete(deleted)
    found = []
    for person, paths in (
        (None, ["/login", "/register", "/reset?token=x", "/nothing/here", "/offline"]),
        (people.customer(), ["/orders"]),
        (customer, ["/orders", *(f"/orders/{order['id']}" for order in orders), "/board"]),
        (driver, ["/deliveries", "/deliveries?show=mine", f"/orders/{orders[2]['id']}"]),
        (
            admin,
            [
                f"/board?customer={customer.id}",
                "/board?q=nothing+like+this",
                f"/board?deleted=yes&customer={customer.id}",
                "/board?from=2025-08-02&to=2025-08-01",
                f"/orders/{orders[2]['id']}",
                f"/orders/{orders[1]['id']}/history",
                f"/orders/{deleted['id']}/history",
                f"/users?after={int(customer.id) - 1}",
                "/users?q=nobody+has+this",
                "/account",
            ],
        ),
    ):
        window = visit(
            person,
            color_scheme=scheme,
            viewport={"width": width, "height": 900},
            reduced_motion="reduce",  # else colours are caught half way
        )
        for path in paths:
            page = window.open(path)
            page.evaluate(OPEN_ALL)
            found += defects(page, axe)
            is_wide = page.evaluate("() => document.documentElement.scrollWidth > innerWidth")
            assert not is_wide, f"{path} is wider than {width} px"
        if person is admin:
            # The confirmation of a bulk change, and the list of orders that were refused.
            window.open(f"/board?customer={customer.id}&picked={orders[0]['id']},{orders[4]['id']}")
            page.click(".bulk >> text=Move")
            found += defects(page, axe)
            page.click("#yes")
            window.see("text=1 order was left as it is")
            found += defects(page, axe)
    assert not found, "\n".join(found)


def test_toasts_and_badges_are_legible(visit: Visit, server: Server, axe: str) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    for scheme in ("light", "dark"):
        order = customer.order()
        window = visit(customer, color_scheme=scheme, reduced_motion="reduce")
        page = window.open(f"/orders/{order['id']}", live=True)
        driver.move(order, "Processing")
        window.see(".toast-line")
        assert not defects(page, axe)
        window.context.set_offline(True)
        window.wait_for_state("offline")
        assert not defects(page, axe)


def test_taps_notices_and_the_end_of_a_session_are_legible(
    visit: Visit, server: Server, axe: str
) -> None:
    """Held and waiting taps, a refusal, a text that is kept, the end of a session."""
    people = server.people
    customer, driver, admin = people.customer(), people.driver(), people.admin("Amir")
    for scheme in ("light", "dark"):
        options = {"color_scheme": scheme, "reduced_motion": "reduce"}
        order, late = customer.order(), customer.order()
        for one in (order, late):
            admin.assign(one, driver)
        phone = visit(driver, **options, viewport={"width": 390, "height": 800})
        page = phone.open("/deliveries?show=mine", live=True)
        page.click(f'.job[data-order="{order["id"]}"] .btn-job')
        phone.see(".undo")
        found = defects(page, axe)
        phone.context.set_offline(True)
        page.click(f'.job[data-order="{late["id"]}"] .btn-job')
        phone.see("#tap-bar >> text=waiting for the network")
        found += defects(page, axe)
        for one in (order, late):
            admin.move(one, "Cancelled", note="not needed")
        phone.context.set_offline(False)
        phone.see("#tap-bar >> text=Amir cancelled it")
        found += defects(page, axe)

        order = customer.order()
        window = visit(customer.signed_in_again(), **options)
        page = window.open(f"/orders/{order['id']}", live=True)
        page.click("text=Edit the description")
        page.fill("#description", "too late")
        driver.move(order, "Processing")
        window.see(".unsent")
        found += defects(page, axe)
        page.evaluate(
            "() => document.querySelector('#description').value = 'written when signed out'"
        )
        other = window.another_tab()
        other.goto(f"{server.url}/orders")
        other.click("text=Sign out")
        window.see("text=You are signed out")
        found += defects(page, axe)
        assert not found, "\n".join(found)


def test_an_order_can_be_placed_and_cancelled_by_keyboard_alone(
    visit: Visit, server: Server
) -> None:
    window = visit(server.people.customer())
    page = window.open("/orders", live=True)
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("typed blindly")
    page.keyboard.press("Tab")
    outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "where the focus is can be seen"
    page.keyboard.press("Enter")
    page.wait_for_url("**/orders/*")
    window.wait_for_state("live")
    page.focus("summary:has-text('Cancel the order')")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    window.see('#state .chip[data-status="Cancelled"]')


def test_targets_are_large_enough_for_a_finger(visit: Visit, server: Server) -> None:
    """WCAG 2.5.8: 24 by 24 px, but for links within a text."""
    people = server.people
    customer, admin = people.customer(), people.admin()
    order = customer.order()
    paths = ("/board", f"/orders/{order['id']}", "/deliveries", "/orders", "/users", "/account")
    for path in paths:
        window = visit(admin, viewport={"width": 390, "height": 800}, has_touch=True)
        small = window.open(path).evaluate(SMALL_TARGETS)
        assert not small, (path, small)
