"""Socket.IO with the stock Python client: connect, subscribe, receive events, be logged out."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from flask import Flask

from ordertrack.errors import Unavailable
from ordertrack.realtime.database_gate import DatabaseGate
from ordertrack.services import callers
from ordertrack.services.orders import Budget
from tests.realtime.fakes import FakeWatcher
from tests.support.events import append_event
from tests.support.http import Api
from tests.support.people import People, Person
from tests.support.servers import Server, running_server
from tests.support.waiting import eventually
from tests.support.watchers import Refused, SocketIOWatcher, raw_watching, settled, watching


@pytest.fixture
def owner(server: Server) -> Person:
    return server.people.customer()


@pytest.fixture
def driver(server: Server) -> Person:
    return server.people.driver()


@pytest.fixture
def watcher(server: Server, owner: Person) -> Iterator[SocketIOWatcher]:
    with watching(server, owner.token) as connected:
        yield connected


def refusal(answer: Any) -> tuple[Any, Any]:
    """Status and code of a negative acknowledgement."""
    assert answer["ok"] is False
    assert {"type", "title", "status", "detail", "code"} <= set(answer["error"])
    return answer["error"]["status"], answer["error"]["code"]


# --- connecting --------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", [None, {}, {"token": None}, {"jwt": "x"}, "x", ["x"], 1])
def test_a_connection_without_a_token_is_refused_with_the_problem(
    server: Server, auth: Any
) -> None:
    with pytest.raises(Refused) as refused:
        SocketIOWatcher(server, auth)
    assert refused.value.problem == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "detail": "An access token is required.",
        "code": "invalid_token",
    }


def upgrading() -> dict[str, str]:
    """The headers of a WebSocket's handshake."""
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }


def test_a_revoked_session_cannot_connect(server: Server, owner: Person) -> None:
    for _ in range(10):  # in some of them the relay tells of it while CONNECT is being answered
        session = owner.signed_in_again()
        session.api.post("/api/logout")
        with pytest.raises(Refused) as refused, watching(server, session.token):
            pass
        assert refused.value.code == "invalid_token"


def test_a_page_connects_with_its_cookie(server: Server, owner: Person) -> None:
    cookie = {"Cookie": f"theme=dark; access_token_cookie={owner.token}"}
    # The library adds the Origin itself where it makes a WebSocket.
    for transport, origin in (("websocket", {}), ("polling", {"Origin": server.url})):
        watcher = SocketIOWatcher(server, None, headers=cookie | origin, transports=[transport])
        with contextlib.closing(watcher):
            assert watcher.watch(owner.order())["version"] == 1


def test_a_token_takes_precedence_over_a_cookie(
    server: Server, owner: Person, driver: Person
) -> None:
    headers = {"Cookie": f"access_token_cookie={driver.token}"}
    with watching(server, owner.token, headers=headers) as watcher:
        other = server.people.customer().order()
        assert refusal(watcher.call("subscribe", {"order_id": other["id"]})) == (404, "not_found")
    with pytest.raises(Refused) as refused, watching(server, "forged", headers=headers):
        pass
    assert refused.value.code == "invalid_token"


def test_polling_works_where_websockets_do_not(
    server: Server, owner: Person, driver: Person
) -> None:
    order = owner.order()
    with watching(server, owner.token, transports=["polling"]) as watcher:
        assert watcher.watch(order, after=0)["events"] == owner.history(order)
        driver.move(order, "Processing", "Shipped", "Completed")
        assert settled(watcher, order, 4) == [2, 3, 4]


@pytest.mark.safety("sockets-of-other-sites")
@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://127.0.0.1:1", "x"],
)
@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_a_page_of_another_site_cannot_use_the_cookie(
    server: Server, owner: Person, origin: str, transport: str
) -> None:
    """The same request from a page of ours is let in."""
    address = f"{server.url}/socket.io/?EIO=4&transport={transport}"
    sent = {"Cookie": f"access_token_cookie={owner.token}", "Origin": origin}
    sent |= upgrading() if transport == "websocket" else {}
    refused = requests.get(address, headers=sent, timeout=10)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    sent["Origin"] = server.url
    with requests.get(address, headers=sent, timeout=10, stream=True) as admitted:
        assert admitted.status_code == (101 if transport == "websocket" else 200)


