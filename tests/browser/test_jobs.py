"""The whole job of each role, while others work beside it."""

from tests.browser.conftest import Visit, Visitor
from tests.support.servers import Server
from tests.support.waiting import eventually


def sign_in(window: Visitor, email: str, password: str) -> None:
    page = window.page
    page.fill("#email", email)
    page.fill("#password", password)
    page.click("main .btn-primary")
    page.wait_for_url(lambda url: "/login" not in url)


def test_an_order_from_sign_up_to_delivery(visit: Visit, server: Server) -> None:
    """Three browsers at once: the customer watches, the driver moves, the dispatcher sees."""
    driver, admin = server.people.driver("Dewi"), server.people.admin("Amir")

    customers = visit()
    page = customers.open("/")
    page.click("text=Create an account")
    page.fill("#name", "Ana Lee")
    page.fill("#email", f"ana-{server.people.driver().id}@example.org")
    page.fill("#password", "a long password")
    page.click("text=Create the account")
    customers.wait_for_state("live")
    assert "No orders yet" in customers.text("main")
    page.fill("#description", "forty sandwiches, half of them vegetarian")
    page.click("text=Place the order")
    page.wait_for_url("**/orders/*")
    customers.wait_for_state("live")
    assert "Your order is placed" in customers.text(".notice")
    number = page.get_attribute("#order", "data-order")

    board = visit(admin)
    board.open("/board?q=forty+sandwiches", live=True)
    row = f'tr[data-order="{number}"]'
    board.see(row)

    phone = visit(driver, viewport={"width": 390, "height": 800}, has_touch=True)
    phone.open("/deliveries", live=True)
    job = f'.job[data-order="{number}"]'
    for status in ("Processing", "Shipped"):
        phone.page.tap(f"{job} .btn-job")
        phone.see(f"{job} .undo")
        customers.see(f'#state .chip[data-status="{status}"]')
        board.see(f'{row}[data-status="{status}"]')
        phone.see(f'[data-stage="{status}"] {job}:not([data-pending])')

    # The last step cannot be undone, so one tap does not take it.
    phone.page.tap(f"{job} summary.btn-job")
    assert "for certain" in phone.text(job)
    assert customers.text("#state").strip() == "Shipped"
    phone.page.fill(f"{job} [name=note]", "Left at the front desk")
    phone.page.tap(f"{job} form .btn-job")
    customers.see('#state .chip[data-status="Completed"]')
    board.see(f'{row}[data-status="Completed"]')
    eventually(lambda: phone.page.locator(job).count() == 0)

    for status in ("Processing", "Shipped", "Completed"):
        assert "Dewi" in customers.text(f'.step[data-step="{status}"]')
    assert "Left at the front desk" in customers.text("#history .entry:first-child")


def test_a_customer_edits_and_cancels_while_it_is_pending(visit: Visit, server: Server) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    order = customer.order("a lamp")
    window = visit()
    page = window.open(f"/orders/{order['id']}")
    sign_in(window, customer.email, customer.password)
    assert page.url.endswith(f"/orders/{order['id']}"), "after signing in it goes on where it was"

    page.click("text=Edit the description")
    page.fill("#description", "a lamp, warm light")
    page.click("text=Save the description")
    window.see(".notice-done")
    assert window.text("h1") == "a lamp, warm light"

    page.click("summary:has-text('Cancel the order')")
    page.fill("#note-Cancelled", "Bought one myself")
    page.click("text=Yes, cancel it")
    window.see('.step[data-step="Cancelled"]')
    places = page.eval_on_selector_all(".step", "all => all.map(one => one.dataset.progress)")
    assert places == ["done", "current", "skipped", "skipped", "skipped"]

    other = customer.order("a chair")
    driver.move(other, "Processing")
    window.open(f"/orders/{other['id']}", live=True)
    assert not page.is_visible("text=Edit the description")
    assert not page.is_visible("text=Cancel the order")


