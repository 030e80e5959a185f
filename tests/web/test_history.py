"""An order's history: the audit trail, and the events that an offline client has missed."""

import re

import pytest

from tests.support.people import People


def test_the_history_contains_every_event_of_an_order(people: People) -> None:
    owner, driver, admin = people.customer("Ann"), people.driver("Dewi"), people.admin("Bo")
    order = owner.order("apples")
    admin.assign(order, driver)
    owner.edit(order, "pears")
    driver.move(order, "Processing", note="on it")
    events = owner.history(order)
    for event in events:
        assert event.pop("order_id") == order["id"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("updated_at"))
    ann = {"id": owner.id, "name": "Ann", "role": "user"}
    bo = {"id": admin.id, "name": "Bo", "role": "admin"}
    dewi = {"id": driver.id, "name": "Dewi", "role": "driver"}
    assert events == [
        {
            "version": 1,
            "type": "created",
            "status": "Pending",
            "previous_status": None,
            "actor": ann,
            "note": None,
            "changes": {"description": "apples"},
        },
        {
            "version": 2,
            "type": "driver_assigned",
            "status": "Pending",
            "previous_status": "Pending",
            "actor": bo,
            "note": None,
            "changes": {"driver": {"id": driver.id, "name": "Dewi"}},
        },
        {
            "version": 3,
            "type": "description_changed",
            "status": "Pending",
            "previous_status": "Pending",
            "actor": ann,
            "note": None,
            "changes": {"description": "pears"},
        },
        {
            "version": 4,
            "type": "status_changed",
            "status": "Processing",
            "previous_status": "Pending",
            "actor": dewi,
            "note": "on it",
        },
    ]


def test_the_history_after_a_version_contains_exactly_the_later_events(people: People) -> None:
    admin = people.admin()
    order = admin.order()
    admin.move(order, "Processing", "Shipped", "Completed")
    for after in range(6):
        page = admin.api.get(f"/api/orders/{order['id']}/history?after={after}").json()
        assert [event["version"] for event in page["events"]] == list(range(after + 1, 5))
        assert (page["version"], page["has_more"]) == (4, False)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_has_more_says_whether_the_history_goes_on(people: People, limit: int) -> None:
    admin = people.admin()
    order = admin.order()
    admin.move(order, "Processing", "Shipped", "Completed")
    page = admin.api.get(f"/api/orders/{order['id']}/history?limit={limit}").json()
    assert [event["version"] for event in page["events"]] == list(range(1, min(limit, 4) + 1))
    assert page["has_more"] == (limit < 4)
    assert page["version"] == 4


def test_times_ascend_with_versions(people: People) -> None:
    admin = people.admin()
    order = admin.order()
    admin.move(order, "Processing")
    admin.edit(order, "other")
    admin.move(order, "Shipped", "Completed")
    times = [event["updated_at"] for event in admin.history(order)]
    assert times == sorted(times)
    assert times[-1] == admin.read(order)["updated_at"]
