"""The offline page and its service worker, which changes nothing else."""

from tests.browser.conftest import Visit, Visitor
from tests.support.servers import Server


def install_worker(window: Visitor) -> None:
    window.page.evaluate("() => navigator.serviceWorker.ready.then(() => true)")


def test_a_reload_without_a_network_shows_the_offline_page_and_recovers(
    visit: Visit, server: Server
) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    order = customer.order("a private wish")
    window = visit(customer)
    page = window.open(f"/orders/{order['id']}", live=True)
    install_worker(window)
    page.reload()
    window.wait_for_state("live")
    assert page.evaluate("() => navigator.serviceWorker.controller !== null")

    window.context.set_offline(True)
    page.reload()
    window.see("text=You are offline")
    assert "a private wish" not in window.text("body")
    background = page.evaluate("() => getComputedStyle(document.querySelector('.btn')).fontWeight")
    assert background == "600", "its style sheets came along"
    assert page.url.endswith(f"/orders/{order['id']}")

    window.context.set_offline(False)
    window.wait_for_state("live")  # by itself
    assert window.text("h1") == "a private wish"
    driver.move(order, "Processing")
    window.see('#state .chip[data-status="Processing"]')


def test_the_service_worker_caches_no_user_data(visit: Visit, server: Server) -> None:
    customer = server.people.customer("Somebody Private")
    order = customer.order("a private wish")
    window = visit(customer)
    page = window.open("/orders", live=True)
    install_worker(window)
    for path in (f"/orders/{order['id']}", "/orders", "/board", f"/api/orders/{order['id']}"):
        page.goto(server.url + path)
    kept = page.evaluate(
        """async () => {
            const found = [];
            for (const name of await caches.keys()) {
                const cache = await caches.open(name);
                for (const request of await cache.keys()) {
                    const text = await (await cache.match(request)).text();
                    found.push([new URL(request.url).pathname, text]);
                }
            }
            return found;
        }"""
    )
    assert len(kept) == 5
    assert {path.split("/")[1] for path, _ in kept} == {"offline", "static"}
    assert not any("rivate" in text for _, text in kept)


def test_forms_work_through_the_service_worker(visit: Visit, server: Server) -> None:
    """Redirects, cookies and posts pass it by."""
    customer = server.people.customer()
    window = visit(customer)
    page = window.open("/orders", live=True)
    install_worker(window)
    page.reload()
    page.fill("#description", "through the worker")
    page.click("text=Place the order")
    window.see("text=Your order is placed")
    page.click("text=Sign out")
    page.wait_for_url("**/login")
    page.goto(f"{server.url}/orders")
    page.wait_for_url("**/login?next=/orders")
    page.fill("#email", customer.email)
    page.fill("#password", customer.password)
    page.click("main .btn-primary")
    page.wait_for_url("**/orders")
    assert "through the worker" in window.text("main")
