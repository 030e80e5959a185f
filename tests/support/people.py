"""Users with a session, and their requests: ``people.driver().move(order, "Shipped")``."""

from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from uuid import uuid4

import psycopg2
from argon2 import PasswordHasher

from tests.support.http import Api, Transport

PASSWORD = "correct horse battery staple"

# Computed once: hashing every person's password would take most of the tests' time. It is a real
# hash with the application's parameters; that registering makes such hashes has its own test.
_PASSWORD_HASH = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1).hash(PASSWORD)

_names = count(1)


@dataclass(frozen=True)
class Person:
    """A user with a session. ``api`` sends requests with the access token ``token``."""

    id: str
    name: str
    email: str
    password: str
    token: str
    refresh_token: str
    api: Api

    def at(self, transport: Transport) -> "Person":
        """The same person with requests to another server of the same database."""
        return replace(self, api=Api(transport, self.token))

    def signed_in_again(self) -> "Person":
        """The same person with another session, as on another device."""
        answer = Api(self.api.transport).post(
            "/api/login", json={"email": self.email, "password": self.password}
        )
        assert answer.status_code == 200, answer.text
        tokens = answer.json()
        return replace(
            self,
            token=tokens["access_token"],
            refresh_token=tokens["refresh_token"],
            api=Api(self.api.transport, tokens["access_token"]),
        )

    def order(self, description: str = "two boxes of apples") -> dict[str, Any]:
        """Place an order; the order as answered."""
        return _good(self.api.post("/api/orders", json={"description": description}), 201)

    def read(self, order: Any) -> dict[str, Any]:
        return _good(self.api.get(f"/api/orders/{id_of(order)}"), 200)

    def move(self, order: Any, *statuses: str, note: str | None = None) -> dict[str, Any]:
        """Take the order through *statuses*; the order as answered last."""
        found: dict[str, Any] = {}
        for status in statuses:
            body = {"status": status} if note is None else {"status": status, "note": note}
            found = _good(self.api.put(f"/api/orders/{id_of(order)}/status", json=body), 200)
        return found

    def edit(self, order: Any, description: str) -> dict[str, Any]:
        answer = self.api.put(f"/api/orders/{id_of(order)}", json={"description": description})
        return _good(answer, 200)

    def assign(self, order: Any, driver: "Person | None") -> dict[str, Any]:
        body = {"driver_id": driver.id if driver else None}
        return _good(self.api.put(f"/api/orders/{id_of(order)}/driver", json=body), 200)

    def delete(self, order: Any) -> None:
        answer = self.api.delete(f"/api/orders/{id_of(order)}")
        assert answer.status_code == 204, answer.text

    def history(self, order: Any, after: int = 0) -> list[dict[str, Any]]:
        """Every event with version > *after*, read page by page."""
        events: list[dict[str, Any]] = []
        while True:
            page = _good(
                self.api.get(f"/api/orders/{id_of(order)}/history?after={after}&limit=500"), 200
            )
            events += page["events"]
            if not page["has_more"]:
                return events
            after = events[-1]["version"]


def id_of(order: Any) -> str:
    """The id of an order, given as the object of an answer or as the id itself."""
    return str(order["id"] if isinstance(order, dict) else order)


def _good(answer: Any, status: int) -> Any:
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    return answer.json()


class People:
    """Makes users of one database, each with a unique email address, and logs them in."""

    def __init__(self, dsn: str, transport: Transport) -> None:
        self._dsn = dsn
        self.transport = transport
        self.nobody = Api(transport)

    def customer(self, name: str | None = None) -> Person:
        return self.make("user", name)

    def driver(self, name: str | None = None) -> Person:
        return self.make("driver", name)

    def admin(self, name: str | None = None) -> Person:
        return self.make("admin", name)

    def make(self, role: str, name: str | None = None) -> Person:
        """A new user with *role*, logged in over REST."""
        name = name or f"{role.title()} {next(_names)}"
        email = f"{uuid4().hex}@example.org"
        connection = psycopg2.connect(self._dsn)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO users (name, email, password_hash, role)"
                    " VALUES (%s, %s, %s, %s) RETURNING id",
                    (name, email, _PASSWORD_HASH, role),
                )
                row = cursor.fetchone()
                assert row is not None
        finally:
            connection.close()
        stranger = Person(str(row[0]), name, email, PASSWORD, "", "", self.nobody)
        return stranger.signed_in_again()
