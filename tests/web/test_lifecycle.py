"""The lifecycle over REST: every status, target and caller; and concurrent changes."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
from flask import Flask

from ordertrack.app import create_app
from ordertrack.extensions import db
from tests.support.databases import settings_for
from tests.support.http import Answer, InProcess
from tests.support.parallel import at_once
from tests.support.people import People, Person
from tests.support.rules import ASSIGNED_GRIDS, GRIDS, STATUSES, WAY_TO, may_set, outcome
from tests.support.servers import Server

CHANGES = list(product(STATUSES, STATUSES))
change_ids = [f"{status} to {target}" for status, target in CHANGES]


@dataclass(frozen=True)
class Crowd:
    customer: Person
    driver: Person
    admin: Person

    def __getitem__(self, role: str) -> Person:
        return {"user": self.customer, "driver": self.driver, "admin": self.admin}[role]


@pytest.fixture(scope="module")
def crowd(people: People) -> Crowd:
    return Crowd(people.customer(), people.driver(), people.admin())


@pytest.fixture(scope="module")
def stranger(people: People) -> Person:
    return people.customer()


@pytest.fixture(scope="module")
def narrow(database: str) -> Iterator[InProcess]:
    """The application with DRIVER_SCOPE=assigned."""
    app: Flask = create_app(settings_for(database, DRIVER_SCOPE="assigned"))
    yield InProcess(app)
    with app.app_context():
        db.engine.dispose()


def set_status(person: Person, order: dict[str, Any], target: str) -> Answer:
    return person.api.put(f"/api/orders/{order['id']}/status", json={"status": target})


def check(
    caller: Person, admin: Person, order: dict[str, Any], grid: str, status: str, target: str
) -> None:
    """*caller* asks for *target*; the answer and the log are as *grid* says."""
    before = admin.history(order)
    seen = caller.api.get(f"/api/orders/{order['id']}")
    answer = set_status(caller, order, target)
    after = admin.history(order)
    match outcome(grid, status, target):
        case ">":
            assert answer.status_code == 200, answer.text
            body = answer.json()
            assert (body["status"], body["version"]) == (target, len(before) + 1)
            assert body["next_statuses"] == may_set(grid, target)
            [event] = after[len(before) :]
            assert (event["type"], event["version"]) == ("status_changed", len(before) + 1)
            assert (event["previous_status"], event["status"]) == (status, target)
            assert event["actor"]["id"] == caller.id
            return
        case "=":
            assert answer.status_code == 200, answer.text
            assert answer.json() == seen.json()
        case "!":
            assert (answer.status_code, answer.code) == (409, "invalid_transition")
            problem = answer.json()
            assert (problem["current"], problem["allowed"]) == (status, may_set(grid, status))
        case "x":
            assert (answer.status_code, answer.code) == (403, "forbidden")
        case "-":
            assert (answer.status_code, answer.code) == (404, "not_found")
            assert seen.status_code == 404
    assert after == before
    if seen.status_code == 200:
        assert seen.json()["next_statuses"] == may_set(grid, status)


@pytest.mark.parametrize(("status", "target"), CHANGES, ids=change_ids)
@pytest.mark.parametrize(("role", "own"), GRIDS, ids=lambda value: str(value).lower())
def test_each_transition_is_answered_as_the_lifecycle_table_says(
    crowd: Crowd, stranger: Person, role: str, own: bool, status: str, target: str
) -> None:
    order = (crowd[role] if own else stranger).order()
    crowd.admin.move(order, *WAY_TO[status])
    check(crowd[role], crowd.admin, order, GRIDS[role, own], status, target)


@pytest.mark.parametrize(("status", "target"), CHANGES, ids=change_ids)
@pytest.mark.parametrize(
    ("own", "assigned"),
    ASSIGNED_GRIDS,
    ids=["own and assigned", "own", "assigned", "neither"],
)
def test_driver_scope_limits_transitions_to_assigned_orders(
    crowd: Crowd,
    stranger: Person,
    narrow: InProcess,
    own: bool,
    assigned: bool,
    status: str,
    target: str,
) -> None:
    driver, admin = crowd.driver.at(narrow), crowd.admin.at(narrow)
    order = (driver if own else stranger).order()
    if assigned:
        admin.assign(order, driver)
    admin.move(order, *WAY_TO[status])
    check(driver, admin, order, ASSIGNED_GRIDS[own, assigned], status, target)


def test_the_note_is_stored_with_the_event(crowd: Crowd) -> None:
    order = crowd.customer.order()
    crowd.driver.move(order, "Processing", note="Left with the neighbour")
    assert crowd.customer.history(order)[-1]["note"] == "Left with the neighbour"


# --- concurrent changes ------------------------------------------------------------------------


@pytest.mark.safety("conflicting-changes")
def test_of_fifty_concurrent_conflicting_transitions_one_succeeds(server: Server) -> None:
    owner, driver = server.people.customer(), server.people.driver()
    for _ in range(3):
        order = owner.order()
        answers = at_once(
            [lambda: set_status(owner, order, "Cancelled")] * 25  # noqa: B023 (called at once)
            + [lambda: set_status(driver, order, "Processing")] * 25  # noqa: B023
        )
        events = owner.history(order)
        assert [event["version"] for event in events] == [1, 2]
        winner = events[-1]["status"]
        asked = ["Cancelled"] * 25 + ["Processing"] * 25
        for target, answer in zip(asked, answers, strict=True):
            if target == winner:
                # The others of the winning side find it done already.
                assert (answer.status_code, answer.json()["version"]) == (200, 2)
            else:
                assert (answer.status_code, answer.code) == (409, "invalid_transition")
                assert answer.json()["current"] == winner


def test_of_fifty_concurrent_edits_with_one_if_match_one_succeeds(server: Server) -> None:
    owner = server.people.customer()
    order = owner.order()
    answers = at_once(
        lambda n=n: owner.api.put(
            f"/api/orders/{order['id']}",
            json={"description": f"edit {n}"},
            headers={"If-Match": '"1"'},
        )
        for n in range(50)
    )
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses == {200: 1, 412: 49}
    assert {answer.json()["current"] for answer in answers if answer.status_code == 412} == {2}
    assert len(owner.history(order)) == 2


def test_concurrent_compatible_changes_all_succeed_in_some_order(server: Server) -> None:
    admin = server.people.admin()
    order = admin.order()
    answers = at_once(
        lambda n=n: admin.api.put(f"/api/orders/{order['id']}", json={"description": f"edit {n}"})
        for n in range(20)
    )
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(answer.json()["version"] for answer in answers) == list(range(2, 22))
    events = admin.history(order)
    assert [event["version"] for event in events] == list(range(1, 22))
    assert [event["updated_at"] for event in events] == sorted(
        event["updated_at"] for event in events
    )
    by_version = {answer.json()["version"]: answer.json()["description"] for answer in answers}
    for event in events[1:]:
        assert event["changes"] == {"description": by_version[event["version"]]}
