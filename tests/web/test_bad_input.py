"""Malformed input is answered with a 4xx problem that names the reason, and nothing is stored."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import requests
from flask import Flask

from ordertrack.app import create_app
from ordertrack.extensions import db
from tests.support.databases import Postgres, settings_for
from tests.support.http import Answer, Api, InProcess
from tests.support.people import PASSWORD, People
from tests.support.servers import Server

TABLES = ("users", "sessions", "orders", "order_events", "access_changes", "idempotency_keys")

HUGE = 10**400


@dataclass
class Place:
    """An application on a database of its own, whose every row can be watched."""

    api: dict[str, Api]
    order_id: str
    driver_id: str
    user_id: str
    stored: Callable[[], list[str | None]]


@pytest.fixture(scope="module")
def place(postgres: Postgres) -> Iterator[Place]:
    dsn = postgres.clone()
    app: Flask = create_app(settings_for(dsn))
    people = People(dsn, InProcess(app))
    owner, driver, admin = people.customer(), people.driver(), people.admin()
    rows = [
        f"(SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM {table} t)"
        for table in TABLES
    ]

    def stored() -> list[str | None]:
        return list(postgres.execute(f"SELECT {', '.join(rows)}", dsn=dsn)[0])

    yield Place(
        {"nobody": people.nobody, "owner": owner.api, "driver": driver.api, "admin": admin.api},
        owner.order()["id"],
        driver.id,
        people.customer().id,
        stored,
    )
    with app.app_context():
        db.engine.dispose()
    postgres.drop(dsn)


@dataclass(frozen=True, eq=False)
class Write:
    """A route with a body: a caller that may use it, and a body that would be accepted."""

    who: str
    method: str
    path: str
    good: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def send(self, place: Place, body: bytes, **headers: str) -> Answer:
        path = self.path.format(order=place.order_id, user=place.user_id)
        return place.api[self.who].request(self.method, path, body=body, headers=headers)


REGISTER = Write(
    "nobody",
    "POST",
    "/api/register",
    {"name": "Ann", "email": "ann@example.org", "password": PASSWORD},
)
LOGIN = Write("nobody", "POST", "/api/login", {"email": "ann@example.org", "password": PASSWORD})
CREATE = Write("owner", "POST", "/api/orders", {"description": "apples"})
EDIT = Write("owner", "PUT", "/api/orders/{order}", {"description": "pears"})
PATCH = Write("owner", "PATCH", "/api/orders/{order}", {"description": "pears"})
MOVE = Write("driver", "PUT", "/api/orders/{order}/status", {"status": "Processing"})
ASSIGN = Write("admin", "PUT", "/api/orders/{order}/driver", {"driver_id": None})
USER = Write("admin", "PATCH", "/api/admin/users/{user}", {"role": "driver"})

# Neither would be accepted, for the sake of the tests beside these: the password is not the
# owner's, the token nobody's.
NEW_PASSWORD = Write(
    "owner",
    "PUT",
    "/api/me/password",
    {"current_password": "not the owner's", "new_password": PASSWORD},
)
RESET = Write(
    "nobody", "POST", "/api/password-reset", {"token": "made-up", "password": "another password"}
)

WRITES = [REGISTER, LOGIN, CREATE, EDIT, PATCH, MOVE, ASSIGN, USER, NEW_PASSWORD, RESET]

every_write = pytest.mark.parametrize("write", WRITES, ids=str)


def refused(answer: Answer, *codes: str) -> None:
    """*answer* is a problem of 4xx, with one of *codes* where any are named."""
    assert 400 <= answer.status_code < 500, f"{answer.status_code} {answer.text}"
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "code"} <= set(problem)
    assert problem["status"] == answer.status_code
    assert not codes or problem["code"] in codes, problem


def as_json(value: Any) -> bytes:
    """With lone surrogates as the escapes with which JSON can smuggle them in."""
    return json.dumps(value).encode()


@pytest.mark.safety("extra-fields")
def test_every_route_with_a_body_is_tested_here(app: Flask) -> None:
    """The routes under /api are meant; pages have their own tests."""
    without_body = {
        ("POST", "/api/refresh"),
        ("POST", "/api/logout"),
        ("POST", "/api/admin/users/{user}/password-reset"),
    }
    tried = {(write.method, write.path) for write in WRITES}
    there = {
        (method, rule.rule.replace("<id:order_id>", "{order}").replace("<id:user_id>", "{user}"))
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if rule.rule.startswith("/api/") and method in {"POST", "PUT", "PATCH"}
    }
    assert there - without_body == tried


@pytest.mark.safety("malformed-input")
@every_write
def test_a_body_of_another_form_is_refused(place: Place, write: Write) -> None:
    good = as_json(write.good)
    before = place.stored()
    for body in (
        b"",
        b" ",
        b"null",
        b"true",
        b"0",
        b'"text"',
        b"[]",
        b"[" + good + b"]",
        b"{}",
        b"{",
        good[:-1],
        good + b"}",
        good + good,
        good.replace(b'"', b"'"),
        good[:-1] + b",}",
        b"\xef\xbb\xbf" + good,  # a byte order mark
        good.decode().encode("utf-16"),
        good[:-1] + b', "x": "\xff"}',
        b"\xff\xfe\xfd",
        b"\x00",
        good[:-1] + b', "x": NaN}',
        good[:-1] + b', "x": Infinity}',
        b"[" * 30_000,
        b"[" * 30_000 + b"]" * 30_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"x": 1' + b"0" * 5_000 + b"}",
        b'{"x": 1e999999}',
    ):
        refused(write.send(place, body), "malformed_request", "validation_failed")
    assert place.stored() == before


@every_write
def test_a_duplicate_member_name_is_refused(place: Place, write: Write) -> None:
    before = place.stored()
    for name, value in write.good.items():
        twice = as_json(write.good)[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}".encode()
        refused(write.send(place, twice), "malformed_request")
    assert place.stored() == before


@pytest.mark.safety("extra-fields")
@every_write
def test_unknown_fields_are_refused_by_name(place: Place, write: Write) -> None:
    """Every column that a body must not write, and names that frameworks have tripped over."""
    before = place.stored()
    for name, value in {
        "id": "1",
        "role": "admin",
        "active": True,
        "password_hash": "x",
        "created_at": "2025-07-28T10:00:00Z",
        "updated_at": "2025-07-28T10:00:00Z",
        "deleted_at": None,
        "customer_id": "1",
        "driver_id": "1",
        "customer": {"id": "1"},
        "driver": None,
        "status": "Completed",
        "previous_status": "Shipped",
        "version": 9,
        "note": "hello",
        "description": "mine now",
        "actor_id": 1,
        "xid": "1",
        "user_id": 1,
        "revoked_at": None,
        "after": 1,
        "__proto__": {},
        "constructor": {},
        "": 1,
        "~/\u2028": 1,
    }.items():
        # A field that the route knows is tried with the rest, not by itself.
        if name in write.good or (write, name) in {(MOVE, "note"), (USER, "active")}:
            continue
        answer = write.send(place, as_json({**write.good, name: value}))
        refused(answer, "validation_failed")
        pointer = "/" + name.replace("~", "~0").replace("/", "~1")
        assert {"pointer": pointer, "message": "is not a known field"} in answer.json()["errors"]
    assert place.stored() == before


@every_write
def test_a_missing_field_is_named(place: Place, write: Write) -> None:
    before = place.stored()
    for name in write.good:
        body = {key: value for key, value in write.good.items() if key != name}
        answer = write.send(place, as_json(body))
        refused(answer, "validation_failed")
        if write is not USER:  # of whose fields any one will do
            assert [error["pointer"] for error in answer.json()["errors"]] == [f"/{name}"]
    assert place.stored() == before


NO_TEXT = [None, 0, 1, -1.5, True, False, [], ["x"], {}, {"a": 1}, HUGE]
NOT_STORABLE = ["a\x00b", "\x00", "\ud800", "x\udfffy", "\udc00\ud800"]
BLANK = ["", " ", "\t\n", "\u2003"]


NO_ADDRESS = ["x" * 250 + "@x.org", "ann", "@", "ann@", "@x.org", "a b@x.org", "a@b@c"]
UNSAFE_ADDRESS = ["a@x.org\r\nBcc: b@x.org", "a\u200b@x.org", "a@x\x1b.org"]
NO_STATUS = ["processing", "PROCESSING", " Processing", "Lost"]
NO_ID = [0, -1, -1.5, True, False, [], ["x"], {}, 2**63, 2**64, HUGE, "-1", "1.0", "1e3", "0x1"]
NO_ID_EITHER = [" 1", "٣", str(2**63), "9" * 5000]
NOBODYS_ID = 2**62

FIELDS: list[tuple[Write, str, list[Any]]] = [
    (REGISTER, "name", [*NO_TEXT, *NOT_STORABLE, *BLANK, "x" * 101]),
    (REGISTER, "email", [*NO_TEXT, *NOT_STORABLE, *BLANK, *NO_ADDRESS, *UNSAFE_ADDRESS]),
    (REGISTER, "password", [*NO_TEXT, *NOT_STORABLE, "", "1234567", "x" * 1025]),
    (LOGIN, "email", [*NO_TEXT, "x" * 255]),
    (LOGIN, "password", [*NO_TEXT, "", "x" * 1025]),
    (CREATE, "description", [*NO_TEXT, *NOT_STORABLE, *BLANK, "x" * 2001]),
    (EDIT, "description", [*NO_TEXT, *NOT_STORABLE, *BLANK, "x" * 2001]),
    (MOVE, "status", [*NO_TEXT, *NOT_STORABLE, *BLANK, *NO_STATUS]),
    (MOVE, "note", [*NO_TEXT[1:], *NOT_STORABLE, *BLANK, "x" * 501]),  # null is no note
    (ASSIGN, "driver_id", [*NO_ID, *NO_ID_EITHER, *NOT_STORABLE, *BLANK, NOBODYS_ID]),
    (USER, "role", [*NO_TEXT[1:], *NOT_STORABLE, *BLANK, "root", "Admin"]),
    (USER, "active", [0, 1, 1.5, "true", "", [], {}]),
]


@pytest.mark.parametrize(
    ("write", "name", "values"), FIELDS, ids=[f"{write} {name}" for write, name, _ in FIELDS]
)
def test_a_field_of_another_form_is_refused_by_name(
    place: Place, write: Write, name: str, values: list[Any]
) -> None:
    before = place.stored()
    for value in values:
        answer = write.send(place, as_json({**write.good, name: value}))
        refused(answer, "validation_failed")
        assert [error["pointer"] for error in answer.json()["errors"]] == [f"/{name}"], value
    assert place.stored() == before


@pytest.mark.parametrize("value", NOT_STORABLE)
@pytest.mark.parametrize("name", ["email", "password"])
def test_impossible_credentials_are_refused(place: Place, name: str, value: str) -> None:
    refused(LOGIN.send(place, as_json({**LOGIN.good, name: value + "x@example.org"})))


def test_an_answer_does_not_repeat_the_refused_input(place: Place) -> None:
    """A password with a typo in its form must not end up in logs of answers."""
    answer = REGISTER.send(place, as_json({**REGISTER.good, "password": "hunter2"}))
    refused(answer, "validation_failed")
    assert "hunter2" not in answer.text


def test_a_change_without_any_field_is_refused(place: Place) -> None:
    refused(USER.send(place, b"{}"), "validation_failed")
    refused(USER.send(place, b'{"role": null, "active": null}'), "validation_failed")


@every_write
def test_other_content_types_are_refused(place: Place, write: Write) -> None:
    good, before = as_json(write.good), place.stored()
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/jsonx",
        "",
        "\xff",
    ):
        refused(write.send(place, good, **{"Content-Type": content_type}), "unsupported_media_type")
    assert place.stored() == before


@every_write
def test_a_body_over_the_size_limit_is_refused(place: Place, write: Write) -> None:
    before = place.stored()
    answer = write.send(place, as_json(write.good) + b" " * 65_536)
    refused(answer, "payload_too_large")
    assert answer.status_code == 413
    assert place.stored() == before


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
def test_a_server_refuses_a_body_over_the_size_limit(server: Server, chunked: bool) -> None:
    owner = server.people.customer()
    body = b'{"description": "x"}' + b" " * 200_000
    sent: Any = (body[at : at + 1000] for at in range(0, len(body), 1000)) if chunked else body
    # After a refusal the server still reads a bounded rest; the whole body fits into that.
    response = requests.post(
        f"{server.url}/api/orders",
        data=sent,
        headers={"Authorization": f"Bearer {owner.token}", "Content-Type": "application/json"},
        timeout=30,
    )
    assert response.status_code == 413
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Connection"] == "close"
    assert response.json()["code"] == "payload_too_large"
    assert owner.api.get("/api/orders").json()["orders"] == []


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "ümlaut", "tab\t"])
def test_an_idempotency_key_of_another_form_is_refused(place: Place, key: str) -> None:
    before = place.stored()
    refused(CREATE.send(place, as_json(CREATE.good), **{"Idempotency-Key": key}))
    assert place.stored() == before


@pytest.mark.parametrize("tag", ["1", '"x"', "W/1", '"-1"', '"1', '"1","2"', '"9999999999999"'])
@pytest.mark.parametrize("write", [EDIT, MOVE], ids=str)
def test_an_if_match_that_names_no_version_never_matches(
    place: Place, write: Write, tag: str
) -> None:
    before = place.stored()
    answer = write.send(place, as_json(write.good), **{"If-Match": tag})
    refused(answer, "version_mismatch")
    assert answer.status_code == 412
    assert place.stored() == before


# --- paths and query parameters ----------------------------------------------------------------

IDS = ["0", "-1", "+1", "1.0", "1e3", "x", "٣", "%00", "1%00", str(2**63), "9" * 40, "%F0%28", "1 "]


@pytest.mark.parametrize("order_id", IDS)
@pytest.mark.parametrize(
    ("method", "rest"),
    [("GET", ""), ("PUT", ""), ("DELETE", ""), ("PUT", "/status"), ("GET", "/history")],
)
def test_an_impossible_id_is_not_found(place: Place, method: str, rest: str, order_id: str) -> None:
    body = b'{"status": "Shipped"}' if rest == "/status" else b'{"description": "x"}'
    answer = place.api["admin"].request(method, f"/api/orders/{order_id}{rest}", body=body)
    refused(answer, "not_found")


@pytest.mark.safety("malformed-input")
@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.0",
        "limit=٣",
        f"limit={HUGE}",
        "cursor=",
        "cursor=x",
        "cursor=%00",
        "cursor=bzk5OTk5OTk5OTk5OTk5OTk5OTk5",  # an id beyond any
        "cursor=***",
        "cursor=%C3%BC",
        "cursor=b28",
        "status=Lost",
        "status=pending",
        "q=%00",
        "q=" + "x" * 201,
        "colour=red",
        "statuses=Pending",
        "driver=x",
        "driver=0",
        f"customer={2**63}",
        "customer=1%27%20OR%201=1",
        "created_from=yesterday",
        "created_from=2025-02-30",
        "created_before=%00",
    ],
)
def test_impossible_query_parameters_are_refused(place: Place, query: str) -> None:
    refused(place.api["admin"].get(f"/api/admin/orders?{query}"), "validation_failed")


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", f"after={2**31}", "limit=0", "limit=501", "from=1", "after="]
)
def test_impossible_query_parameters_of_a_history_are_refused(place: Place, query: str) -> None:
    path = f"/api/orders/{place.order_id}/history?{query}"
    refused(place.api["admin"].get(path), "validation_failed")


@pytest.mark.parametrize("query", ["after=x", "limit=0", "limit=101", "role=admin"])
def test_impossible_query_parameters_of_the_users_list_are_refused(
    place: Place, query: str
) -> None:
    refused(place.api["admin"].get(f"/api/admin/users?{query}"), "validation_failed")


@pytest.mark.safety("malformed-input")
@pytest.mark.parametrize("scope", ["/api/orders", "/api/admin/orders"])
@pytest.mark.parametrize(
    "words", ["'; DROP TABLE orders; --", "%", "_", "\\", "%27", "💥", "\ufffe", "%ED%A0%80"]
)
def test_any_text_may_be_searched_for(place: Place, scope: str, words: str) -> None:
    answer = place.api["admin"].get(f"{scope}?q={words}")
    assert answer.status_code == 200


@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"0"])
def test_a_body_that_is_no_object_is_named_without_our_class_names(
    place: Place, body: bytes
) -> None:
    answer = place.api["owner"].post("/api/orders", body=body)
    refused(answer, "validation_failed")
    assert answer.json()["errors"] == [{"pointer": "", "message": "must be an object"}]


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/api/register"), ("PUT", "/api/orders"), ("POST", "/api/orders/1/status")],
)
def test_an_unsupported_method_is_answered_with_405_and_allow(
    place: Place, method: str, path: str
) -> None:
    answer = place.api["admin"].request(method, path)
    refused(answer, "method_not_allowed")
    assert answer.status_code == 405
    assert method not in answer.headers["Allow"].split(", ")


def test_an_unknown_path_is_answered_with_a_problem(place: Place) -> None:
    for path in ("/api", "/api/", "/api/nothing", "/api/orders/", "/api/orders/1/2/3", "//api/me"):
        refused(place.api["admin"].get(path), "not_found")


# --- valid input -------------------------------------------------------------------------------


@pytest.mark.safety("malformed-input")
def test_any_valid_text_is_stored_unchanged(place: Place) -> None:
    for text in ("Ä'\"\\%_", "日本語", "👩‍👩‍👧 🇩🇪", "\u202eright to left", "<script>", "a\r\n\tb"):
        answer = CREATE.send(place, as_json({"description": text}))
        assert answer.status_code == 201, answer.text
        assert answer.json()["description"] == text
        read = place.api["owner"].get(answer.headers["Location"])
        assert read.json()["description"] == text


def test_the_longest_text_of_each_field_is_accepted(place: Place) -> None:
    form = {
        "name": "ü" * 100,
        "email": uuid4().hex + "x" * (254 - 32 - 10) + "@exampl.eu",
        "password": "💥" * 1024,
    }
    assert REGISTER.send(place, as_json(form)).status_code == 201
    made = CREATE.send(place, as_json({"description": "💥" * 2000}))
    assert made.status_code == 201
    moved = place.api["driver"].put(
        f"{made.headers['Location']}/status", json={"status": "Processing", "note": "ü" * 500}
    )
    assert moved.status_code == 200


@pytest.mark.parametrize("number", [False, True], ids=["as text", "as a number"])
def test_ids_may_be_sent_as_text_or_as_numbers(place: Place, number: bool) -> None:
    driver_id: Any = int(place.driver_id) if number else place.driver_id
    answer = ASSIGN.send(place, as_json({"driver_id": driver_id}))
    assert answer.status_code == 200
    assert answer.json()["driver"]["id"] == place.driver_id
