"""CSRF: with a session cookie, every write needs the session's CSRF token as well."""

import re

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.people import People, Person

UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}


def writes(app: Flask) -> list[tuple[str, str]]:
    """Every method and path that changes something in the caller's session."""
    found = []
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        if "is_public" not in view.__dict__ and "takes_refresh_token" not in view.__dict__:
            path = re.sub(r"<[^>]*>", "1", rule.rule)
            found += [(method, path) for method in sorted((rule.methods or set()) & UNSAFE)]
    return sorted(found)


def token_of(person: Person) -> str:
    claims = jwt.decode(person.token, options={"verify_signature": False})
    return str(claims["csrf"])


@pytest.fixture
def browser(app: Flask, people: People) -> tuple[FlaskClient, Person]:
    person = people.admin()
    client = app.test_client()
    client.set_cookie("access_token_cookie", person.token)
    return client, person


OWN, OTHERS = "the session's own", "another session's"
FORGERIES = {
    "no token": {},
    "a wrong token": {"X-CSRF-TOKEN": "0" * 32},
    "another session's token": {"X-CSRF-TOKEN": OTHERS},
    "from another site": {"X-CSRF-TOKEN": OWN, "Sec-Fetch-Site": "cross-site"},
    "from a sibling site": {"X-CSRF-TOKEN": OWN, "Sec-Fetch-Site": "same-site"},
    "from an opaque origin": {"X-CSRF-TOKEN": OWN, "Origin": "null"},
    "from another origin": {"X-CSRF-TOKEN": OWN, "Origin": "https://elsewhere.example"},
}


@pytest.mark.safety("forged-forms")
@pytest.mark.parametrize("forgery", FORGERIES)
def test_every_write_without_the_csrf_token_is_refused(
    app: Flask, people: People, browser: tuple[FlaskClient, Person], forgery: str
) -> None:
    client, person = browser
    tokens = {OWN: token_of(person), OTHERS: token_of(people.admin())}
    headers = {name: tokens.get(value, value) for name, value in FORGERIES[forgery].items()}
    routes = writes(app)
    assert {method for method, _ in routes} == UNSAFE
    for method, path in routes:
        answer = client.open(path, method=method, headers=headers)
        assert answer.status_code == 403, (method, path, answer.text)
        assert "csrf_failed" in answer.text or "text/html" in answer.content_type, (method, path)


def test_a_write_with_the_sessions_csrf_token_is_accepted(
    browser: tuple[FlaskClient, Person], people: People
) -> None:
    client, person = browser
    order = people.customer().order()
    headers = {"X-CSRF-TOKEN": token_of(person), "Sec-Fetch-Site": "same-origin"}
    path = f"/api/orders/{order['id']}"
    user = f"/api/admin/users/{people.customer().id}"
    for method, where, body in (
        ("PUT", path, {"description": "changed"}),
        ("PATCH", user, {"role": "driver"}),
        ("POST", "/api/orders", {"description": "new"}),
        ("DELETE", path, None),
    ):
        answer = client.open(where, method=method, headers=headers, json=body)
        assert answer.status_code in (200, 201, 204), (method, answer.text)