def test_a_stale_form_overwrites_nothing_and_keeps_the_typed_text(
    visit: Visit, server: Server
) -> None:
    customer, admin = server.people.customer(), server.people.admin()
    order = customer.order("tea")
    window = visit(customer)
    page = window.open(f"/orders/{order['id']}", live=True)
    page.click("text=Edit the description")
    page.fill("#description", "tea and milk")
    admin.edit(order, "tea and lemon")
    window.see('#order[data-version="2"]')
    assert window.text("h1") == "tea and lemon", "the page shows the change"
    assert page.input_value("#description") == "tea and milk", "and keeps what is being typed"
    page.click("text=Save the description")
    window.see("text=the order has changed in the meantime")
    assert customer.read(order)["description"] == "tea and lemon"
    assert window.text("h1") == "tea and lemon"
    assert page.input_value("#description") == "tea and milk"
    page.click("text=Save the description")
    window.see(".notice-done")
    assert customer.read(order)["description"] == "tea and milk"


def test_taps_without_a_network_are_queued_and_sent_when_it_is_back(
    visit: Visit, server: Server
) -> None:
    customer, driver, admin = (
        server.people.customer(),
        server.people.driver(),
        server.people.admin("Amir"),
    )
    mine, taken = customer.order("goes well"), customer.order("somebody is quicker")
    for order in (mine, taken):
        admin.assign(order, driver)
    window = visit(driver)
    window.open("/deliveries?show=mine", live=True)
    window.context.set_offline(True)
    for order in (mine, taken):
        job = f'.job[data-order="{order["id"]}"]'
        window.page.click(f"{job} .btn-job")
    for order in (mine, taken):
        window.see(f'.job[data-order="{order["id"]}"] >> text=waiting for the network')
    window.see("#tap-bar >> text=2 waiting for the network")
    admin.move(taken, "Cancelled", note="They rang, <b>no longer</b> needed")
    window.context.set_offline(False)

    eventually(lambda: driver.read(mine)["status"] == "Processing")
    window.see(f'[data-stage="Processing"] .job[data-order="{mine["id"]}"]:not([data-pending])')
    window.see(f"#tap-bar >> text=Order #{taken['id']} was not set to Processing")
    window.see("#tap-bar >> text=Amir cancelled it")
    assert "“They rang, <b>no longer</b> needed”" in window.text("#tap-bar")
    assert "version" not in window.text("#tap-bar")
    assert "waiting" not in window.text("#tap-bar")
    eventually(lambda: window.page.locator(f'.job[data-order="{taken["id"]}"]').count() == 0)
    assert driver.read(taken)["status"] == "Cancelled"
    assert [event["status"] for event in driver.history(mine)].count("Processing") == 1

    # It stays until it has been read, also through a reload.
    window.page.reload()
    window.see("#tap-bar >> text=Amir cancelled it")
    window.page.click("#tap-bar .read")
    window.page.wait_for_selector("#tap-bar", state="hidden")
    window.open("/deliveries", live=True)
    assert not window.page.is_visible("#tap-bar")


def test_a_queued_tap_survives_a_reload(visit: Visit, server: Server) -> None:
    customer, driver = server.people.customer(), server.people.driver()
    order = customer.order()
    window = visit(driver)
    page = window.open("/deliveries", live=True)
    page.route("**/api/orders/*/status", lambda route: route.abort())
    job = f'.job[data-order="{order["id"]}"]'
    page.click(f"{job} .btn-job")
    window.see(f"{job} >> text=waiting for the network")
    page.reload()
    window.see(f"{job}[data-pending]")
    page.unroute("**/api/orders/*/status")
    eventually(lambda: driver.read(order)["status"] == "Processing")


