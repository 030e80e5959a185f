"""Watching orders: changes appear in order and once, whatever the network does."""

import random
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, WebSocketRoute

from ordertrack.services.orders import REPLAY_LIMIT
from tests.browser.conftest import Visit, Visitor
from tests.support.servers import Server
from tests.support.waiting import eventually

# The sockets' address, not the library's file.
SOCKETS = re.compile(r"/socket\.io/\?")


def steps(visitor: Visitor) -> list[str]:
    """The statuses that the page's history shows, in the order in which they came."""
    found = visitor.page.eval_on_selector_all(
        "#history .entry", "all => all.map(one => one.dataset.version + ' ' + one.dataset.status)"
    )
    return found[::-1]


def remember(page: Page) -> None:
    """Mark the document, so that a reload would be noticed."""
    page.evaluate("() => { window.neverReloaded = true; }")


def was_reloaded(page: Page) -> bool:
    return not page.evaluate("() => window.neverReloaded === true")


def test_a_change_is_shown_announced_and_put_into_the_title(visit: Visit, server: Server) -> None:
    customer, driver = server.people.customer("Ana"), server.people.driver("Dewi")
    order = customer.order("a blue kettle")
    window = visit(customer)
    page = window.open(f"/orders/{order['id']}", live=True)
    remember(page)

    driver.move(order, "Processing", note="Packed with care")
    window.see('#state .chip[data-status="Processing"]')
    assert "Dewi" in window.text('.step[data-step="Processing"]')
    assert "Packed with care" in window.text("#history .entry:first-child")
    toasts = page.locator("#toasts")
    assert toasts.get_attribute("role") == "status"
    assert f"Order #{order['id']} is Processing" in toasts.inner_text()
    assert page.title() == f"#{order['id']} Processing – OrderTrack"

    # In the background the tab says it; seen again, the title is the order's.
    page.evaluate(
        "() => Object.defineProperty(document, 'hidden', { get: () => window.away ?? true })"
    )
    driver.move(order, "Shipped")
    eventually(lambda: page.title() == f"(1) Order #{order['id']} is Shipped")
    page.evaluate(
        "() => { window.away = false; document.dispatchEvent(new Event('visibilitychange')); }"
    )
    assert page.title() == f"#{order['id']} Shipped – OrderTrack"
    assert not was_reloaded(page)


def test_changes_while_offline_are_shown_in_order_afterwards(visit: Visit, server: Server) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    order = customer.order()
    window = visit(customer)
    page = window.open(f"/orders/{order['id']}", live=True)
    remember(page)

    window.context.set_offline(True)
    window.wait_for_state("offline")
    driver.move(order, "Processing", "Shipped")
    assert steps(window) == ["1 Pending"]
    window.context.set_offline(False)

    window.see('#state .chip[data-status="Shipped"]')
    assert steps(window) == ["1 Pending", "2 Processing", "3 Shipped"]
    window.wait_for_state("live")
    assert not was_reloaded(page)


def _refuse(socket: WebSocketRoute) -> None:
    socket.close(code=1011)


def test_without_websockets_changes_come_by_long_polling(visit: Visit, server: Server) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    order = customer.order()
    window = visit(customer)
    window.context.route_web_socket(SOCKETS, _refuse)
    page = window.open(f"/orders/{order['id']}", live=True)
    assert "polling" in window.text("#link-state").lower()
    driver.move(order, "Processing", "Shipped")
    window.see('#state .chip[data-status="Shipped"]')
    assert steps(window) == ["1 Pending", "2 Processing", "3 Shipped"]
    assert "polling" in page.get_attribute("#link-state", "title")


def test_without_any_connection_the_history_is_polled(visit: Visit, server: Server) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    order = customer.order()
    window = visit(customer)
    window.context.route(SOCKETS, lambda route: route.abort())
    window.context.route_web_socket(SOCKETS, _refuse)
    window.open(f"/orders/{order['id']}")
    window.wait_for_state("polling")
    assert window.text("#link-state") == "Polling"
    driver.move(order, "Processing", "Shipped")
    window.see('#state .chip[data-status="Shipped"]')
    assert steps(window) == ["1 Pending", "2 Processing", "3 Shipped"]


