"""The board in a browser: selecting orders, and the layout on a narrow screen."""

import pytest

from tests.browser.conftest import Visit
from tests.support.servers import Server


def test_buttons_need_a_selection_and_shift_selects_a_range(visit: Visit, server: Server) -> None:
    people = server.people
    customer, admin = people.customer(), people.admin()
    orders = [customer.order(f"parcel {number}") for number in range(6)][
        ::-1
    ]  # as the board has them
    window = visit(admin)
    page = window.open(f"/board?customer={customer.id}", live=True)
    buttons = page.locator(".bulk button")
    assert buttons.count() == 2
    assert all(buttons.nth(index).is_disabled() for index in range(2))

    page.click(f"#pick-{orders[1]['id']}")
    page.click(f"#pick-{orders[4]['id']}", modifiers=["Shift"])
    checked = "all => all.filter((one) => one.checked).map((one) => one.value)"
    picked = [order["id"] for order in orders[1:5]]
    assert page.eval_on_selector_all("[name=order]", checked) == picked
    assert "4 selected" in window.text("#selected")
    assert buttons.nth(0).is_enabled()
    page.click(f"#pick-{orders[2]['id']}", modifiers=["Shift"])  # and takes a range away
    assert page.eval_on_selector_all("[name=order]", checked) == [orders[1]["id"]]

    page.select_option("#bulk-status", "Cancelled")
    page.click(".bulk >> text=Move")
    window.see("text=Cancel 1 order?")
    assert customer.name in window.text("main")
    page.click("text=No, back to the board")
    window.wait_for_state("live")
    assert page.eval_on_selector_all("[name=order]", checked) == [orders[1]["id"]]
    assert page.locator(".bulk button").nth(0).is_enabled()
    page.uncheck(f"#pick-{orders[1]['id']}")
    assert page.locator(".bulk button").nth(0).is_disabled()
    assert customer.read(orders[1])["status"] == "Pending"


@pytest.mark.parametrize("java_script", [True, False])
def test_on_a_narrow_screen_the_first_order_is_near_the_top(
    visit: Visit, server: Server, java_script: bool
) -> None:
    people = server.people
    customer, admin = people.customer(), people.admin()
    order = customer.order("seen at once")
    window = visit(
        admin,
        viewport={"width": 360, "height": 640},
        has_touch=True,
        java_script_enabled=java_script,
    )
    page = window.open(f"/board?customer={customer.id}")
    box = page.locator(f'tr[data-order="{order["id"]}"]').bounding_box()
    assert box is not None
    assert box["y"] < 320, "in the upper half"
    # What changes several orders comes with the first selected one, at the lower edge.
    assert not page.is_visible(".bulk")
    page.check(f"#pick-{order['id']}")
    window.see(".bulk")
    # The filters are one tap away.
    assert not page.is_visible("#q")
    page.check("#all-filters")
    window.see("#q")
    page.fill("#q", f"#{order['id']}")
    page.click(".filter-buttons button")
    window.see(f'tr[data-order="{order["id"]}"]')
    assert "on" in window.text(".filters-toggle")
