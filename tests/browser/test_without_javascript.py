"""Without JavaScript every action works by forms and redirects."""

from tests.browser.conftest import Visit
from tests.support.servers import Server


def test_a_customers_job(visit: Visit, server: Server) -> None:
    window = visit(java_script_enabled=False)
    page = window.open("/register")
    page.fill("#name", "Ana")
    page.fill("#email", f"plain-{server.people.driver().id}@example.org")
    page.fill("#password", "short")
    page.click("text=Create the account")
    assert "at least 8 characters" in window.text("main")
    page.fill("#password", "long enough")
    page.click("text=Create the account")
    page.wait_for_url("**/orders")
    page.fill("#description", "a kettle")
    page.click("text=Place the order")
    page.wait_for_url("**/orders/*")
    assert "UTC" in window.text("#changed")
    page.click("text=Edit the description")
    page.fill("#description", "a red kettle")
    page.click("text=Save the description")
    assert window.text("h1") == "a red kettle"
    page.click("summary:has-text('Cancel the order')")
    page.click("text=Yes, cancel it")
    assert window.text("#state").strip() == "Cancelled"
    page.click("text=My orders")
    assert "a red kettle" in window.text(".orders")
    page.fill("#description", "a mistake")
    page.click("text=Place the order")
    page.click("summary:has-text('Delete the order')")
    page.click("text=Yes, delete it")
    assert "is deleted" in window.text(".notice")
    page.click("text=Sign out")
    page.wait_for_url("**/login")
    assert "signed out" in window.text(".notice")


def test_a_drivers_job(visit: Visit, server: Server) -> None:
    customer, driver, admin = (
        server.people.customer(),
        server.people.driver(),
        server.people.admin(),
    )
    order = customer.order()
    admin.assign(order, driver)
    window = visit(driver, java_script_enabled=False)
    page = window.open("/deliveries?show=mine")
    job = f'.job[data-order="{order["id"]}"]'
    for status in ("Processing", "Shipped"):
        page.click(f"{job} .btn-job")
        assert f"is {status} now" in window.text(".notice")
    page.click(f"{job} summary.btn-job")
    page.fill(f"{job} [name=note]", "At the door")
    page.click(f"{job} form .btn-job")
    assert page.locator(job).count() == 0
    last = driver.history(order)[-1]
    assert (last["status"], last["note"]) == ("Completed", "At the door")


def test_a_stale_form_is_explained(visit: Visit, server: Server) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    order = customer.order("tea")
    window = visit(customer, java_script_enabled=False)
    page = window.open(f"/orders/{order['id']}")
    driver.move(order, "Processing")
    page.click("text=Edit the description")
    page.fill("#description", "coffee")
    page.click("text=Save the description")
    assert "the order has changed in the meantime" in window.text("[role=alert]")
    assert window.text("#state").strip() == "Processing"
    assert customer.read(order)["description"] == "tea"


def test_a_dispatchers_job(visit: Visit, server: Server) -> None:
    customer, driver, admin = (
        server.people.customer(),
        server.people.driver(),
        server.people.admin(),
    )
    orders = [customer.order(f"box {number}") for number in range(2)]
    window = visit(admin, java_script_enabled=False)
    page = window.open(f"/board?customer={customer.id}")
    page.click(".bulk >> text=Move")
    assert "No order was selected" in window.text(".notice")
    for order in orders:
        page.check(f"#pick-{order['id']}")
    page.select_option("#bulk-driver", driver.id)
    page.click(".bulk >> text=Assign")
    assert "2 orders to" in window.text("h1")
    page.click("text=No, back to the board")
    assert page.locator("[name=order]:checked").count() == 2
    page.select_option("#bulk-driver", driver.id)
    page.click(".bulk >> text=Assign")
    page.click("#yes")
    assert "2 orders assigned" in window.text(".notice")
    page.click(f'tr[data-order="{orders[0]["id"]}"] .c-id a')
    page.select_option("#driver", "")
    page.click(".assign button")
    assert window.text("#driver-name") == "Nobody yet"
    page.click("summary:has-text('Cancel the order')")
    page.click("text=Yes, cancel it")
    assert window.text("#state").strip() == "Cancelled"
    page.click("text=Audit trail")
    assert page.locator("tbody tr").count() == 4
    assert "cancelled the order" not in window.text("main")
    window.open(f"/users?after={int(customer.id) - 1}")
    page.select_option(f"#role-{customer.id}", "driver")
    page.click(f"li:has(#role-{customer.id}) >> text=Save")
    assert page.input_value(f"#role-{customer.id}") == "driver"


def test_a_form_older_than_the_access_token_is_accepted(visit: Visit, server: Server) -> None:
    customer = server.people.customer()
    window = visit(customer, java_script_enabled=False)
    page = window.open("/orders")
    window.context.clear_cookies(name="access_token_cookie")
    page.fill("#description", "written slowly")
    page.click("text=Place the order")
    assert window.text("h1") == "written slowly"