def test_behind_two_trusted_proxies_the_origin_is_the_one_that_the_browser_sees(
    database: str, start_server: Any
) -> None:
    """Forms and sockets alike. Each proxy has added what it was asked for."""
    server = start_server(database, TRUSTED_PROXIES="2")
    told = {
        "X-Forwarded-For": "203.0.113.9, 10.0.0.2",
        "X-Forwarded-Proto": "https, http",
        "X-Forwarded-Host": "track.example, inner:8080",
    }
    cookie = {"Cookie": f"access_token_cookie={server.people.customer().token}"}
    for origin, ours in [
        ("https://track.example", True),
        ("http://track.example", False),
        ("http://inner:8080", False),
        (server.url, False),
    ]:
        sent = told | {"Origin": origin}
        address = f"{server.url}/socket.io/?EIO=4&transport=polling"
        polled = requests.get(address, headers=sent | cookie, timeout=10)
        assert polled.status_code == (200 if ours else 403), origin
        raw = requests.get(f"{server.url}/ws/orders/1", headers=sent | upgrading(), timeout=10)
        assert raw.status_code == (401 if ours else 403), (
            "a token is asked for, or the page refused"
        )
        form = requests.post(f"{server.url}/login", headers=sent, data={}, timeout=10)
        assert (form.status_code == 403) is not ours


def test_an_unknown_event_is_answered_with_a_problem(watcher: SocketIOWatcher) -> None:
    for name in ("subscrib", "message", "*", "x" * 1000):
        answer = watcher.call(name, {"order_id": "1"})
        assert refusal(answer) == (404, "not_found"), name
        assert len(answer["error"]["detail"]) < 100
    watcher.emit("subscrib", {})  # without one it is ignored
    assert watcher.call("unsubscribe", {"feed": "orders"}) == {"ok": True}