def test_the_page_survives_a_restart_of_the_server(
    visit: Visit, database: str, start_server: Callable[..., Server], server: Server
) -> None:
    own = start_server(database)
    customer, driver = own.people.customer(), server.people.driver()
    order = customer.order()
    window = visit(customer, at=own)
    page = window.open(f"/orders/{order['id']}", live=True)
    remember(page)
    own.kill()
    driver.move(order, "Processing", "Shipped")  # through another server, as after a failover
    start_server(database, PORT=str(own.port))
    window.see('#state .chip[data-status="Shipped"]')
    assert steps(window) == ["1 Pending", "2 Processing", "3 Shipped"]
    assert not was_reloaded(page)


@pytest.mark.parametrize("seed", range(3))
def test_page_and_events_converge_to_what_a_reload_shows(
    visit: Visit, server: Server, seed: int
) -> None:
    """Also while the connection comes and goes, for every kind of change, for owner and admin."""
    chance = random.Random(seed)
    people = server.people
    customer, driver, admin = people.customer("Ana"), people.driver("Dewi"), people.admin("Amir")
    order = customer.order("first")
    windows = [visit(customer), visit(admin)]
    for window in windows:
        window.open(f"/orders/{order['id']}", live=True)
    changes = [
        lambda: admin.edit(order, f"another wish, {chance.random()}"),
        lambda: admin.assign(order, driver),
        lambda: admin.assign(order, None),
        lambda: driver.move(order, "Processing", note="<b>on it</b>"),
        lambda: admin.edit(order, "last wish"),
        lambda: admin.assign(order, driver),
        chance.choice(
            [lambda: admin.move(order, "Cancelled"), lambda: driver.move(order, "Shipped")]
        ),
    ]
    for change in changes:
        if chance.random() < 0.4:
            away = chance.choice(windows)
            away.context.set_offline(True)
            change()
            away.context.set_offline(False)
        else:
            change()
    version = admin.read(order)["version"]
    for window in windows:
        window.see(f'#order[data-version="{version}"]')
        window.wait_for_state("live")
        shown = _shown(window.page)
        window.page.reload()
        window.wait_for_state("live")
        assert shown == _shown(window.page)


def _shown(page: Page) -> dict[str, object]:
    """All that the page shows and would send."""
    return page.evaluate(
        """() => ({
            text: document.querySelector("#order").innerText,
            title: document.title,
            fields: [...document.querySelectorAll("#order input, #order select, #order textarea")]
                .map((field) => `${field.name}=${field.value}`),
            hidden: [...document.querySelectorAll("#order *")].map((part) => part.hidden),
            places: [...document.querySelectorAll(".step")]
                .map((step) => `${step.dataset.step} ${step.dataset.progress} ${step.ariaCurrent}`),
            times: [...document.querySelectorAll("#order time")]
                .map((time) => `${time.dateTime} ${time.title}`),
        })"""
    )


@pytest.mark.parametrize("path", ["/board?customer={}", "/deliveries", "/orders"])
def test_a_list_converges_to_what_a_reload_shows(visit: Visit, server: Server, path: str) -> None:
    chance = random.Random(path)
    people = server.people
    customer, driver, admin = people.customer("Ana"), people.driver("Dewi"), people.admin("Amir")
    watcher = customer if path == "/orders" else admin
    orders = [customer.order(f"parcel {number}") for number in range(4)]
    window = visit(watcher)
    page = window.open(path.format(customer.id), live=True)
    remember(page)
    changes = [
        lambda: orders.append(customer.order("one more")),
        lambda: driver.move(orders[0], "Processing", "Shipped"),
        lambda: driver.move(orders[1], "Processing"),
        lambda: admin.assign(orders[2], driver),
        lambda: admin.edit(orders[3], "renamed"),
        lambda: admin.delete(orders.pop(1)),
    ]
    chance.shuffle(changes)
    for change in changes:
        window.context.set_offline(chance.random() < 0.3)
        change()
    window.context.set_offline(False)
    shown = (
        "() => [...document.querySelectorAll('[data-refresh]')].map((one) => one.innerText).join()"
    )
    fresh = visit(watcher)

    def is_what_a_reload_would_show() -> bool:
        fresh.open(path.format(customer.id), live=True)
        return bool(page.evaluate(shown) == fresh.page.evaluate(shown))

    eventually(is_what_a_reload_would_show)
    assert not was_reloaded(page)