def test_a_dispatcher_filters_assigns_moves_exports_and_audits(
    visit: Visit, server: Server
) -> None:
    people = server.people
    customer, driver, admin = people.customer("Customer Unique"), people.driver(), people.admin()
    orders = [customer.order(f"parcel {number}") for number in range(3)]
    driver.move(orders[0], "Processing", "Shipped")
    window = visit(admin, accept_downloads=True)
    page = window.open("/board", live=True)

    page.fill("#customer", "customer unique")
    page.select_option("#filter-driver", "none")
    page.click(".filters button")
    page.wait_for_url("**customer=customer+unique**")
    window.wait_for_state("live")
    rows = page.locator("tbody tr")
    assert rows.count() == 3
    page.click('.counts a[data-status="Pending"]')
    page.wait_for_url("**status=Pending**")
    window.wait_for_state("live")
    assert rows.count() == 2

    for order in orders[1:]:
        page.check(f"#pick-{order['id']}")
    assert "2 selected" in window.text("#selected")
    page.select_option("#bulk-driver", driver.id)
    page.click(".bulk >> text=Assign")
    page.click("#yes")
    window.see("text=2 orders assigned")
    assert "No order matches" in window.text("main")

    page.goto(f"{server.url}/board?customer={customer.id}")
    window.wait_for_state("live")
    for order in orders:
        page.check(f"#pick-{order['id']}")
    page.select_option("#bulk-status", "Processing")
    page.click(".bulk >> text=Move")
    window.see("text=Move 2 orders to Processing?")
    page.click("#yes")
    window.see("text=1 order was left as it is")
    assert "2 orders moved to Processing." in window.text("main")
    assert f"#{orders[0]['id']} It was Shipped, and is left so" in window.text("main")
    page.click("text=Back to the board")
    window.wait_for_state("live")
    assert page.is_checked(f"#pick-{orders[0]['id']}")
    assert [one.get_attribute("value") for one in page.locator("[name=order]:checked").all()] == [
        orders[0]["id"]
    ]
    assert [admin.read(order)["status"] for order in orders] == [
        "Shipped",
        "Processing",
        "Processing",
    ]

    with page.expect_download() as download:
        page.click("text=Export as CSV")
    lines = download.value.path().read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("id,status,description")

    # Changes by others appear by themselves, also orders that now match the filter.
    window.wait_for_state("live")
    late = customer.order("a fourth parcel")
    window.see(f'tr[data-order="{late["id"]}"]')

    page.click(f'tr[data-order="{late["id"]}"] .c-id a')
    page.click("summary:has-text('Delete the order')")
    page.click("text=Yes, delete it")
    window.see(f"text=Order #{late['id']} is deleted")
    page.goto(f"{server.url}/board?deleted=yes&customer={customer.id}")
    page.click(f'tr[data-order="{late["id"]}"] .c-id a')
    window.see("text=audit trail")
    assert "deleted" in window.text("tbody tr:last-child")


def test_a_changed_role_takes_effect_at_once(visit: Visit, server: Server) -> None:
    people = server.people
    customer, admin = people.customer(), people.admin()
    theirs = visit(customer)
    theirs.open("/orders", live=True)
    window = visit(admin)
    page = window.open(f"/users?after={int(customer.id) - 1}")
    page.select_option(f"#role-{customer.id}", "driver")
    page.click(f"li:has(#role-{customer.id}) >> text=Save")
    window.see("text=Saved")
    theirs.open("/deliveries", live=True)
    page.select_option(f"#role-{customer.id}", "user")
    page.click(f"li:has(#role-{customer.id}) >> text=Save")
    theirs.see("text=You do not have access to this page")
    theirs.open("/orders", live=True)
    page.goto(f"{server.url}/users?after={int(customer.id) - 1}")
    person = f"li:has(#role-{customer.id})"
    page.click(f"{person} >> summary")
    assert not page.is_visible(".notice"), "one click only asks"
    assert customer.signed_in_again().api.get("/api/me").status_code == 200
    page.click(f"{person} >> text=Yes, deactivate")
    window.see("text=Saved")
    theirs.see("text=You are signed out")
