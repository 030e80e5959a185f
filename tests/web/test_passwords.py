"""Password changes, one-time reset links, and the list of open sessions."""

from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from flask import Flask
from itsdangerous import TimestampSigner

from ordertrack import auth
from ordertrack.services import passwords
from tests.support.http import Answer
from tests.support.people import PASSWORD, People, Person

NEW = "an entirely new password"


def log_in(person: Person, password: str) -> Answer:
    return person.api.request(
        "POST", "/api/login", json={"email": person.email, "password": password}
    )


def change(person: Person, current: str = PASSWORD, new: str = NEW) -> Answer:
    body = {"current_password": current, "new_password": new}
    return person.api.put("/api/me/password", json=body)


def pointers(answer: Answer) -> list[str]:
    return [error["pointer"] for error in answer.json()["errors"]]


# --- changing the password -----------------------------------------------------------------------


def test_a_changed_password_replaces_the_old_one_at_login(people: People) -> None:
    person = people.customer()
    assert change(person).status_code == 204
    assert log_in(person, PASSWORD).code == "invalid_credentials"
    assert log_in(person, NEW).status_code == 200


def test_changing_the_password_revokes_all_other_sessions(people: People) -> None:
    person = people.customer()
    other = person.signed_in_again()
    assert change(person).status_code == 204
    assert person.api.get("/api/me").status_code == 200
    assert other.api.get("/api/me").code == "invalid_token"


def test_changing_the_password_requires_the_current_one(people: People) -> None:
    person = people.customer()
    refused = change(person, current="a guess at the password")
    assert (refused.status_code, pointers(refused)) == (422, ["/current_password"])
    assert log_in(person, PASSWORD).status_code == 200


def test_a_new_password_must_be_long_enough(people: People) -> None:
    person = people.customer()
    refused = change(person, new="short")
    assert (refused.status_code, pointers(refused)) == (422, ["/new_password"])


# --- reset links ---------------------------------------------------------------------------------


def redeem(people: People, token: str, password: str = NEW) -> Answer:
    return people.nobody.post("/api/password-reset", json={"token": token, "password": password})


def reset_token(people: People, person: Person) -> str:
    answer = people.admin().api.post(f"/api/admin/users/{person.id}/password-reset")
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


def test_a_reset_link_sets_a_password_once_and_revokes_every_session(people: People) -> None:
    person = people.customer()
    token = reset_token(people, person)
    assert redeem(people, token).status_code == 204
    assert log_in(person, NEW).status_code == 200
    assert person.api.get("/api/me").code == "invalid_token"
    again = redeem(people, token, "yet another password")
    assert (again.status_code, pointers(again)) == (422, ["/token"])
    assert log_in(person, NEW).status_code == 200


def test_a_reset_link_is_void_after_the_password_was_changed(people: People) -> None:
    person = people.customer()
    token = reset_token(people, person)
    assert change(person).status_code == 204
    assert redeem(people, token, "yet another password").status_code == 422
    assert log_in(person, NEW).status_code == 200


def test_a_reset_link_is_void_for_a_deactivated_user(people: People) -> None:
    admin, person = people.admin(), people.customer()
    token = reset_token(people, person)
    admin.api.patch(f"/api/admin/users/{person.id}", json={"active": False})
    assert redeem(people, token).status_code == 422
    assert admin.api.post(f"/api/admin/users/{person.id}/password-reset").code == "not_found"


def test_a_reset_link_expires(app: Flask, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    person = people.customer()
    with app.app_context():
        reset = passwords.reset_for(person.email)
        now = TimestampSigner("-").get_timestamp()
        for age, status in ((auth.RESET_SECONDS + 2, 422), (auth.RESET_SECONDS - 60, 204)):
            with monkeypatch.context() as clock:
                clock.setattr(TimestampSigner, "get_timestamp", lambda _, made=now - age: made)
                token = auth.sign_reset(reset)
            assert redeem(people, token).status_code == status


def test_a_reset_link_cannot_be_forged_or_used_for_another_user(people: People) -> None:
    person = people.customer()
    token = reset_token(people, person)
    middle = len(token) // 2
    forged = token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :]
    for wrong in (forged, person.token, "", "a.b.c", "\x00"):
        assert redeem(people, wrong).status_code == 422, wrong
    # And an access token is not made of one.
    assert people.nobody.get("/api/me", headers={"Authorization": f"Bearer {token}"}).code == (
        "invalid_token"
    )


def test_the_reset_link_of_the_users_page_opens_the_form(people: People) -> None:
    person = people.customer()
    page = people.admin().api.post(f"/users/{person.id}/reset", headers={"Accept": "text/html"})
    link = page.text.partition('readonly value="')[2].partition('"')[0]
    parts = urlsplit(link)
    assert (parts.scheme, parts.path) == ("http", "/reset")
    form = people.nobody.get(f"{parts.path}?{parts.query}", headers={"Accept": "text/html"})
    token = parse_qs(parts.query)["token"][0]
    assert f'name="token" value="{token}"' in form.text
    assert redeem(people, token).status_code == 204


# --- sessions ------------------------------------------------------------------------------------


def test_sessions_are_listed_and_revoked_one_by_one(people: People) -> None:
    person = people.customer()
    other = person.signed_in_again()
    listed = person.api.get("/api/me/sessions").json()["sessions"]
    assert [session["is_current"] for session in listed] == [False, True]
    assert set(listed[0]) == {"id", "user_agent", "created_at", "expires_at", "is_current"}
    assert person.api.request("DELETE", f"/api/me/sessions/{listed[0]['id']}").status_code == 204
    assert other.api.get("/api/me").code == "invalid_token"
    assert len(person.api.get("/api/me/sessions").json()["sessions"]) == 1
    again = person.api.request("DELETE", f"/api/me/sessions/{listed[0]['id']}")
    assert again.code == "not_found"


def test_a_session_of_another_user_cannot_be_revoked(people: People) -> None:
    person, stranger = people.customer(), people.admin()
    session = person.api.get("/api/me/sessions").json()["sessions"][0]["id"]
    assert stranger.api.request("DELETE", f"/api/me/sessions/{session}").code == "not_found"
    assert person.api.get("/api/me").status_code == 200


def test_a_session_names_its_client(people: People) -> None:
    person = people.customer()
    people.nobody.post(
        "/api/login",
        json={"email": person.email, "password": PASSWORD},
        headers={"User-Agent": "Courier/2.1 " + "x" * 1000},
    )
    newest = person.api.get("/api/me/sessions").json()["sessions"][0]
    assert newest["user_agent"].startswith("Courier/2.1 x")
    assert len(newest["user_agent"]) == 300


# --- finding users -------------------------------------------------------------------------------


def test_users_are_found_by_text_in_name_or_address(people: People) -> None:
    admin, word = people.admin(), uuid4().hex
    one, two = people.customer(f"Ann {word.upper()}"), people.driver(f"Per%cent {word}")
    people.customer("Somebody else")

    def found(words: str) -> list[str]:
        users = admin.api.get(f"/api/admin/users?q={words}").json()["users"]
        return [user["id"] for user in users]

    assert found(word) == [one.id, two.id]
    assert found(two.email.upper()) == [two.id]
    # A wildcard of SQL means itself.
    assert found(f"Per%25cent%20{word}") == [two.id]
    assert found(f"%25{word}") == []
