"""Orders over REST: place, read, edit, assign, delete; ETag and If-Match."""

import re
from typing import Any

import pytest

from tests.support.people import People, Person

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_a_placed_order_can_be_read(people: People) -> None:
    owner = people.customer("Ann")
    answer = owner.api.post("/api/orders", json={"description": "  two boxes  "})
    assert answer.status_code == 201
    order = answer.json()
    assert {key: order[key] for key in order if key not in {"id", "created_at", "updated_at"}} == {
        "description": "two boxes",
        "status": "Pending",
        "version": 1,
        "customer": {"id": owner.id, "name": "Ann"},
        "driver": None,
        "next_statuses": ["Cancelled"],
    }
    assert order["id"].isdecimal()
    assert TIME.fullmatch(order["created_at"])
    assert order["updated_at"] == order["created_at"]
    assert answer.headers["Location"].endswith(f"/api/orders/{order['id']}")
    assert answer.headers["ETag"] == '"1"'

    read = owner.api.get(answer.headers["Location"])
    assert (read.status_code, read.headers["ETag"], read.json()) == (200, '"1"', order)


def test_next_statuses_are_those_that_the_caller_may_set(people: People) -> None:
    owner, driver, admin = people.customer(), people.driver(), people.admin()
    order = owner.order()
    offered = {
        "Pending": (["Cancelled"], ["Processing"], ["Processing", "Cancelled"]),
        "Processing": ([], ["Shipped"], ["Shipped", "Cancelled"]),
        "Shipped": ([], ["Completed"], ["Completed"]),
        "Completed": ([], [], []),
    }
    for status, expected in offered.items():
        driver.move(order, status)
        seen = tuple(person.read(order)["next_statuses"] for person in (owner, driver, admin))
        assert seen == expected


def test_a_change_is_in_every_later_answer_about_the_order(people: People) -> None:
    owner, driver = people.customer(), people.driver()
    order = owner.order()
    answer = driver.api.put(f"/api/orders/{order['id']}/status", json={"status": "Processing"})
    moved = answer.json()
    assert (moved["status"], moved["version"], answer.headers["ETag"]) == ("Processing", 2, '"2"')
    assert moved["created_at"] == order["created_at"]
    assert moved["updated_at"] > order["updated_at"]
    assert owner.read(order) == {**moved, "next_statuses": []}


# --- editing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_the_owner_edits_a_pending_order(people: People, method: str) -> None:
    owner = people.customer()
    order = owner.order("apples")
    path = f"/api/orders/{order['id']}"
    answer = owner.api.request(method, path, json={"description": "pears"})
    assert (answer.status_code, answer.headers["ETag"]) == (200, '"2"')
    assert answer.json()["description"] == "pears"
    [event] = owner.history(order, after=1)
    assert (event["type"], event["status"]) == ("description_changed", "Pending")
    assert event["changes"] == {"description": "pears"}


def test_setting_the_same_description_is_idempotent(people: People) -> None:
    owner = people.customer()
    order = owner.order("apples")
    assert owner.edit(order, "apples")["version"] == 1
    assert len(owner.history(order)) == 1


def test_who_may_edit_depends_on_the_status(people: People) -> None:
    owner, driver, admin = people.customer(), people.driver(), people.admin()
    order = owner.order()
    path, body = f"/api/orders/{order['id']}", {"description": "other"}
    assert driver.api.put(path, json=body).code == "forbidden"
    driver.move(order, "Processing")
    refused = owner.api.put(path, json=body)
    assert (refused.status_code, refused.code) == (409, "conflict")
    assert refused.json()["current"] == "Processing"
    assert admin.api.put(path, json=body).status_code == 200
    driver.move(order, "Shipped", "Completed")
    assert admin.api.put(path, json={"description": "final"}).code == "conflict"


# --- assigning ---------------------------------------------------------------------------------


def test_an_admin_assigns_and_unassigns_a_driver(people: People) -> None:
    owner, driver, admin = people.customer(), people.driver("Dewi"), people.admin()
    order = owner.order()
    assert admin.assign(order, driver)["driver"] == {"id": driver.id, "name": "Dewi"}
    assert owner.read(order)["driver"] == {"id": driver.id, "name": "Dewi"}
    assert admin.assign(order, driver)["version"] == 2  # again: nothing changes
    assert admin.assign(order, None)["driver"] is None
    changes = [(event["type"], event["changes"]) for event in owner.history(order, after=1)]
    assert changes == [
        ("driver_assigned", {"driver": {"id": driver.id, "name": "Dewi"}}),
        ("driver_assigned", {"driver": None}),
    ]


