"""Idempotency-Key: however often a request is repeated with one key, it places one order."""

from typing import Any
from uuid import uuid4

import pytest

from tests.support.http import Answer
from tests.support.parallel import at_once
from tests.support.people import People, Person
from tests.support.servers import Server


def place(person: Person, key: str, description: str = "apples") -> Answer:
    body = {"description": description}
    return person.api.post("/api/orders", json=body, headers={"Idempotency-Key": key})


def own_orders(person: Person) -> list[dict[str, Any]]:
    orders: list[dict[str, Any]] = person.api.get("/api/orders").json()["orders"]
    return orders


def test_a_repeated_key_returns_the_same_order(people: People) -> None:
    owner, key = people.customer(), uuid4().hex
    first, second = place(owner, key), place(owner, key)
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.json() == first.json()
    assert second.headers["Location"] == first.headers["Location"]
    assert len(own_orders(owner)) == 1
    assert len(owner.history(first.json())) == 1


def test_a_repeated_key_returns_the_orders_present_state(people: People) -> None:
    owner, key = people.customer(), uuid4().hex
    order = place(owner, key).json()
    people.driver().move(order, "Processing")
    again = place(owner, key)
    assert (again.json()["status"], again.headers["ETag"]) == ("Processing", '"2"')


def test_a_repeated_key_with_another_body_is_refused(people: People) -> None:
    owner, key = people.customer(), uuid4().hex
    place(owner, key, "apples")
    answer = place(owner, key, "pears")
    assert (answer.status_code, answer.code) == (422, "idempotency_key_reused")
    assert len(own_orders(owner)) == 1


@pytest.mark.safety("keys-of-others")
def test_keys_of_different_users_are_independent(people: People) -> None:
    one, other, key = people.customer(), people.customer(), uuid4().hex
    first, second = place(one, key), place(other, key, "pears")
    assert second.status_code == 201
    assert second.json()["id"] != first.json()["id"]
    assert second.json()["customer"]["id"] == other.id


def test_a_refused_request_does_not_use_its_key(people: People) -> None:
    owner, key = people.customer(), uuid4().hex
    assert place(owner, key, "").code == "validation_failed"
    assert place(owner, key).status_code == 201


def test_the_key_of_a_deleted_order_is_refused(people: People) -> None:
    owner, key = people.customer(), uuid4().hex
    owner.delete(place(owner, key).json())
    answer = place(owner, key)
    assert (answer.status_code, answer.code) == (409, "conflict")
    assert own_orders(owner) == []


def test_without_a_key_every_request_places_an_order(people: People) -> None:
    owner = people.customer()
    assert owner.order()["id"] != owner.order()["id"]


@pytest.mark.safety("same-key-at-once")
def test_twenty_concurrent_requests_with_one_key_place_one_order(server: Server) -> None:
    owner, key = server.people.customer(), uuid4().hex
    answers = at_once([lambda: place(owner, key)] * 20)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(own_orders(owner)) == 1


@pytest.mark.safety("same-key-at-once")
def test_of_two_concurrent_bodies_with_one_key_one_is_placed(server: Server) -> None:
    owner, key = server.people.customer(), uuid4().hex
    answers = at_once(
        [lambda d=description: place(owner, key, d) for description in ("apples", "pears") * 5]
    )
    [order] = own_orders(owner)
    for answer, sent in zip(answers, ("apples", "pears") * 5, strict=True):
        if sent == order["description"]:
            assert (answer.status_code, answer.json()["id"]) == (201, order["id"])
        else:
            assert (answer.status_code, answer.code) == (422, "idempotency_key_reused")