def test_a_connection_that_has_ended_takes_no_turn_at_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thousands may wait at the gate, some of them for longer than their clients do."""
    asked: list[object] = []
    monkeypatch.setattr(callers, "identify", asked.append)
    gate = DatabaseGate(1, Budget())
    watcher = FakeWatcher()
    gate.identify(watcher)
    watcher.is_alive = False
    with pytest.raises(Unavailable):
        gate.identify(watcher)
    assert len(asked) == 1


# --- subscribing to one order ------------------------------------------------------------------


def test_a_subscription_is_answered_with_the_order(
    owner: Person, driver: Person, watcher: SocketIOWatcher
) -> None:
    order = owner.order()
    driver.move(order, "Processing")
    answer = watcher.call("subscribe", {"order_id": order["id"]})
    assert answer == {"ok": True, "order": owner.read(order), "version": 2, "events": []}


@pytest.mark.parametrize("after", range(5))
def test_a_subscription_with_after_is_answered_with_the_missed_events(
    owner: Person, driver: Person, watcher: SocketIOWatcher, after: int
) -> None:
    order = owner.order()
    driver.move(order, "Processing", "Shipped", "Completed")
    answer = watcher.watch(order, after)
    assert answer["events"] == owner.history(order, after)
    assert [event["version"] for event in answer["events"]] == list(range(after + 1, 5))
    assert (answer["version"], answer["order"]) == (4, owner.read(order))
    assert "reset" not in answer


@pytest.mark.safety("client-offline")
def test_an_after_that_the_order_has_not_reached_is_refused(
    owner: Person, watcher: SocketIOWatcher
) -> None:
    order = owner.order()
    answer = watcher.call("subscribe", {"order_id": order["id"], "after": 2})
    assert refusal(answer) == (422, "validation_failed")
    owner.edit(order, "changed")
    owner.edit(second := owner.order(), "changed")
    watcher.watch(second, after=1)
    owner.edit(second, "changed again")
    settled(watcher, second, 3)
    assert watcher.versions(order) == []  # it was not joined


def test_an_order_id_may_be_text_or_a_number(owner: Person, watcher: SocketIOWatcher) -> None:
    order = owner.order()
    for order_id in (order["id"], int(order["id"])):
        assert watcher.call("subscribe", {"order_id": order_id})["version"] == 1


def test_updates_are_the_events_of_the_history(
    server: Server, owner: Person, driver: Person, watcher: SocketIOWatcher
) -> None:
    admin = server.people.admin()
    order = owner.order()
    watcher.watch(order)
    owner.edit(order, "pears & 🍐")
    admin.assign(order, driver)
    driver.move(order, "Processing", note="on my way")
    driver.move(order, "Shipped", "Completed")
    admin.delete(order)
    assert settled(watcher, order, 7) == list(range(2, 8))
    assert watcher.updates == admin.history(order, after=1)


def test_missed_and_live_events_join_without_a_gap(
    server: Server, owner: Person, driver: Person
) -> None:
    order = owner.order()
    with watching(server, owner.token) as first:
        first.watch(order)
        driver.move(order, "Processing")
        settled(first, order, 2)
    driver.move(order, "Shipped")
    with watching(server, owner.token) as second:
        missed = second.watch(order, after=2)["events"]
        driver.move(order, "Completed")
        settled(second, order, 4)
        assert [*first.updates, *missed, *second.updates] == owner.history(order, after=1)


def test_a_client_that_subscribes_in_three_ways_gets_each_event_once(
    owner: Person, driver: Person, watcher: SocketIOWatcher
) -> None:
    order = owner.order()
    watcher.watch(order)
    watcher.watch(order, after=0)
    assert watcher.call("subscribe", {"feed": "orders"}) == {"ok": True}
    watcher.call("subscribe", {"orders": [{"order_id": order["id"]}]})
    driver.move(order, "Processing", "Shipped", "Completed")
    assert settled(watcher, order, 4) == [2, 3, 4]


def test_no_events_after_unsubscribing(
    owner: Person, driver: Person, watcher: SocketIOWatcher
) -> None:
    left, kept = owner.order(), owner.order()
    watcher.watch(left)
    watcher.watch(kept)
    assert watcher.call("unsubscribe", {"order_id": left["id"]}) == {"ok": True}
    assert watcher.call("unsubscribe", {"order_id": left["id"]}) == {"ok": True}  # twice is fine
    driver.move(left, "Processing")
    driver.move(kept, "Processing")
    settled(watcher, kept, 2)
    assert watcher.versions(left) == []


def test_a_client_that_unsubscribed_resumes_with_after(
    owner: Person, driver: Person, watcher: SocketIOWatcher
) -> None:
    order = owner.order()
    watcher.watch(order)
    watcher.call("unsubscribe", {"order_id": order["id"]})
    driver.move(order, "Processing")
    assert [event["version"] for event in watcher.watch(order, after=1)["events"]] == [2]
    driver.move(order, "Shipped")
    assert settled(watcher, order, 3) == [3]


def test_a_deleted_order_is_announced_and_then_not_found(
    owner: Person, watcher: SocketIOWatcher
) -> None:
    order = owner.order()
    watcher.watch(order)
    owner.delete(order)
    settled(watcher, order, 2)
    assert watcher.updates[-1]["type"] == "deleted"
    answer = watcher.call("subscribe", {"order_id": order["id"], "after": 1})
    assert refusal(answer) == (404, "not_found")


@pytest.mark.safety("client-offline")
@pytest.mark.parametrize("missed", [500, 501])
def test_too_many_missed_events_are_a_reset_instead_of_a_replay(
    server: Server, owner: Person, watcher: SocketIOWatcher, missed: int
) -> None:
    order = owner.order()
    append_event(server.dsn, order, count=missed)
    answer = watcher.watch(order, after=1)
    assert (answer["version"], answer["order"]["version"]) == (missed + 1, missed + 1)
    if missed == 500:
        assert answer["events"] == owner.history(order, after=1)
        assert "reset" not in answer
    else:
        assert (answer["events"], answer["reset"]) == ([], True)
        # A raw socket, which has no acknowledgement, gets the latest event instead.
        with raw_watching(server, order, owner.token, after=1) as raw:
            assert raw.next()["version"] == missed + 1
    owner.edit(order, "live again")
    assert settled(watcher, order, missed + 2) == [missed + 2]


# --- many, and feeds ---------------------------------------------------------------------------


def test_many_orders_are_answered_one_by_one_in_the_order_asked(
    server: Server, owner: Person, watcher: SocketIOWatcher
) -> None:
    first, second = owner.order(), owner.order()
    owner.edit(second, "changed")
    others = server.people.customer().order()
    answer = watcher.call(
        "subscribe",
        {
            "orders": [
                {"order_id": second["id"], "after": 0},
                {"order_id": others["id"]},
                {"order_id": first["id"]},
                {"order_id": str(2**62)},
                {"order_id": owner.order()["id"], "after": 9},
            ]
        },
    )
    assert answer["ok"] is True
    one, two, three, four, five = answer["results"]
    assert [event["version"] for event in one["events"]] == [1, 2]
    assert refusal(two) == refusal(four) == (404, "not_found")
    assert two == four
    assert three["order"] == owner.read(first)
    assert refusal(five) == (422, "validation_failed")
    owner.edit(first, "changed")
    owner.edit(second, "changed again")
    assert settled(watcher, first, 2) == [2]
    assert settled(watcher, second, 3) == [3]


def test_two_hundred_orders_in_one_call(owner: Person, watcher: SocketIOWatcher) -> None:
    orders = [owner.order(f"order {n}") for n in range(200)]
    answer = watcher.call("subscribe", {"orders": [{"order_id": one["id"]} for one in orders]})
    assert [result["order"]["id"] for result in answer["results"]] == [one["id"] for one in orders]
    for order in orders[::20]:
        owner.edit(order, "changed")
        assert settled(watcher, order, 2) == [2]


def wanting(*orders: Any) -> dict[str, Any]:
    return {"orders": list(orders)}


@pytest.mark.parametrize(
    "data",
    [
        None,
        "1",
        1,
        [],
        {},
        {"order": "1"},
        {"order_id": None},
        {"order_id": "x"},
        {"order_id": 0},
        {"order_id": -1},
        {"order_id": 1.5},
        {"order_id": True},
        {"order_id": 2**63},
        {"order_id": "9" * 400},
        {"order_id": "1", "after": -1},
        {"order_id": "1", "after": "1"},
        {"order_id": "1", "after": 2**31},
        {"order_id": "1", "after": 1.0},
        {"order_id": "1", "role": "admin"},
        {"order_id": "1", "feed": "orders"},
        {"order_id": "1", "orders": []},
        {"feed": "everything"},
        {"feed": None},
        {"feed": ["orders"]},
        {"orders": "1"},
        {"orders": {}},
        wanting(),
        wanting("1"),
        wanting({"order_id": "1"}, {"order_id": 1}),
        wanting(*({"order_id": n} for n in range(1, 202))),
        wanting({"order_id": "1", "x": 1}),
    ],
    ids=lambda data: repr(data)[:40],
)
def test_a_subscription_of_another_form_is_refused(watcher: SocketIOWatcher, data: Any) -> None:
    assert refusal(watcher.call("subscribe", data)) == (422, "validation_failed")


@pytest.mark.parametrize(
    "data", [None, {}, {"order_id": "x"}, {"feed": "x"}, {"orders": []}, {"order_id": "1", "x": 1}]
)
def test_an_unsubscription_of_another_form_is_refused(watcher: SocketIOWatcher, data: Any) -> None:
    assert refusal(watcher.call("unsubscribe", data)) == (422, "validation_failed")


@pytest.mark.parametrize("data", [None, {}, {"token": None}, {"token": 1}, {"token": "x", "y": 1}])
def test_a_renewal_of_another_form_is_refused(watcher: SocketIOWatcher, data: Any) -> None:
    assert refusal(watcher.call("authenticate", data)) == (422, "validation_failed")


def test_a_feed_shows_customers_their_own_orders_and_staff_all(
    server: Server, owner: Person, driver: Person
) -> None:
    admin, other = server.people.admin(), server.people.customer()
    with contextlib.ExitStack() as stack:
        feeds = {
            person: stack.enter_context(watching(server, person.token))
            for person in (owner, other, driver, admin)
        }
        for feed in feeds.values():
            assert feed.call("subscribe", {"feed": "orders"}) == {"ok": True}
        mine, others = owner.order(), other.order()
        driver.move(mine, "Processing")
        driver.move(others, "Processing")
        for person in (driver, admin):
            assert settled(feeds[person], mine, 2) == [1, 2]
            assert settled(feeds[person], others, 2) == [1, 2]
        assert settled(feeds[owner], mine, 2) == [1, 2]
        assert settled(feeds[other], others, 2) == [1, 2]
        assert feeds[owner].versions(others) == feeds[other].versions(mine) == []
        assert feeds[owner].updates == owner.history(mine)

        feeds[driver].call("unsubscribe", {"feed": "orders"})
        driver.move(mine, "Shipped")
        assert settled(feeds[admin], mine, 3) == [1, 2, 3]
        settled(feeds[owner], mine, 3)
        assert feeds[driver].versions(mine) == [1, 2]


# --- who may watch what ------------------------------------------------------------------------


@pytest.mark.safety("orders-of-others")
def test_every_event_that_a_client_may_send_is_one_of_those_tested_here(app: Flask) -> None:
    """A new event needs its place in the table below; `*` answers those that there are not."""
    handlers = app.extensions["socketio"].server.handlers
    assert set(handlers) == {"/"}
    assert set(handlers["/"]) == {"connect", "disconnect", "*", *EVENTS}


# Callers: stranger, owner, driver, assigned driver, admin. True: it is told of the order's changes.
EVENTS: dict[str, dict[str, tuple[bool, ...]]] = {
    "subscribe": {
        "one": (False, True, True, True, True),
        "many": (False, True, True, True, True),
        "feed": (False, True, True, True, True),
    },
    # Nobody gains anything by these; what they refuse is tested above.
    "unsubscribe": {},
    "authenticate": {},
}


def subscribed(watcher: SocketIOWatcher, way: str, order: dict[str, Any]) -> bool:
    """Whether the server says so; for a refusal, that it is the one for a missing order."""
    if way == "feed":
        return bool(watcher.call("subscribe", {"feed": "orders"})["ok"])
    wanted: Any = {"order_id": order["id"]}
    missing: Any = {"order_id": str(2**62)}
    if way == "many":
        answer = watcher.call("subscribe", wanting(wanted, missing))
        found, nothing = answer["results"]
    else:
        found, nothing = watcher.call("subscribe", wanted), watcher.call("subscribe", missing)
    assert refusal(nothing) == (404, "not_found")
    if not found["ok"]:
        assert found == nothing
    return bool(found["ok"])


@pytest.mark.safety("orders-of-others")
@pytest.mark.parametrize("way", EVENTS["subscribe"])
@pytest.mark.parametrize("scope", ["all", "assigned"])
def test_only_those_who_may_see_an_order_get_its_events(
    server: Server, narrow: Server, driver: Person, way: str, scope: str
) -> None:
    told_by = server if scope == "all" else narrow
    people = server.people
    admin, owner = people.admin(), people.customer()
    crowd = [people.customer(), owner, people.driver(), driver, admin]
    order = owner.order()
    admin.assign(order, driver)
    expected = list(EVENTS["subscribe"][way])
    if scope == "assigned":
        expected[2] = False  # the driver who is not the order's
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(watching(told_by, person.token)) for person in crowd]
        for watcher, may in zip(watchers, expected, strict=True):
            assert subscribed(watcher, way, order) == (may or way == "feed")
        driver.move(order, "Processing", "Shipped")
        for watcher, may in zip(watchers, expected, strict=True):
            if may:
                assert settled(watcher, order, 4) == [3, 4]
        for watcher, may in zip(watchers, expected, strict=True):
            assert may or watcher.versions(order) == []


@pytest.fixture(scope="module")
def narrow(database: str) -> Iterator[Server]:
    """Another process on the same database, with DRIVER_SCOPE=assigned."""
    with running_server(database, DRIVER_SCOPE="assigned") as started:
        yield started


def test_a_driver_who_loses_an_order_is_logged_out_and_gets_no_more_events(
    server: Server, narrow: Server, owner: Person, driver: Person
) -> None:
    admin = server.people.admin()
    order = owner.order()
    admin.assign(order, driver)
    with (
        watching(narrow, driver.token) as watcher,
        watching(narrow, owner.token) as owners,
        raw_watching(narrow, order, driver.token) as raw,
    ):
        watcher.watch(order)
        owners.watch(order)
        assert raw.next()["version"] == 2
        admin.assign(order, None)
        owner.edit(order, "none of your business")
        assert settled(owners, order, 4) == [3, 4]
        assert watcher.closed.wait(10)
        assert [problem["code"] for problem in watcher.signed_out] == ["not_found"]
        assert watcher.versions(order) == []
        assert raw.until_closed() == 1008


def test_orders_cannot_be_changed_over_a_socket(owner: Person, watcher: SocketIOWatcher) -> None:
    """Whatever else is sent, in whatever shape: it changes nothing and breaks nothing."""
    order = owner.order()
    watcher.watch(order)
    for event in ("change_status", "update_status", "order_update", "create", "join", ""):
        watcher.emit(event, {"order_id": order["id"], "status": "Cancelled"})
    assert watcher.watch(order)["version"] == 1
    assert owner.history(order, after=1) == []
    assert watcher.updates == []


@pytest.mark.parametrize("event", ["connect", "disconnect"])
def test_a_client_cannot_send_the_servers_own_events(
    owner: Person, watcher: SocketIOWatcher, event: str
) -> None:
    """They would run the handlers of the handshake, on whatever the client makes up."""
    order = owner.order()
    watcher.emit(event, ({"HTTP_COOKIE": f"access_token_cookie={owner.token}"}, None))
    assert watcher.closed.wait(10)
    owner.edit(order, "changed")
    assert watcher.updates == []


# --- the end of a right ------------------------------------------------------------------------


def ended(watcher: SocketIOWatcher, code: str) -> None:
    """The watcher is told why, once, and closed."""
    assert watcher.closed.wait(10)
    assert [problem["code"] for problem in watcher.signed_out] == [code]
    assert watcher.signed_out[0]["status"] == 401


def end_from_another_session(_: People, person: Person) -> Any:
    other = person.signed_in_again()
    sessions = person.api.get("/api/me/sessions").json()["sessions"]
    [own] = [session["id"] for session in sessions if session["is_current"]]
    return other.api.request("DELETE", f"/api/me/sessions/{own}")


def change_the_password_elsewhere(_: People, person: Person) -> Any:
    body = {"current_password": person.password, "new_password": "an entirely new password"}
    return person.signed_in_again().api.put("/api/me/password", json=body)


def set_a_password_by_a_link(people: People, person: Person) -> Any:
    made = people.admin().api.post(f"/api/admin/users/{person.id}/password-reset")
    body = {"token": made.json()["token"], "password": "an entirely new password"}
    return people.nobody.post("/api/password-reset", json=body)


LOSSES: dict[str, Callable[[People, Person], Any]] = {
    "logging out": lambda _, person: person.api.post("/api/logout"),
    "another role": lambda people, person: people.admin().api.patch(
        f"/api/admin/users/{person.id}", json={"role": "user"}
    ),
    "deactivation": lambda people, person: people.admin().api.patch(
        f"/api/admin/users/{person.id}", json={"active": False}
    ),
    "another session": end_from_another_session,
    "a new password": change_the_password_elsewhere,
    "a one-time link": set_a_password_by_a_link,
}


@pytest.fixture(scope="module")
def second(database: str) -> Iterator[Server]:
    """Another process on the same database. Its poll is slow: wake-ups must suffice."""
    with running_server(database, RELAY_POLL_MS="30000") as started:
        yield started


@pytest.mark.safety("ended-rights-close-sockets")
@pytest.mark.parametrize("loss", LOSSES)
def test_a_revocation_closes_sockets_on_every_process(
    server: Server, second: Server, owner: Person, loss: str
) -> None:
    order = owner.order()
    person = server.people.driver()
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(watching(process, person.token)) for process in (server, second)
        ]
        raws = [
            stack.enter_context(raw_watching(process, order, person.token))
            for process in (server, second)
        ]
        staying = stack.enter_context(watching(second, owner.token))
        for watcher in (*sockets, staying):
            watcher.watch(order)
            watcher.call("subscribe", {"feed": "orders"})
        answer = LOSSES[loss](server.people, person)
        assert answer.status_code < 300
        owner.edit(order, "said behind closed doors")
        for watcher in sockets:
            ended(watcher, "invalid_token")
            assert watcher.versions(order) == []
        for raw in raws:
            assert raw.next()["version"] == 1
            assert raw.until_closed() == 1008
        assert settled(staying, order, 2) == [2]
        assert not staying.closed.is_set()


def test_logging_out_one_session_leaves_the_others_connected(server: Server, owner: Person) -> None:
    elsewhere = owner.signed_in_again()
    order = owner.order()
    with watching(server, owner.token) as leaving, watching(server, elsewhere.token) as staying:
        staying.watch(order)
        owner.api.post("/api/logout")
        ended(leaving, "invalid_token")
        elsewhere.edit(order, "still here")
        settled(staying, order, 2)
        assert not staying.closed.is_set()


@pytest.fixture(scope="module")
def brief(database: str) -> Iterator[Server]:
    """A server whose access tokens live for three seconds."""
    with running_server(database, ACCESS_TOKEN_SECONDS="3") as started:
        yield started


def renewed(person: Person) -> str:
    """A new access token of the same session."""
    answer = Api(person.api.transport, person.refresh_token).post("/api/refresh")
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["access_token"]
    return token


@pytest.mark.safety("ended-rights-close-sockets")
def test_a_socket_is_closed_when_its_token_expires_unless_it_is_renewed(brief: Server) -> None:
    person = brief.people.customer()
    order = person.order()
    with (
        watching(brief, person.token) as expiring,
        watching(brief, person.token) as renewing,
        raw_watching(brief, order, person.token) as raw,
    ):
        expiring.watch(order)
        renewing.watch(order)
        began = time.monotonic()
        token = renewed(person)
        while not expiring.closed.is_set():
            assert time.monotonic() - began < 20, "the token lived for ever"
            token = renewed(person)
            assert renewing.call("authenticate", {"token": token}) == {"ok": True}
            expiring.closed.wait(0.5)
        ended(expiring, "token_expired")
        assert raw.next()["version"] == 1
        assert raw.until_closed() == 1008
        # Nothing was lost by renewing in place.
        brief.people.driver().move(order, "Processing")
        assert settled(renewing, order, 2) == [2]
        assert expiring.versions(order) == []


def test_a_token_of_another_user_cannot_renew_a_connection(
    server: Server, owner: Person, watcher: SocketIOWatcher
) -> None:
    other = server.people.admin()
    assert refusal(watcher.call("authenticate", {"token": other.token})) == (401, "invalid_token")
    others = server.people.customer().order()
    assert refusal(watcher.call("subscribe", {"order_id": others["id"]})) == (404, "not_found")


def test_a_renewed_connection_belongs_to_the_session_of_the_new_token(
    server: Server, owner: Person
) -> None:
    elsewhere = owner.signed_in_again()
    with watching(server, owner.token) as watcher:
        assert watcher.call("authenticate", {"token": elsewhere.token}) == {"ok": True}
        owner.api.post("/api/logout")
        assert watcher.watch(elsewhere.order())["version"] == 1
        elsewhere.api.post("/api/logout")
        ended(watcher, "invalid_token")


@pytest.mark.safety("floods-and-hoarding")
def test_the_connections_of_one_user_are_limited(database: str, start_server: Any) -> None:
    small = start_server(database, MAX_CONNECTIONS_PER_USER="2")
    person, other = small.people.customer(), small.people.customer()
    order = person.order()
    with watching(small, person.token), raw_watching(small, order, person.token):
        with pytest.raises(Refused) as refused, watching(small, person.token):
            pass
        assert refused.value.code == "too_many_requests"
        with pytest.raises(Refused) as refused, raw_watching(small, order, person.token):
            pass
        assert (refused.value.status, refused.value.code) == (429, "too_many_requests")
        with watching(small, other.token):
            pass

    def there_is_room_again() -> bool:
        with contextlib.suppress(Refused), watching(small, person.token):
            return True
        return False

    eventually(there_is_room_again)