def test_ticked_boxes_and_typed_text_survive_a_refresh(visit: Visit, server: Server) -> None:
    people = server.people
    customer, driver, admin = people.customer(), people.driver(), people.admin()
    orders = [customer.order(f"parcel {number}") for number in range(3)]
    window = visit(admin)
    page = window.open(f"/board?customer={customer.id}", live=True)
    page.check(f"#pick-{orders[0]['id']}")
    page.check(f"#pick-{orders[2]['id']}")
    page.fill("#q", "half a wo")
    driver.move(orders[0], "Processing")
    late = customer.order("a late one")
    window.see(f'tr[data-order="{late["id"]}"]')
    assert page.is_checked(f"#pick-{orders[0]['id']}")
    assert page.is_checked(f"#pick-{orders[2]['id']}")
    assert page.input_value("#q") == "half a wo"
    assert page.evaluate("() => document.activeElement.id") == "q"
    assert "2 selected" in window.text("#selected")


def test_after_a_reset_the_present_state_is_shown(visit: Visit, server: Server) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    order = customer.order()
    window = visit(customer)
    window.open(f"/orders/{order['id']}", live=True)
    window.context.set_offline(True)
    for number in range(REPLAY_LIMIT + 1):
        customer.edit(order, f"wish {number}")
    driver.move(order, "Processing")
    window.context.set_offline(False)
    window.see('#state .chip[data-status="Processing"]')
    window.wait_for_state("live")
    assert window.text("h1") == f"wish {REPLAY_LIMIT}"
    assert "earlier entries" in window.text(".story")


def test_times_are_in_the_readers_zone_with_the_exact_utc_beside_them(
    visit: Visit, server: Server
) -> None:
    customer = server.people.customer()
    order = customer.order()
    texts = []
    for zone in ("Asia/Tokyo", "America/Lima"):
        window = visit(customer, timezone_id=zone, locale="en-GB")
        page = window.open(f"/orders/{order['id']}", live=True)
        time = page.locator("#changed time")
        utc = order["updated_at"]
        assert time.get_attribute("title") == f"{utc[:10]} {utc[11:19]} UTC"
        texts.append(time.inner_text())
    assert texts[0] != texts[1]


def test_a_deleted_order_is_announced(visit: Visit, server: Server) -> None:
    customer, admin = server.people.customer(), server.people.admin("Amir")
    order = customer.order()
    window = visit(customer)
    page = window.open(f"/orders/{order['id']}", live=True)
    admin.delete(order)
    window.see("#gone")
    assert "Amir" in window.text("#gone")
    assert not page.is_visible("#actions")


def test_the_own_list_follows_the_feed(visit: Visit, server: Server) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    order = customer.order("a red kettle")
    window = visit(customer)
    page = window.open("/orders", live=True)
    remember(page)
    driver.move(order, "Processing")
    window.see(f'.order-row[data-order="{order["id"]}"] .chip[data-status="Processing"]')
    placed = customer.order("one more, from the phone")
    window.see(f'.order-row[data-order="{placed["id"]}"]')
    assert page.locator(".order-row").count() == 2
    assert not was_reloaded(page)


@pytest.mark.safety("scripts-frames-caches")
def test_text_of_users_is_never_interpreted_as_html(visit: Visit, server: Server) -> None:
    evil = """<img src=x onerror="alert(1)"><script>alert(2)</script>'"&{{7*7}}"""
    people = server.people
    customer, driver, admin = people.customer(evil), people.driver(evil), people.admin(evil)
    order = customer.order(evil)
    window = visit(admin)
    window.page.on("dialog", lambda _: window.complaints.append("a script ran"))
    page = window.open(f"/orders/{order['id']}", live=True)
    driver.move(order, "Processing", note=evil)
    customer_sees = page.locator("#history .entry").first
    window.see('#state .chip[data-status="Processing"]')
    assert evil in customer_sees.inner_text()
    admin.edit(order, f"{evil} again")
    admin.assign(order, driver)
    window.see('#order[data-version="4"]')
    assert page.inner_text("h1") == f"{evil} again"
    for path in (f"/orders/{order['id']}/history", f"/board?customer={customer.id}", "/deliveries"):
        window.open(path)
        assert evil in window.text("main")
    assert page.locator("main img, main script").count() == 0
