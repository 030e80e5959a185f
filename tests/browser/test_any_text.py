"""Text of any length and direction: no page is wider than its screen."""

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Visit
from tests.browser.test_accessibility import OPEN_ALL
from tests.support.servers import Server

WIDTHS = (360, 1280, 1920)

WORD = "x" * 2000
RTL = "كرسي أزرق مع وسادة، من فضلك " * 20
EMOJI = "👩‍👩‍👧‍👦🧰" * 200
NAMES = ["W" * 100, "שלום עולם ארוך מאוד " * 4, "👩🏽‍🚀" * 30]

# Elements that stick out of the screen, but for those in boxes which scroll by themselves.
TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter((one) => one.checkVisibility())
    .filter((one) => !one.closest(".sprite, .skip, .visually-hidden, .toasts"))
    .filter((one) => !one.closest(".scroll, .sections, .tabs, .counts, .who-name"))
    .filter((one) => {
        const box = one.getBoundingClientRect();
        return box.width > 1 && box.height > 1 && (box.right > innerWidth + 1 || box.left < -1);
    })
    .map((one) => `${one.outerHTML.slice(0, 100)} ${one.getBoundingClientRect().right}`)"""


@pytest.mark.parametrize(
    ("name", "text"), [*zip(NAMES, (WORD, RTL, EMOJI), strict=True)], ids=["long", "rtl", "emoji"]
)
def test_no_page_is_wider_than_its_screen(
    visit: Visit, server: Server, name: str, text: str
) -> None:
    people = server.people
    customer, driver, admin = people.customer(name), people.driver(name), people.admin(name)
    orders = [customer.order(text[:2000]) for _ in range(4)]
    note = text[:500]
    for order in orders[1:]:
        admin.assign(order, driver)
    driver.move(orders[1], "Processing", note=note)
    driver.move(orders[2], "Processing", "Shipped", note=note)
    admin.edit(orders[3], f"{text[:1990]} again"[:2000])
    admin.move(orders[3], "Cancelled", note=note)
    pages = [f"/orders/{order['id']}" for order in orders]
    board = f"/board?customer={customer.id}"
    found: list[str] = []
    for person, paths in (
        (customer, ["/orders", *pages, "/orders/0"]),
        (driver, ["/deliveries?show=mine", *pages[:2]]),
        (
            admin,
            [
                "/deliveries",
                board,
                *pages,
                f"{pages[3]}/history",
                f"/users?after={int(customer.id) - 1}",
                "/account",
            ],
        ),
    ):
        window = visit(person, reduced_motion="reduce")
        for path in paths:
            page = window.open(path)
            page.evaluate(OPEN_ALL)
            found += too_wide(page, path)
    page = window.open(board, live=True)
    for order in orders:
        page.check(f"#pick-{order['id']}")
    found += too_wide(page, "the selection")
    page.select_option("#bulk-driver", driver.id)
    page.click(".bulk >> text=Assign")
    window.see("#yes")
    found += too_wide(page, "the question")
    page.click("text=No, back to the board")
    page.select_option("#bulk-driver", "none")
    page.click(".bulk >> text=Assign")
    page.click("#yes")
    window.see("text=1 order was left as it is")
    found += too_wide(page, "what was refused")
    assert not found, "\n".join(found)


def too_wide(page: Page, what: str) -> list[str]:
    """Where the page is wider than its screen, on a phone, a laptop and a large screen."""
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        if wide > width:
            found.append(f"{what} is {wide} px wide at {width}")
        found += [f"{what} at {width}: {one}" for one in page.evaluate(TOO_WIDE)]
    return found


def test_text_that_arrives_in_an_event_widens_no_page(visit: Visit, server: Server) -> None:
    people = server.people
    customer, driver, admin = people.customer(), people.driver(NAMES[0]), people.admin(NAMES[0])
    order = customer.order("short")
    window = visit(customer, viewport={"width": 360, "height": 800})
    page = window.open(f"/orders/{order['id']}", live=True)
    admin.edit(order, WORD)
    admin.assign(order, driver)
    driver.move(order, "Processing", note="y" * 500)
    window.see('#state .chip[data-status="Processing"]')
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    assert page.evaluate(TOO_WIDE) == []


def test_each_text_has_its_own_direction(visit: Visit, server: Server) -> None:
    """An Arabic wish is right to left on the same page where an English one is left to right."""
    people = server.people
    customer, driver, admin = people.customer("Ana"), people.driver("דוד"), people.admin()
    order = customer.order("كرسي أزرق 12")
    admin.assign(order, driver)
    driver.move(order, "Processing", note="בדרך")
    way = "one => getComputedStyle(one).direction"
    window = visit(admin)
    page = window.open(f"/orders/{order['id']}")
    for selector, direction in (
        ("h1", "rtl"),
        ("#history .note", "rtl"),
        ("#driver-name", "rtl"),
        (".step[data-step='Pending'] .step-who", "ltr"),
        ("textarea", "rtl"),
    ):
        assert page.eval_on_selector(selector, way) == direction, selector
    for path, selector in (
        (f"/board?customer={customer.id}", ".c-text"),
        ("/deliveries", f'.job[data-order="{order["id"]}"] .job-text'),
        (f"/orders/{order['id']}/history", "h1"),
    ):
        assert window.open(path).eval_on_selector(selector, way) == "rtl", path
    own = visit(customer).open("/orders")
    assert own.eval_on_selector(".order-text", way) == "rtl"
