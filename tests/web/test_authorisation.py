"""Authorisation: every route of the URL map × every kind of caller.

A route without a row here fails, so that no route is added without a decision who may use it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask

from ordertrack.app import create_app
from ordertrack.extensions import db
from tests.support.databases import settings_for
from tests.support.http import Answer, Api, InProcess
from tests.support.people import PASSWORD, People, Person
from tests.support.routes import CALLERS, ROWS, Row
from tests.support.servers import Server

CODES = {
    401: "invalid_token",
    403: "forbidden",
    404: "not_found",
    422: "validation_failed",
}


@dataclass(frozen=True)
class Scene:
    """One user of each kind, and the owner of the orders that they try to reach."""

    people: dict[str, Person]
    ended: Api

    def api(self, caller: str, *, own_session: bool = False) -> Api:
        if caller == "anonymous":
            return Api(self.ended.transport)
        if caller == "signed out":
            return self.ended
        person = self.people[caller]
        return (person.signed_in_again() if own_session else person).api

    def order(self) -> dict[str, Any]:
        """An order of the owner's, given to the assigned driver."""
        order = self.people["owner"].order()
        return self.people["admin"].assign(order, self.people["assigned"])


def cast(people: People) -> Scene:
    ended = people.admin()
    assert ended.api.post("/api/logout").status_code == 204
    return Scene(
        {
            "stranger": people.customer(),
            "owner": people.customer(),
            "driver": people.driver(),
            "assigned": people.driver(),
            "admin": people.admin(),
        },
        ended.api,
    )


@pytest.fixture(scope="module")
def scene(server: Server) -> Scene:
    return cast(server.people)


@pytest.fixture(scope="module")
def narrow_scene(database: str) -> Iterator[Scene]:
    """The same with DRIVER_SCOPE=assigned."""
    app: Flask = create_app(settings_for(database, DRIVER_SCOPE="assigned"))
    yield cast(People(database, InProcess(app)))
    with app.app_context():
        db.engine.dispose()


def call(scene: Scene, caller: str, route: str, row: Row, order_id: str) -> Answer:
    method, _, rule = route.partition(" ")
    path = (
        rule.replace("<id:order_id>", order_id)
        .replace("<id:user_id>", scene.people["stranger"].id)
        .replace("<id:session_id>", str(2**60))  # nobody's
        .replace("<path:name>", row.file)
    )
    values = {
        "email": f"{uuid4().hex}@example.org",
        "password": PASSWORD,
        "order": order_id,
        "own": scene.people["owner"].email,
        "driver": scene.people["driver"].id,
    }

    def filled(value: Any) -> Any:
        return value.format(**values) if isinstance(value, str) else value

    body = None if row.body is None else {key: filled(value) for key, value in row.body.items()}
    api = scene.api(caller, own_session=row.ends_session)
    return row.send(api, method, path, body)


@pytest.mark.safety("orders-of-others")
def test_every_route_has_a_row_and_every_row_a_route(app: Flask) -> None:
    there = {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert there - set(ROWS) == set(), "routes without a row in tests/support/routes.py"
    assert set(ROWS) - there == set(), "rows without a route"


@pytest.mark.safety("orders-of-others", "functions-of-other-roles")
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("route", ROWS)
def test_a_route_answers_a_caller_as_its_row_says(scene: Scene, route: str, caller: str) -> None:
    row = ROWS[route]
    expected = row.expected[caller]
    wants_an_order = "order" in f"{route} {row.body}"
    answer = call(scene, caller, route, row, scene.order()["id"] if wants_an_order else "")
    assert row.status(answer) == expected, answer.text[:500]
    if route.partition(" ")[2].startswith("/api/"):
        assert answer.code == CODES.get(expected)


@pytest.mark.safety("malformed-input")
@pytest.mark.parametrize("token", [None, "forged"])
@pytest.mark.parametrize("path", sorted({route.partition(" ")[2] for route in ROWS}))
def test_options_names_the_methods_of_a_route_to_anybody(app: Flask, path: str, token: str) -> None:
    """Flask answers it without calling the view, so it needs no token, and tells nothing else."""
    path = re.sub(r"<id:\w+>", "1", path).replace("<path:name>", "favicon.svg")
    answer = Api(InProcess(app), token).request("OPTIONS", path)
    assert answer.status_code == 200
    assert answer.headers["Allow"]
    assert not answer.content


ABOUT_ORDERS = [route for route in ROWS if "<id:order_id>" in route]


@pytest.mark.parametrize("route", ABOUT_ORDERS)
def test_driver_scope_hides_orders_that_are_not_assigned(narrow_scene: Scene, route: str) -> None:
    row = ROWS[route]
    for caller in CALLERS:
        expected = row.expected["stranger" if caller == "driver" else caller]
        answer = call(narrow_scene, caller, route, row, narrow_scene.order()["id"])
        assert row.status(answer) == expected, f"{caller}: {answer.text[:500]}"


@pytest.mark.safety("orders-of-others")
@pytest.mark.parametrize("caller", ["stranger", "owner", "driver", "assigned", "admin"])
@pytest.mark.parametrize("route", ABOUT_ORDERS)
def test_a_hidden_order_is_answered_like_a_missing_one(
    scene: Scene, route: str, caller: str
) -> None:
    """Deleted, another's, never there: the answers do not differ by a byte."""
    row = ROWS[route]
    # Also for callers that could see it before; admins can still read its history.
    deleted = scene.order()
    scene.people["admin"].delete(deleted)
    hidden = [deleted["id"]] if (caller, row.outlives) != ("admin", True) else []
    if row.expected[caller] == 404:
        hidden.append(scene.order()["id"])
    missing = call(scene, caller, route, row, str(2**60))
    assert missing.status_code == 404
    for order_id in hidden:
        answer = call(scene, caller, route, row, order_id)
        assert answer.status_code == 404
        assert without_ids(answer) == without_ids(missing)


def without_ids(answer: Answer) -> tuple[bytes, dict[str, str]]:
    """Body and headers, but for what differs between any two answers."""
    volatile = {"date", "x-request-id", "set-cookie"}
    headers = {
        name.lower(): value
        for name, value in answer.headers.items()
        if name.lower() not in volatile
    }
    return answer.content, headers


def test_options_and_head_reveal_no_more_than_get(scene: Scene) -> None:
    path = f"/api/orders/{scene.order()['id']}"
    for caller in CALLERS:
        got = scene.api(caller).get(path)
        head = scene.api(caller).request("HEAD", path)
        assert (head.status_code, head.content) == (got.status_code, b"")


@pytest.mark.safety("replay-as-narrow-as-live")
def test_a_lost_right_includes_the_history(server: Server, narrow_scene: Scene) -> None:
    """Replay is no wider than live events: an old cursor does not outlast the right to see them."""
    order = narrow_scene.order()
    assigned, admin = narrow_scene.people["assigned"], narrow_scene.people["admin"]
    path = f"/api/orders/{order['id']}/history?after=1"
    assert assigned.api.get(path).status_code == 200
    admin.assign(order, None)
    assert assigned.api.get(path).code == "not_found"

    people = server.people
    demoted, owner = people.driver(), people.customer()
    path = f"/api/orders/{owner.order()['id']}/history?after=1"
    assert demoted.api.get(path).status_code == 200
    people.admin().api.patch(f"/api/admin/users/{demoted.id}", json={"role": "user"})
    assert demoted.api.get(path).code == "not_found"
