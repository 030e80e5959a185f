"""Unsent text is kept, whatever happens to its order or session meanwhile."""

from tests.browser.conftest import Visit, Visitor
from tests.support.servers import Server
from tests.support.waiting import eventually


def unsent(window: Visitor) -> list[str]:
    """The texts that the page offers to copy."""
    return window.page.eval_on_selector_all(
        ".unsent textarea", "all => all.map((one) => one.value)"
    )


def test_the_text_of_an_edit_that_is_too_late_can_be_copied(visit: Visit, server: Server) -> None:
    customer, driver = server.people.customer(), server.people.driver("Dewi")
    order = customer.order("tea")
    window = visit(customer, permissions=["clipboard-read", "clipboard-write"])
    page = window.open(f"/orders/{order['id']}", live=True)
    page.click("text=Edit the description")
    page.fill("#description", "tea\nand milk")
    page.click("summary:has-text('Cancel the order')")
    page.fill("#note-Cancelled", "or nothing at all")
    driver.move(order, "Processing")
    window.see(
        ".unsent >> text=Dewi moved the order to Processing, so this cannot be sent any more."
    )
    assert not page.is_visible("#description")
    assert unsent(window) == ["tea\nand milk", "or nothing at all"]
    page.click(".unsent >> text=Copy >> nth=0")
    window.see(".unsent >> text=Copied")
    assert page.evaluate("() => navigator.clipboard.readText()") == "tea\nand milk"
    driver.move(order, "Shipped")
    window.see('#state .chip[data-status="Shipped"]')
    assert unsent(window) == ["tea\nand milk", "or nothing at all"], "once, and it stays"
    page.click(".unsent >> text=Close")
    assert unsent(window) == []


def test_unsent_text_is_kept_when_the_order_is_deleted(visit: Visit, server: Server) -> None:
    customer, admin = server.people.customer(), server.people.admin("Amir")
    order = customer.order("tea")
    window = visit(customer)
    page = window.open(f"/orders/{order['id']}", live=True)
    page.click("text=Edit the description")
    page.fill("#description", "tea and milk")
    admin.delete(order)
    window.see(".unsent >> text=Amir deleted the order")
    assert unsent(window) == ["tea and milk"]


def test_unsent_text_is_kept_when_another_tab_signs_out(visit: Visit, server: Server) -> None:
    customer = server.people.customer()
    order = customer.order("a secret wish")
    window = visit(customer)
    page = window.open(f"/orders/{order['id']}", live=True)
    page.click("text=Edit the description")
    page.fill("#description", "my new words")
    other = window.another_tab()
    other.goto(f"{server.url}/orders")
    other.click("text=Sign out")
    window.see("text=You are signed out")
    assert unsent(window) == ["my new words"]
    window.see(".unsent >> text=Copy")
    assert "a secret wish" not in window.text("body")


def test_a_drivers_note_moves_with_its_order(visit: Visit, server: Server) -> None:
    people = server.people
    customer, driver, admin = people.customer(), people.driver(), people.admin()
    order, doomed = customer.order("one"), customer.order("two")
    for one in (order, doomed):
        admin.assign(one, driver)
    window = visit(driver)
    page = window.open("/deliveries?show=mine", live=True)
    job = f'.job[data-order="{order["id"]}"]'
    page.click(f"{job} >> text=Add a note")
    page.fill(f"#note-{order['id']}", "ring twice")
    admin.move(order, "Processing")
    window.see(f'[data-stage="Processing"] {job}')
    assert page.input_value(f"#note-{order['id']}") == "ring twice"
    assert page.is_visible(f"#note-{order['id']}")
    page.click(f'.job[data-order="{doomed["id"]}"] >> text=Add a note')
    page.fill(f"#note-{doomed['id']}", "to be kept")
    admin.move(doomed, "Cancelled")
    window.see(".unsent >> text=The list has changed while you were writing.")
    assert unsent(window) == ["to be kept"]
    assert page.input_value(f"#note-{order['id']}") == "ring twice"


def test_unsent_text_is_kept_when_the_order_is_hidden(visit: Visit, server: Server) -> None:
    people = server.people
    customer, driver, admin = people.customer(), people.driver(), people.admin()
    order = customer.order("one")
    window = visit(driver)
    page = window.open(f"/orders/{order['id']}", live=True)
    page.click("text=Add a note")
    page.fill("#note-Processing", "ring twice")
    answer = admin.api.request("PATCH", f"/api/admin/users/{driver.id}", json={"role": "user"})
    assert answer.status_code == 200
    window.see(".unsent >> text=not allowed to see this order any more")
    assert unsent(window) == ["ring twice"]
    eventually(lambda: "one" not in window.text("main"))
