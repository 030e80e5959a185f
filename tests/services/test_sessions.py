"""Logins take the same work for every address, and sessions and tokens expire."""

import time
from types import SimpleNamespace

import pytest
from argon2 import PasswordHasher
from flask import Flask

from ordertrack import auth
from tests.support.databases import Postgres
from tests.support.http import Api
from tests.support.people import People

PASSWORD = "not the password of anybody"


@pytest.mark.safety("account-enumeration")
def test_a_login_computes_one_hash_whoever_it_is_for(
    people: People, nobody: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: argon2 is nearly all of a login, and its cost is in the hash itself."""
    computed: list[str] = []
    verify = PasswordHasher.verify

    def counting(hasher: PasswordHasher, stored: str, password: str) -> bool:
        computed.append(stored.rpartition("$")[0].rpartition("$")[0])  # algorithm and cost
        return verify(hasher, stored, password)

    monkeypatch.setattr(PasswordHasher, "verify", counting)
    known, gone = people.customer(), people.customer()
    people.admin().api.patch(f"/api/admin/users/{gone.id}", json={"active": False})
    computed.clear()
    for email in (known.email, "nobody@example.org", gone.email):
        answer = nobody.post("/api/login", json={"email": email, "password": PASSWORD})
        assert (answer.status_code, answer.code) == (401, "invalid_credentials")
    assert len(computed) == 3
    assert len(set(computed)) == 1, computed


def test_a_session_expires(app: Flask, people: People, postgres: Postgres, database: str) -> None:
    person = people.customer()
    renewing = Api(people.transport, person.refresh_token)
    assert renewing.post("/api/refresh").status_code == 200
    postgres.execute(
        "UPDATE sessions SET expires_at = clock_timestamp() - interval '1 second'"
        " WHERE user_id = %s",
        person.id,
        dsn=postgres.as_superuser(database),
    )
    ended = renewing.post("/api/refresh")
    assert (ended.status_code, ended.code) == (401, "invalid_token")


@pytest.mark.safety("forged-tokens")
def test_a_cached_token_still_expires(
    app: Flask, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verified signature is cached, but the expiry is checked each time."""
    person = people.customer()
    assert person.api.get("/api/me").status_code == 200
    later = time.time() + app.config["JWT_ACCESS_TOKEN_EXPIRES"].total_seconds()
    monkeypatch.setattr(auth, "time", SimpleNamespace(time=lambda: later))
    ended = person.api.get("/api/me")
    assert (ended.status_code, ended.code) == (401, "token_expired")
