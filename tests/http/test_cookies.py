"""Changes by cookie, as pages make them: each wants the session's token, and our own site."""

import re

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.people import People, Person

METHODS = ["POST", "PUT", "PATCH", "DELETE"]


def signed_in(app: Flask, person: Person) -> tuple[FlaskClient, str]:
    """A browser's cookies, and the token that its pages carry."""
    client = app.test_client()
    form = {"email": person.email, "password": person.password}
    assert client.post("/login", data=form).status_code == 303
    found = re.search(r'name="csrf-token" content="(\w+)"', client.get("/orders").text)
    assert found is not None
    return client, found[1]


def call(client: FlaskClient, method: str, order_id: str, **headers: str) -> tuple[int, str | None]:
    path = "/api/orders" if method == "POST" else f"/api/orders/{order_id}"
    body = None if method == "DELETE" else {"description": f"by {method}"}
    answer = client.open(path, method=method, json=body, headers=headers)
    problem = answer.get_json(silent=True) if answer.status_code >= 400 else None
    return answer.status_code, problem["code"] if problem else None


@pytest.mark.safety("forged-forms")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-CSRF-TOKEN": "0" * 32},
        {"X-CSRF-TOKEN": "own", "Sec-Fetch-Site": "cross-site"},
        {"X-CSRF-TOKEN": "own", "Sec-Fetch-Site": "same-site"},
        {"X-CSRF-TOKEN": "own", "Origin": "https://elsewhere.example"},
        {"X-CSRF-TOKEN": "own", "Origin": "null"},
    ],
    ids=["no token", "a wrong token", "cross-site", "same-site", "foreign origin", "no origin"],
)
def test_a_change_by_cookie_from_elsewhere_is_refused(
    app: Flask, people: People, method: str, headers: dict[str, str]
) -> None:
    customer = people.customer()
    order = customer.order("as it was")
    client, token = signed_in(app, customer)
    sent = {name: token if value == "own" else value for name, value in headers.items()}
    assert call(client, method, order["id"], **sent) == (403, "csrf_failed")
    assert [one["description"] for one in customer.api.get("/api/orders").json()["orders"]] == [
        "as it was"
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_change_by_cookie_from_our_own_pages_is_carried_out(
    app: Flask, people: People, method: str
) -> None:
    customer = people.customer()
    order = customer.order()
    client, token = signed_in(app, customer)
    headers = {"X-CSRF-TOKEN": token, "Sec-Fetch-Site": "same-origin"}
    expected = {"POST": 201, "DELETE": 204}.get(method, 200)
    assert call(client, method, order["id"], **headers) == (expected, None)
