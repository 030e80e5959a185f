"""``flask --app wsgi demo``"""

from datetime import UTC, datetime
from typing import Any

from ordertrack.lifecycle import Status
from tests.cli.conftest import Own
from tests.support.http import Api


def credentials(output: str) -> dict[str, tuple[str, str]]:
    """Role → address and password, read from what the command printed."""
    first, *lines = output.splitlines()
    password = first.rsplit(" ", 1)[1]
    return {line.split()[1]: (line.split()[2], password) for line in lines}


def signed_in(own: Own, email: str, password: str) -> Api:
    answer = own.people.nobody.post("/api/login", json={"email": email, "password": password})
    assert answer.status_code == 200, answer.text
    return Api(own.people.transport, answer.json()["access_token"])


def all_orders(admin: Api) -> list[dict[str, Any]]:
    orders: list[dict[str, Any]] = admin.get("/api/admin/orders?limit=100").json()["orders"]
    return orders


def test_the_printed_credentials_log_three_users_in(own: Own) -> None:
    result = own.flask("demo")
    assert result.exit_code == 0, result.output
    for role, (email, password) in credentials(result.output).items():
        person = signed_in(own, email, password)
        assert person.get("/api/me").json()["role"] == role


def test_a_password_may_be_chosen(own: Own) -> None:
    own.flask("demo", "--password", "for my screenshots")
    signed_in(own, "driver@example.org", "for my screenshots")


def test_orders_have_every_status_with_plausible_histories(own: Own) -> None:
    admin = signed_in(own, *credentials(own.flask("demo").output)["admin"])
    orders = all_orders(admin)
    assert {order["status"] for order in orders} == set(Status)
    assert len(orders) >= 24
    now = datetime.now(UTC)
    for order in orders:
        history = admin.get(f"/api/orders/{order['id']}/history").json()["events"]
        times = [datetime.fromisoformat(event["updated_at"]) for event in history]
        assert times == sorted(times)
        assert len(set(times)) == len(times)
        assert times[-1] < now
        assert history[-1]["status"] == order["status"]
    # Newest first by id is newest first by time, too.
    created = [order["created_at"] for order in orders]
    assert created == sorted(created, reverse=True)
    assert own.flask("audit", "verify").exit_code == 0


def test_the_demo_is_created_once(own: Own) -> None:
    own.flask("demo")
    again = own.flask("demo", "--beside-others")
    assert again.exit_code == 1
    assert "The demo is here already" in again.output


def test_the_demo_is_created_beside_other_users_only_with_the_option(own: Own) -> None:
    admin = own.people.admin()
    refused = own.flask("demo")
    assert refused.exit_code == 1
    assert "This database has 1 users" in refused.output
    assert all_orders(admin.api) == []

    assert own.flask("demo", "--beside-others").exit_code == 0
    assert all_orders(admin.api) != []


def test_a_password_that_is_too_short_creates_nothing(own: Own) -> None:
    assert own.flask("demo", "--password", "short").exit_code == 1
    assert own.flask("users", "list").output == ""
