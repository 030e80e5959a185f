"""A driver's taps: held, undone, queued, sent; and none on a card that has just moved."""

from typing import Any

import pytest

from tests.browser.conftest import Visit, Visitor
from tests.support.people import Person
from tests.support.servers import Server
from tests.support.waiting import eventually

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 800}, "has_touch": True}

# Where a selector's middle is, for taps that go to a place and not to an element.
MIDDLE = """one => { const box = one.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2]; }"""


def card(order: dict[str, Any]) -> str:
    return f'.job[data-order="{order["id"]}"]'


def statuses(person: Person, orders: list[dict[str, Any]]) -> list[str]:
    return [person.read(order)["status"] for order in orders]


def deliveries(
    visit: Visit, server: Server, number: int
) -> tuple[Visitor, Person, list[dict[str, Any]]]:
    """A driver's own screen with *number* orders on it."""
    people = server.people
    customer, driver, admin = people.customer("Ana"), people.driver("Dewi"), people.admin("Amir")
    orders = [customer.order(f"parcel {index}") for index in range(number)]
    for order in orders:
        admin.assign(order, driver)
    window = visit(driver, **PHONE)
    window.open("/deliveries?show=mine", live=True)
    return window, driver, orders


@pytest.mark.parametrize("pause", [120, 300, 600])
def test_two_taps_at_one_spot_move_one_order(visit: Visit, server: Server, pause: int) -> None:
    window, driver, orders = deliveries(visit, server, 3)
    page = window.page
    x, y = page.eval_on_selector(f"{card(orders[0])} .btn-job", MIDDLE)
    page.touchscreen.tap(x, y)
    page.wait_for_timeout(pause)  # the finger's own pace: what this test is about
    page.touchscreen.tap(x, y)
    eventually(lambda: driver.read(orders[0])["status"] == "Processing")
    window.see(f'[data-stage="Processing"] {card(orders[0])}:not([data-pending])')
    assert page.locator("[data-pending]").count() == 0, "and no other waits to be moved"
    assert statuses(driver, orders) == ["Processing", "Pending", "Pending"]


def test_a_card_that_has_just_moved_takes_no_tap(visit: Visit, server: Server) -> None:
    """The finger comes down at the very moment when the next card has slid there."""
    window, driver, orders = deliveries(visit, server, 3)
    page = window.page
    page.evaluate(
        """second => {
            const tapAt = (x, y) => document.elementFromPoint(x, y)?.closest("button")?.click();
            const first = document.querySelector(".job .btn-job").getBoundingClientRect();
            const [x, y] = [first.x + first.width / 2, first.y + first.height / 2];
            new MutationObserver((_, observer) => {
                const there = document.elementFromPoint(x, y)?.closest(".job") ??
                    document.querySelector('[data-stage="Pending"] .job');
                if (there?.dataset.order !== second) return;
                observer.disconnect();
                tapAt(x, y); // at once, and at the pace of a finger
                setTimeout(() => {
                    tapAt(x, y);
                    window.tapped = true;
                }, 600);
            }).observe(document.querySelector(".stages"), { childList: true, subtree: true });
        }""",
        orders[1]["id"],
    )
    driver.move(orders[0], "Processing")  # by another driver, so that the first card leaves
    page.wait_for_function("() => window.tapped")
    window.see(f'[data-stage="Processing"] {card(orders[0])}')
    assert page.locator("[data-pending]").count() == 0
    # A moment later it does take one.
    page.tap(f"{card(orders[1])} .btn-job")
    window.see(f"{card(orders[1])} .undo")


def test_a_tap_is_held_and_can_be_undone(visit: Visit, server: Server) -> None:
    window, driver, orders = deliveries(visit, server, 2)
    page = window.page
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    top = page.eval_on_selector(card(orders[1]), "one => one.getBoundingClientRect().top")
    page.tap(f"{card(orders[0])} .btn-job")
    window.see(f"{card(orders[0])} .undo")
    assert "Processing" in window.text(f"{card(orders[0])} .job-state")
    assert page.locator(f'[data-stage="Pending"] {card(orders[0])}').count() == 1, "it stays"
    moved = page.eval_on_selector(card(orders[1]), "one => one.getBoundingClientRect().top") - top
    assert abs(moved) < 8, "and what is below stays where it is"
    page.tap(f"{card(orders[0])} .undo")
    window.see(f"{card(orders[0])} .btn-job")
    # The other one is tapped and sent; by then the first would have been, too.
    page.tap(f"{card(orders[1])} .btn-job")
    eventually(lambda: driver.read(orders[1])["status"] == "Processing")
    assert driver.read(orders[0])["status"] == "Pending"
    window.see(f"#tap-bar >> text=Order #{orders[1]['id']} is Processing")
    assert sent.count("PUT") == 1


