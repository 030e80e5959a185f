"""Accounts over REST: registration, login, refresh, logout, and users for admins."""

import statistics
import threading
import time
from uuid import uuid4

import pytest
from argon2 import extract_parameters
from argon2.low_level import Type
from flask import Flask

from tests.support.databases import Postgres
from tests.support.http import Answer, Api
from tests.support.parallel import at_once
from tests.support.people import PASSWORD, People, Person
from tests.support.servers import Server


def address() -> str:
    return f"{uuid4().hex}@example.org"


def registered(nobody: Api, **fields: str) -> Answer:
    form = {"name": "Ann", "email": address(), "password": PASSWORD, **fields}
    return nobody.post("/api/register", json=form)


def log_in(nobody: Api, email: str, password: str = PASSWORD) -> Answer:
    return nobody.post("/api/login", json={"email": email, "password": password})


# --- register ----------------------------------------------------------------------------------


def test_registering_makes_a_customer(nobody: Api) -> None:
    email = address()
    answer = registered(nobody, name="Ann", email=email)
    assert answer.status_code == 201
    user = answer.json()
    assert set(user) == {"id", "name", "email", "role", "active", "created_at"}
    assert user["id"].isdecimal()
    assert (user["name"], user["email"]) == ("Ann", email)
    assert (user["role"], user["active"]) == ("user", True)
    assert user["created_at"].endswith("Z")


def test_a_password_is_stored_as_argon2id_of_the_recommended_cost(
    nobody: Api, postgres: Postgres, database: str
) -> None:
    email = address()
    registered(nobody, email=email)
    stored = postgres.execute(
        "SELECT password_hash FROM users WHERE email = %s",
        email,
        dsn=postgres.as_superuser(database),
    )[0][0]
    cost = extract_parameters(stored)
    assert cost.type is Type.ID
    # OWASP's first choice: 19 MiB, two passes, one lane.
    assert (cost.memory_cost, cost.time_cost, cost.parallelism) == (19 * 1024, 2, 1)
    assert PASSWORD not in stored


def test_no_answer_ever_shows_a_password_or_its_hash(nobody: Api) -> None:
    email = address()
    for answer in (registered(nobody, email=email), log_in(nobody, email)):
        assert PASSWORD not in answer.text
        assert "argon2" not in answer.text


@pytest.mark.parametrize(
    ("taken", "wanted"),
    [
        ("{}@Example.org", "{}@example.ORG"),
        ("{}@example.org", "{}@example.org"),
        ("Ümlaut{}@example.org", "üMLAUT{}@example.org"),
        (" {}@example.org ", "{}@example.org"),
    ],
)
def test_an_address_is_unique_whatever_its_case(nobody: Api, taken: str, wanted: str) -> None:
    unique = uuid4().hex
    assert registered(nobody, email=taken.format(unique)).status_code == 201
    refused = registered(nobody, email=wanted.format(unique.upper()))
    assert (refused.status_code, refused.code) == (409, "email_taken")


@pytest.mark.parametrize("form", ["{}@example.org", "İ{}@example.org", "Straße{}@example.org"])
def test_a_registered_user_can_log_in_with_the_address_as_it_was_written(
    nobody: Api, form: str
) -> None:
    email = form.format(uuid4().hex)
    assert registered(nobody, email=email).status_code == 201
    assert log_in(nobody, email).status_code == 200


def test_of_two_concurrent_registrations_of_one_address_one_succeeds(
    app: Flask, people: People
) -> None:
    email, answers = address(), []
    start = threading.Barrier(4)

    def register() -> None:
        start.wait()
        answers.append(registered(people.nobody, email=email).status_code)

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [201, 409, 409, 409]


# --- log in ------------------------------------------------------------------------------------


def test_a_login_returns_tokens_that_are_accepted(nobody: Api) -> None:
    email = address()
    user = registered(nobody, email=email).json()
    answer = log_in(nobody, email)
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    assert (body["token_type"], body["user"]) == ("Bearer", user)
    assert body["expires_in"] > 0
    assert Api(nobody.transport, body["access_token"]).get("/api/me").json() == user


