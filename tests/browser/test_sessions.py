"""Sessions of open pages: renewed while they are open, ended in all tabs at once."""

from collections.abc import Callable

from tests.browser.conftest import Visit
from tests.support.servers import Server
from tests.support.waiting import eventually


def cookies(window: "object") -> dict[str, str]:
    return {one["name"]: one["value"] for one in window.context.cookies()}  # type: ignore[attr-defined]


def test_an_open_page_renews_its_token_and_misses_no_event(
    visit: Visit, database: str, start_server: Callable[..., Server]
) -> None:
    own = start_server(database, ACCESS_TOKEN_SECONDS="2")
    customer, driver = own.people.customer(), own.people.driver()
    order = customer.order()
    window = visit(customer, at=own)
    window.open(f"/orders/{order['id']}", live=True)
    first = cookies(window)["access_token_cookie"]
    eventually(lambda: cookies(window).get("access_token_cookie") not in (None, first))
    window.wait_for_state("live")
    driver.signed_in_again().move(order, "Processing")
    window.see('#state .chip[data-status="Processing"]')

    # After hours away only the long-lived cookie is left; the next page does with it.
    window.context.clear_cookies(name="access_token_cookie")
    window.open(f"/orders/{order['id']}", live=True)
    assert "access_token_cookie" in cookies(window)


def test_signing_out_in_one_tab_ends_the_page_in_the_other(visit: Visit, server: Server) -> None:
    customer = server.people.customer()
    order = customer.order("a secret wish")
    window = visit(customer)
    window.open(f"/orders/{order['id']}", live=True)
    other = window.another_tab()
    other.goto(f"{server.url}/orders")
    other.click("text=Sign out")
    other.wait_for_url("**/login")
    window.see("text=You are signed out")
    assert "a secret wish" not in window.text("body")
    assert window.text("body").lower().count("signed out") == 1, "said once"
    assert "ended here or in another window" in window.text("main"), "with its reason"
    window.page.click("text=Sign in again")
    window.page.wait_for_url(f"**/login?next=%2Forders%2F{order['id']}")
    assert not [name for name in cookies(window) if "token" in name]


def test_scripts_and_other_sites_cannot_read_the_cookies(visit: Visit, server: Server) -> None:
    customer = server.people.customer()
    window = visit()
    page = window.open("/login")
    page.fill("#email", customer.email)
    page.fill("#password", customer.password)
    page.click("main .btn-primary")
    page.wait_for_url("**/orders")
    tokens = [one for one in window.context.cookies() if "token" in one["name"]]
    assert len(tokens) == 2
    assert all(one["httpOnly"] and one["sameSite"] == "Lax" for one in tokens)
    assert "token" not in page.evaluate("() => document.cookie")
