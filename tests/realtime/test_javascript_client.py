"""The stock JavaScript client (npm's socket.io-client) watches orders of the real server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.sio.javascript import JavaScriptClient, javascript_client
from tests.support import missing
from tests.support.people import Person, id_of
from tests.support.servers import Server
from tests.support.waiting import eventually


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    missing.node()


@pytest.fixture
def owner(server: Server) -> Person:
    return server.people.customer()


@contextmanager
def watching(
    server: Server, token: str | None, *transports: str, connected: bool = True
) -> Iterator[JavaScriptClient]:
    options: dict[str, Any] = {"auth": {"token": token}}
    if transports:
        options["transports"] = transports
    with javascript_client(server.url, **options) as watcher:
        if connected:
            eventually(lambda: watcher.of("connect") == [None])
        yield watcher


def versions(watcher: JavaScriptClient, order: Any) -> list[int]:
    updates = watcher.of("order_update")
    return [event["version"] for event in updates if event["order_id"] == id_of(order)]


def test_a_refusal_is_a_connect_error_whose_data_is_the_problem(server: Server) -> None:
    with watching(server, "forged", connected=False) as watcher:
        error = watcher.wait_for("connect_error")
    assert error["message"] == error["data"]["detail"]
    assert (error["data"]["status"], error["data"]["code"]) == (401, "invalid_token")


@pytest.mark.parametrize(
    "transports", [("websocket",), ("polling",), ()], ids=["websocket", "polling", "upgrading"]
)
def test_it_gets_the_events_of_the_history(
    server: Server, owner: Person, transports: tuple[str, ...]
) -> None:
    driver = server.people.driver()
    order = owner.order()
    driver.move(order, "Processing")
    with watching(server, owner.token, *transports) as watcher:
        answer = watcher.call("subscribe", {"order_id": order["id"], "after": 1})
        assert answer["ok"] is True
        assert answer["version"] == 2
        assert answer["events"] == owner.history(order, after=1)
        assert answer["order"] == owner.read(order)
        driver.move(order, "Shipped", note="Grüße 🚚")
        if not transports:
            assert watcher.wait_for("upgrade") == "websocket"
        driver.move(order, "Completed")
        eventually(lambda: versions(watcher, order) == [3, 4])
        assert watcher.of("order_update") == owner.history(order, after=2)


def test_it_watches_many_orders_and_a_feed_and_unsubscribes(server: Server, owner: Person) -> None:
    first, second, later = owner.order(), owner.order(), None
    with watching(server, owner.token, "websocket") as watcher:
        wanted = [{"order_id": first["id"], "after": 0}, {"order_id": int(second["id"])}]
        answer = watcher.call("subscribe", {"orders": [*wanted, {"order_id": str(2**62)}]})
        assert [result["ok"] for result in answer["results"]] == [True, True, False]
        assert answer["results"][0]["events"] == owner.history(first)
        assert answer["results"][2]["error"]["code"] == "not_found"
        assert watcher.call("subscribe", {"feed": "orders"}) == {"ok": True}
        later = owner.order()
        owner.edit(first, "changed")
        eventually(lambda: versions(watcher, first) == [2])
        assert versions(watcher, later) == [1]
        assert watcher.call("unsubscribe", {"feed": "orders"}) == {"ok": True}
        assert watcher.call("unsubscribe", {"order_id": first["id"]}) == {"ok": True}
        owner.edit(first, "changed again")
        owner.edit(later, "changed")
        owner.edit(second, "changed")
        eventually(lambda: versions(watcher, second) == [2])
        assert (versions(watcher, first), versions(watcher, later)) == ([2], [1])


def test_a_token_is_renewed_in_place(server: Server, owner: Person) -> None:
    again = owner.signed_in_again()
    with watching(server, owner.token, "websocket") as watcher:
        assert watcher.call("authenticate", {"token": again.token}) == {"ok": True}
        refused = watcher.call("authenticate", {"token": server.people.admin().token})
        assert refused["error"]["code"] == "invalid_token"
        assert watcher.call("subscribe", {"order_id": again.order()["id"]})["ok"] is True


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_logging_out_tells_it_why_and_not_to_reconnect(
    server: Server, owner: Person, transport: str
) -> None:
    with watching(server, owner.token, transport) as watcher:
        watcher.call("subscribe", {"order_id": owner.order()["id"]})
        owner.api.post("/api/logout")
        # The reason that keeps the stock client from coming back by itself.
        assert watcher.wait_for("disconnect") == "io server disconnect"
        assert [problem["code"] for problem in watcher.of("signed_out")] == ["invalid_token"]