def test_leaving_the_page_sends_held_taps(visit: Visit, server: Server) -> None:
    """When the phone is put away or a link is followed, the taps cannot be undone any more."""
    window, driver, orders = deliveries(visit, server, 2)
    page = window.page
    page.tap(f"{card(orders[0])} .btn-job")
    window.see(f"{card(orders[0])} .undo")
    page.tap(f"{card(orders[1])} .number")
    page.wait_for_url("**/orders/*")
    eventually(lambda: driver.read(orders[0])["status"] == "Processing")
    page.go_back()
    window.see(f'[data-stage="Processing"] {card(orders[0])}:not([data-pending])')
    assert len(driver.history(orders[0])) == 3, "placed, assigned, moved once"


def test_a_tap_undone_in_one_window_is_sent_by_none(visit: Visit, server: Server) -> None:
    window, driver, orders = deliveries(visit, server, 2)
    page = window.page
    page.tap(f"{card(orders[0])} .btn-job")
    window.see(f"{card(orders[0])} .undo")
    second = window.another_tab()  # while the tap is held
    second.goto(server.url + "/deliveries?show=mine")
    second.wait_for_selector(f"{card(orders[0])} .undo")
    page.wait_for_selector(f"{card(orders[0])}:not([data-taps-blocked])")
    page.tap(f"{card(orders[0])} .undo")
    second.wait_for_selector(f"{card(orders[0])}:not([data-pending])")
    # A later tap is seen, and sent, in both; by then the first would have been, too.
    second.wait_for_selector(f"{card(orders[1])}:not([data-taps-blocked])")
    second.tap(f"{card(orders[1])} .btn-job")
    window.see(f"{card(orders[1])} .undo")
    eventually(lambda: driver.read(orders[1])["status"] == "Processing")
    assert driver.read(orders[0])["status"] == "Pending"
    assert len(driver.history(orders[1])) == 3, "placed, assigned, moved once"


def test_taps_of_two_windows_without_a_network_are_all_queued(visit: Visit, server: Server) -> None:
    window, driver, orders = deliveries(visit, server, 2)
    first, second = window.page, window.another_tab()
    second.goto(server.url + "/deliveries?show=mine")
    second.wait_for_selector('#link-state[data-state="live"]')
    window.context.set_offline(True)
    for page, order in zip((first, second), orders, strict=True):
        page.wait_for_selector(f"{card(order)}:not([data-taps-blocked])")
        page.tap(f"{card(order)} .btn-job")
        page.wait_for_selector(f'{card(order)} >> text="Processing – waiting for the network …"')
    for page in (first, second):
        page.wait_for_selector("#tap-bar >> text=2 waiting for the network")
    stored = second.evaluate("() => Object.values(localStorage).join()")
    assert all(f'"id":"{order["id"]}"' in stored for order in orders), "also for the next window"
    window.context.set_offline(False)
    eventually(lambda: statuses(driver, orders) == ["Processing", "Processing"])


def test_a_refused_tap_is_explained(visit: Visit, server: Server) -> None:
    window, _, orders = deliveries(visit, server, 2)
    admin = server.people.admin("Amir")
    window.context.set_offline(True)
    for order in orders:
        window.page.tap(f"{card(order)} .btn-job")
    window.see("#tap-bar >> text=2 waiting for the network")
    admin.delete(orders[0])
    admin.edit(orders[1], "another parcel")
    window.context.set_offline(False)
    window.see("#tap-bar >> text=It has been deleted, or you are not allowed to see it any more.")
    window.see("#tap-bar >> text=Amir changed the description")
    # The card is back as it is now, and can be tapped again.
    window.see(f"{card(orders[1])} >> text=another parcel")
    window.page.tap(f"{card(orders[1])} .btn-job")
    window.see(f"{card(orders[1])} .undo")


SMALL = """() =>
    [...document.querySelectorAll("a, button, select, summary, input:not([type=hidden]), textarea")]
        .filter((one) => one.checkVisibility() && !one.closest(".skip"))
        .map((one) => [one, one.getBoundingClientRect()])
        .filter(([one, box]) => box.width < 44 || box.height < 44)
        .map(([one, box]) => `${one.outerHTML.slice(0, 90)} ${box.width}×${box.height}`)"""


@pytest.mark.parametrize("width", [360, 1280])
def test_everything_on_a_drivers_page_is_large_enough_for_a_thumb(
    visit: Visit, server: Server, width: int
) -> None:
    people = server.people
    customer, driver = people.customer(), people.driver()
    orders = [customer.order() for _ in range(3)]
    driver.move(orders[0], "Processing")
    driver.move(orders[1], "Processing", "Shipped")
    window = visit(driver, viewport={"width": width, "height": 800}, has_touch=True)
    page = window.open("/deliveries", live=True)
    page.evaluate(
        "() => { for (const one of document.querySelectorAll('details')) one.open = true; }"
    )
    assert page.evaluate(SMALL) == []
    page.context.set_offline(True)
    page.tap(f"{card(orders[2])} .btn-job")
    window.see(f"{card(orders[2])} .undo")
    assert page.evaluate(SMALL) == []
