"""The size of an order's page on the wire; a second page costs little more than its text."""

from typing import Any

from tests.browser.conftest import Visit
from tests.support.servers import Server

BUDGET = 150 * 1000  # bytes with everything


def test_an_orders_page_is_small_and_its_files_are_fetched_once(
    visit: Visit, server: Server
) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    order, other = customer.order(), customer.order()
    driver.move(order, "Processing", "Shipped")
    window = visit(customer)
    devtools = window.context.new_cdp_session(window.page)
    devtools.send("Network.enable")
    weights: list[int] = []

    def loaded(event: Any) -> None:
        weights.append(int(event["encodedDataLength"]))

    devtools.on("Network.loadingFinished", loaded)
    window.open(f"/orders/{order['id']}", live=True)
    assert 0 < sum(weights) < BUDGET
    assert len(weights) < 15
    weights.clear()
    window.open(f"/orders/{other['id']}", live=True)
    assert sum(weights) < 10_000