def test_only_active_drivers_can_be_assigned(people: People) -> None:
    owner, admin, gone = people.customer(), people.admin(), people.driver()
    admin.api.patch(f"/api/admin/users/{gone.id}", json={"active": False})
    order = owner.order()
    for person in (owner, admin, gone):
        answer = admin.api.put(f"/api/orders/{order['id']}/driver", json={"driver_id": person.id})
        assert (answer.status_code, answer.code) == (422, "validation_failed")
    assert owner.read(order)["version"] == 1


@pytest.mark.parametrize("last", ["Completed", "Cancelled"])
def test_no_driver_can_be_assigned_to_an_order_in_a_final_status(people: People, last: str) -> None:
    admin, driver = people.admin(), people.driver()
    order = admin.order()
    if last == "Completed":
        admin.move(order, "Processing", "Shipped")
    admin.move(order, last)
    answer = admin.api.put(f"/api/orders/{order['id']}/driver", json={"driver_id": driver.id})
    assert (answer.status_code, answer.code) == (409, "conflict")


# --- deleting ----------------------------------------------------------------------------------


def test_a_deleted_order_is_not_found_and_admins_can_read_its_history(people: People) -> None:
    owner, driver, admin = people.customer(), people.driver(), people.admin()
    order = owner.order()
    path = f"/api/orders/{order['id']}"
    owner.delete(order)
    for person in (owner, driver, admin):
        for answer in (
            person.api.get(path),
            person.api.put(path, json={"description": "x"}),
            person.api.put(f"{path}/status", json={"status": "Processing"}),
            person.api.put(f"{path}/driver", json={"driver_id": None}),
            person.api.delete(path),
        ):
            assert (answer.status_code, answer.code) == (404, "not_found")
        listed = person.api.get("/api/orders").json()["orders"]
        assert order["id"] not in [one["id"] for one in listed]
    for person in (owner, driver):
        assert person.api.get(f"{path}/history").code == "not_found"
    events = admin.history(order)
    assert [event["type"] for event in events] == ["created", "deleted"]
    assert events[-1]["version"] == 2


def test_who_may_delete_depends_on_the_status(people: People) -> None:
    owner, driver, admin = people.customer(), people.driver(), people.admin()
    order = owner.order()
    path = f"/api/orders/{order['id']}"
    assert driver.api.delete(path).code == "forbidden"
    driver.move(order, "Processing", "Shipped", "Completed")
    refused = owner.api.delete(path)
    assert (refused.status_code, refused.code) == (409, "conflict")
    assert admin.api.delete(path).status_code == 204


# --- preconditions -----------------------------------------------------------------------------


def changes(person: Person, order: dict[str, Any]) -> list[tuple[str, str, dict[str, Any] | None]]:
    path = f"/api/orders/{order['id']}"
    return [
        ("PUT", path, {"description": "changed"}),
        ("PATCH", path, {"description": "changed again"}),
        ("PUT", f"{path}/driver", {"driver_id": person.id}),
        ("PUT", f"{path}/status", {"status": "Processing"}),
        ("DELETE", path, None),
    ]


def test_a_stale_if_match_is_refused_without_a_change(people: People) -> None:
    driver, admin = people.driver(), people.admin()
    order = admin.order()
    admin.edit(order, "once")
    for method, path, body in changes(driver, order):
        for stale in ('"1"', '"3"', '"x"', "2"):
            answer = admin.api.request(method, path, json=body, headers={"If-Match": stale})
            assert (answer.status_code, answer.code) == (412, "version_mismatch"), path
            if stale in {'"1"', '"3"'}:
                assert answer.json()["current"] == 2
                assert answer.headers["ETag"] == '"2"'
    assert admin.read(order)["version"] == 2


def test_a_current_if_match_is_accepted_by_each_change(people: People) -> None:
    driver, admin = people.driver(), people.admin()
    order = admin.order()
    for version, (method, path, body) in enumerate(changes(driver, order), 1):
        answer = admin.api.request(method, path, json=body, headers={"If-Match": f'"{version}"'})
        assert answer.status_code in (200, 204), answer.text
    assert len(admin.history(order)) == 6


def test_if_match_star_accepts_any_version(people: People) -> None:
    owner = people.customer()
    order = owner.order()
    path = f"/api/orders/{order['id']}"
    answer = owner.api.put(path, json={"description": "x"}, headers={"If-Match": "*"})
    assert answer.status_code == 200


def test_a_retry_with_the_same_if_match_is_idempotent(people: People) -> None:
    """A driver's phone whose first answer was lost."""
    driver, owner = people.driver(), people.customer()
    order = owner.order()
    path = f"/api/orders/{order['id']}/status"
    for _ in range(2):
        answer = driver.api.put(path, json={"status": "Processing"}, headers={"If-Match": '"1"'})
        assert (answer.status_code, answer.json()["version"]) == (200, 2)
    assert len(owner.history(order)) == 2