def test_a_login_works_whatever_the_case_of_the_address(nobody: Api) -> None:
    email = address()
    registered(nobody, email=email.upper())
    assert log_in(nobody, email).status_code == 200


@pytest.mark.safety("account-enumeration")
def test_a_wrong_password_and_an_unknown_address_get_the_same_answer(nobody: Api) -> None:
    email = address()
    registered(nobody, email=email)
    wrong = log_in(nobody, email, "not the password")
    unknown = log_in(nobody, address())
    assert (wrong.status_code, wrong.code) == (401, "invalid_credentials")
    assert (unknown.status_code, unknown.content) == (wrong.status_code, wrong.content)


@pytest.mark.safety("account-enumeration")
def test_an_unknown_address_is_hashed_like_a_wrong_password(nobody: Api) -> None:
    """By this thread's own time on the processor, which others on the machine do not change."""
    known = address()
    registered(nobody, email=known)
    costs: dict[bool, list[float]] = {True: [], False: []}
    for number in range(60):
        began = time.thread_time()
        log_in(nobody, known if number % 2 else address(), "not the password")
        costs[bool(number % 2)].append(time.thread_time() - began)
    ratio = statistics.median(costs[True]) / statistics.median(costs[False])
    assert 0.8 < ratio < 1.25


def test_spaces_around_an_address_are_ignored(nobody: Api) -> None:
    email = address()
    registered(nobody, email=f" {email}")
    assert log_in(nobody, f"\t{email} ").status_code == 200


def test_passwords_are_compared_to_their_last_character(nobody: Api) -> None:
    email = address()
    long = "x" * 1024
    assert registered(nobody, email=email, password=long).status_code == 201
    assert log_in(nobody, email, long[:-1]).status_code == 401
    assert log_in(nobody, email, long).status_code == 200


# --- refresh and log out -----------------------------------------------------------------------


def refreshing(person: Person) -> Answer:
    return Api(person.api.transport, person.refresh_token).post("/api/refresh")


def test_a_refresh_token_returns_a_new_access_token_of_the_same_session(people: People) -> None:
    person = people.customer()
    answer = refreshing(person)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["token_type"], body["user"]["id"]) == ("Bearer", person.id)
    renewed = Api(person.api.transport, body["access_token"])
    assert renewed.get("/api/me").status_code == 200
    assert person.api.post("/api/logout").status_code == 204
    assert renewed.get("/api/me").code == "invalid_token"


def test_an_access_token_is_refused_as_a_refresh_token(people: People) -> None:
    assert people.customer().api.post("/api/refresh").code == "invalid_token"


def test_an_expired_session_cannot_be_continued(
    people: People, postgres: Postgres, database: str
) -> None:
    person = people.customer()
    postgres.execute(
        "UPDATE sessions SET expires_at = now() - interval '1 second' WHERE user_id = %s",
        person.id,
        dsn=database,
    )
    answer = refreshing(person)
    assert (answer.status_code, answer.code) == (401, "invalid_token")
    assert "expired" in answer.json()["detail"]


def test_after_a_logout_both_tokens_are_refused(people: People) -> None:
    person = people.customer()
    elsewhere = person.signed_in_again()
    assert person.api.post("/api/logout").status_code == 204
    for answer in (person.api.get("/api/me"), person.api.get("/api/orders"), refreshing(person)):
        assert (answer.status_code, answer.code) == (401, "invalid_token")
    # Only this session ended.
    assert elsewhere.api.get("/api/me").status_code == 200


def test_a_logout_during_a_request_is_answered_with_invalid_token(server: Server) -> None:
    owner = server.people.customer()
    order = owner.order()
    path = f"/api/orders/{order['id']}"
    for _ in range(10):
        leaving = owner.signed_in_again()
        answers = at_once(
            [
                lambda api=leaving.api: api.post("/api/orders", json={"description": "x"}),
                lambda api=leaving.api: api.post("/api/logout"),
                lambda api=leaving.api: api.put(path, json={"description": uuid4().hex}),
                lambda api=leaving.api: api.get("/api/me"),
                lambda api=leaving.api: api.post(
                    "/api/orders", json={"description": "y"}, headers={"Idempotency-Key": "k"}
                ),
            ]
        )
        for answer in answers:
            assert answer.status_code in (200, 201, 204, 401), answer.text
            assert answer.code in (None, "invalid_token")


