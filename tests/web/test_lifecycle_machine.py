"""Random sequences of requests: the server agrees with a pure model of it after each."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.support.examples import examples
from tests.support.http import Answer
from tests.support.people import People, Person
from tests.support.rules import GRIDS, STATUSES, may_set, outcome

WHO = st.sampled_from(["owner", "stranger", "driver", "admin"])
TEXT = st.text("ab%é", min_size=1, max_size=5)


@dataclass
class Model:
    """One order as it must be, and what must be in its log: (type, status, actor, what)."""

    id: str
    owner: str
    description: str
    status: str = "Pending"
    driver: str | None = None
    deleted: bool = False
    events: list[tuple[str, str, str, Any]] = field(default_factory=list)

    @property
    def version(self) -> int:
        return len(self.events)

    @property
    def is_final(self) -> bool:
        return self.status in {"Completed", "Cancelled"}


class Machine(RuleBasedStateMachine):
    """Rules make one request each and say what it must answer by the model alone."""

    person: dict[str, Person]
    role = {"owner": "user", "stranger": "user", "driver": "driver", "admin": "admin"}  # noqa: RUF012
    orders = Bundle("orders")

    def __init__(self) -> None:
        super().__init__()
        self.models: list[Model] = []

    # --- helpers --------------------------------------------------------------------------------

    def grid(self, who: str, order: Model) -> str:
        return GRIDS[self.role[who], order.owner == who]

    def sees(self, who: str, order: Model) -> bool:
        return not order.deleted and (self.role[who] != "user" or order.owner == who)

    def expect(self, answer: Answer, status: int, code: str | None = None) -> None:
        assert (answer.status_code, answer.code) == (status, code), answer.text

    def write(
        self,
        who: str,
        order: Model,
        method: str,
        rest: str,
        body: dict[str, Any] | None,
        if_version: int | None,
    ) -> Answer:
        headers = {} if if_version is None else {"If-Match": f'"{if_version}"'}
        path = f"/api/orders/{order.id}{rest}"
        return self.person[who].api.request(method, path, json=body, headers=headers)

    # --- rules ----------------------------------------------------------------------------------

    @rule(target=orders, who=WHO, description=TEXT)
    def place(self, who: str, description: str) -> Model:
        answer = self.person[who].api.post("/api/orders", json={"description": description})
        self.expect(answer, 201)
        order = Model(answer.json()["id"], who, description)
        order.events.append(("created", "Pending", who, {"description": description}))
        self.models.append(order)
        return order

    @rule(
        who=WHO,
        order=orders,
        wanted=st.sampled_from(STATUSES),
        if_match=st.none() | st.integers(-1, 1),
        note=st.none() | TEXT,
    )
    def move(
        self, who: str, order: Model, wanted: str, if_match: int | None, note: str | None
    ) -> None:
        if_version = None if if_match is None else order.version + if_match
        body = {"status": wanted, "note": note}
        answer = self.write(who, order, "PUT", "/status", body, if_version)
        sign = "-" if order.deleted else outcome(self.grid(who, order), order.status, wanted)
        stale = if_version not in (None, order.version)
        if sign == "-":
            self.expect(answer, 404, "not_found")
        elif sign == "x":
            self.expect(answer, 403, "forbidden")
        elif sign == "=":
            self.expect(answer, 200)
        elif stale:
            self.expect(answer, 412, "version_mismatch")
        elif sign == "!":
            self.expect(answer, 409, "invalid_transition")
        else:
            self.expect(answer, 200)
            order.status = wanted
            order.events.append(("status_changed", wanted, who, note))

    @rule(who=WHO, order=orders, description=TEXT, if_match=st.none() | st.integers(-1, 1))
    def edit(self, who: str, order: Model, description: str, if_match: int | None) -> None:
        if_version = None if if_match is None else order.version + if_match
        answer = self.write(who, order, "PUT", "", {"description": description}, if_version)
        if not self.sees(who, order):
            self.expect(answer, 404, "not_found")
        elif who not in {"admin", order.owner}:
            self.expect(answer, 403, "forbidden")
        elif description == order.description:
            self.expect(answer, 200)
        elif if_version not in (None, order.version):
            self.expect(answer, 412, "version_mismatch")
        elif order.is_final or (who != "admin" and order.status != "Pending"):
            self.expect(answer, 409, "conflict")
        else:
            self.expect(answer, 200)
            order.description = description
            what = {"description": description}
            order.events.append(("description_changed", order.status, who, what))

    @rule(who=WHO, order=orders, driver=st.sampled_from(["driver", "owner", None]))
    def assign(self, who: str, order: Model, driver: str | None) -> None:
        driver_id = self.person[driver].id if driver else None
        answer = self.write(who, order, "PUT", "/driver", {"driver_id": driver_id}, None)
        if not self.sees(who, order):
            self.expect(answer, 404, "not_found")
        elif who != "admin":
            self.expect(answer, 403, "forbidden")
        elif driver == order.driver:
            self.expect(answer, 200)
        elif order.is_final:
            self.expect(answer, 409, "conflict")
        elif driver == "owner":  # no driver
            self.expect(answer, 422, "validation_failed")
        else:
            self.expect(answer, 200)
            order.driver = driver
            order.events.append(("driver_assigned", order.status, who, driver))

    @rule(who=WHO, order=orders)
    def delete(self, who: str, order: Model) -> None:
        answer = self.write(who, order, "DELETE", "", None, None)
        if not self.sees(who, order):
            self.expect(answer, 404, "not_found")
        elif who not in {"admin", order.owner}:
            self.expect(answer, 403, "forbidden")
        elif who != "admin" and order.status != "Pending":
            self.expect(answer, 409, "conflict")
        else:
            self.expect(answer, 204)
            order.deleted = True
            order.events.append(("deleted", order.status, who, None))

    @rule(who=WHO)
    def list_own(self, who: str) -> None:
        answer = self.person[who].api.get("/api/orders?limit=100")
        expected = [one.id for one in self.models if one.owner == who and not one.deleted]
        first = int(self.models[0].id) if self.models else 2**63
        # The runs before this one left theirs.
        found = [one["id"] for one in answer.json()["orders"] if int(one["id"]) >= first]
        assert found == expected[::-1]

    # --- invariants -----------------------------------------------------------------------------

    @invariant()
    def everybody_sees_the_order_as_it_is(self) -> None:
        if not self.models:
            return
        order = self.models[-1]
        for who, person in self.person.items():
            answer = person.api.get(f"/api/orders/{order.id}")
            if not self.sees(who, order):
                self.expect(answer, 404, "not_found")
                continue
            self.expect(answer, 200)
            shown = answer.json()
            assert shown["status"] == order.status
            assert shown["version"] == order.version
            assert shown["description"] == order.description
            assert shown["customer"]["id"] == self.person[order.owner].id
            driver = self.person[order.driver].id if order.driver else None
            assert (shown["driver"] or {"id": None})["id"] == driver
            assert shown["next_statuses"] == may_set(self.grid(who, order), order.status)

    def teardown(self) -> None:
        """Every order's log contains exactly its changes, in order."""
        for order in self.models:
            previous = None
            events = self.person["admin"].history(order.id)
            assert len(events) == order.version
            for version, (event, expected) in enumerate(zip(events, order.events, strict=True), 1):
                kind, status, who, what = expected
                assert (event["version"], event["type"]) == (version, kind)
                assert (event["status"], event["previous_status"]) == (status, previous)
                assert event["actor"] == {
                    "id": self.person[who].id,
                    "name": self.person[who].name,
                    "role": self.role[who],
                }
                if kind == "status_changed":
                    assert event["note"] == what
                elif kind == "driver_assigned":
                    driver = event["changes"]["driver"]
                    assert (driver and driver["id"]) == (what and self.person[what].id)
                else:
                    assert event.get("changes") == what
                previous = status


@pytest.mark.safety("conflicting-changes")
def test_the_server_and_the_model_agree_after_any_sequence_of_requests(people: People) -> None:
    class HereAndNow(Machine):
        # The same four for every run: signing in takes longer than all the rest.
        person = {  # noqa: RUF012
            "owner": people.customer(),
            "stranger": people.customer(),
            "driver": people.driver(),
            "admin": people.admin(),
        }

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        HereAndNow,
        settings=settings(
            max_examples=examples(30),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