def test_a_refused_token_is_answered_with_www_authenticate(nobody: Api) -> None:
    answer = nobody.get("/api/me")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


# --- users, for admins -------------------------------------------------------------------------


def test_an_admin_lists_users_page_by_page(people: People) -> None:
    admin = people.admin()
    made = [people.customer() for _ in range(3)]
    page = admin.api.get(f"/api/admin/users?after={int(made[0].id) - 1}&limit=2").json()
    assert [user["id"] for user in page["users"]] == [made[0].id, made[1].id]
    rest = admin.api.get(f"/api/admin/users?after={page['next_after']}").json()
    assert made[2].id in [user["id"] for user in rest["users"]]
    assert rest["next_after"] is None


def test_a_changed_role_takes_effect_at_once(people: People) -> None:
    admin, person = people.admin(), people.customer()
    assert person.api.get("/api/admin/orders").code == "forbidden"
    answer = admin.api.patch(f"/api/admin/users/{person.id}", json={"role": "driver"})
    assert (answer.status_code, answer.json()["role"]) == (200, "driver")
    assert person.api.get("/api/admin/orders").status_code == 200
    admin.api.patch(f"/api/admin/users/{person.id}", json={"role": "user"})
    assert person.api.get("/api/admin/orders").code == "forbidden"


def test_a_role_change_is_recorded_with_admin_user_and_both_roles(
    people: People, postgres: Postgres, database: str
) -> None:
    admin, person = people.admin(), people.customer()
    admin.api.patch(f"/api/admin/users/{person.id}", json={"role": "driver"})
    admin.api.patch(f"/api/admin/users/{person.id}", json={"role": "admin", "active": False})
    admin.api.patch(f"/api/admin/users/{person.id}", json={"active": True})
    person.signed_in_again().api.post("/api/logout")
    changes = postgres.execute(
        "SELECT reason, actor_id::text, old_role, new_role FROM access_changes"
        " WHERE user_id = %s ORDER BY id",
        person.id,
        dsn=database,
    )
    assert changes == [
        ("role_changed", admin.id, "user", "driver"),
        ("role_changed", admin.id, "driver", "admin"),
        ("deactivated", admin.id, "admin", None),
        ("signed_out", person.id, None, None),
    ]


def test_a_deactivated_user_loses_its_sessions_and_cannot_log_in(people: People) -> None:
    admin, person = people.admin(), people.customer()
    answer = admin.api.patch(f"/api/admin/users/{person.id}", json={"active": False})
    assert (answer.status_code, answer.json()["active"]) == (200, False)
    assert person.api.get("/api/me").code == "invalid_token"
    assert refreshing(person).code == "invalid_token"
    assert log_in(people.nobody, person.email).code == "invalid_credentials"
    admin.api.patch(f"/api/admin/users/{person.id}", json={"active": True})
    assert log_in(people.nobody, person.email).status_code == 200
    # Sessions that were revoked at the deactivation stay revoked.
    assert person.api.get("/api/me").code == "invalid_token"


@pytest.mark.parametrize("change", [{"role": "user"}, {"role": "driver"}, {"active": False}])
def test_an_admin_cannot_change_its_own_role_or_deactivate_itself(
    people: People, change: dict[str, object]
) -> None:
    admin = people.admin()
    answer = admin.api.patch(f"/api/admin/users/{admin.id}", json=change)
    assert (answer.status_code, answer.code) == (403, "forbidden")
    assert admin.api.get("/api/admin/users").status_code == 200


def test_changing_an_unknown_user_is_not_found(people: People) -> None:
    answer = people.admin().api.patch(f"/api/admin/users/{2**62}", json={"role": "driver"})
    assert (answer.status_code, answer.code) == (404, "not_found")
