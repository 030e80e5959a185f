"""Plain WebSockets on /ws/orders/<id>, with a plain client."""

from typing import Any
from urllib.parse import quote

import pytest
import websocket

from tests.support.people import Person
from tests.support.servers import Server
from tests.support.watchers import Refused, raw_watching, watching

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture
def owner(server: Server) -> Person:
    return server.people.customer()


@pytest.fixture
def driver(server: Server) -> Person:
    return server.people.driver()


# --- what comes --------------------------------------------------------------------------------


def test_every_message_is_an_event_of_the_history(
    server: Server, owner: Person, driver: Person
) -> None:
    order = owner.order()
    with raw_watching(server, order, owner.token, after=0) as raw:
        driver.move(order, "Processing", note="Grüße 🚚")
        owner.signed_in_again()
        driver.move(order, "Shipped", "Completed")
        assert raw.take(4) == owner.history(order)


def test_a_message_contains_the_message_of_the_original_system(
    server: Server, owner: Person, driver: Person
) -> None:
    order = owner.order()
    driver.move(order, "Processing", "Shipped")
    with raw_watching(server, order, owner.token) as raw:
        message = raw.next()
        assert {"order_id": order["id"], "status": "Shipped"}.items() <= message.items()
        assert message["updated_at"] == owner.read(order)["updated_at"]
        assert message["updated_at"].endswith("Z")


def test_without_after_the_latest_event_comes_first(
    server: Server, owner: Person, driver: Person
) -> None:
    order = owner.order()
    driver.move(order, "Processing", "Shipped")
    with raw_watching(server, order, owner.token) as raw:
        driver.move(order, "Completed")
        assert [message["version"] for message in raw.take(2)] == [3, 4]


@pytest.mark.parametrize("after", range(4))
def test_with_after_exactly_the_missed_events_come_and_then_the_new_ones(
    server: Server, owner: Person, driver: Person, after: int
) -> None:
    order = owner.order()
    driver.move(order, "Processing", "Shipped")
    with raw_watching(server, order, owner.token, after=after) as raw:
        driver.move(order, "Completed")
        assert raw.take(4 - after) == owner.history(order, after)


def test_each_socket_gets_the_events_of_its_own_order_only(server: Server, owner: Person) -> None:
    one, other = owner.order(), owner.order()
    with (
        raw_watching(server, one, owner.token, after=1) as first,
        raw_watching(server, other, owner.token, after=1) as second,
        raw_watching(server, one, owner.token, after=1) as third,
    ):
        owner.edit(other, "changed")
        owner.edit(one, "changed")
        for raw, order in ((first, one), (second, other), (third, one)):
            message = raw.next()
            assert (message["order_id"], message["version"]) == (order["id"], 2)


def test_plain_websockets_and_socketio_clients_get_the_same_events(
    server: Server, owner: Person, driver: Person
) -> None:
    order = owner.order()
    with (
        raw_watching(server, order, owner.token, after=1) as raw,
        watching(server, owner.token) as watcher,
    ):
        watcher.watch(order)
        driver.move(order, "Processing", "Shipped", "Completed")
        assert raw.take(3) == owner.history(order, after=1)
        # The same loop told both, the raw socket not before the other.
        watcher.watch(order)
        assert watcher.updates == owner.history(order, after=1)


def test_the_deletion_of_an_order_is_sent(server: Server, owner: Person) -> None:
    order = owner.order()
    with raw_watching(server, order, owner.token, after=1) as raw:
        owner.delete(order)
        assert raw.next()["type"] == "deleted"


# --- who gets in -------------------------------------------------------------------------------


def refused(server: Server, order: Any, token: str | None, **options: Any) -> tuple[int, str]:
    with pytest.raises(Refused) as error, raw_watching(server, order, token, **options):
        pass
    problem = error.value.problem
    assert problem["status"] == error.value.status
    assert problem["title"]
    assert problem["detail"]
    return problem["status"], problem["code"]


@pytest.mark.safety("orders-of-others")
def test_another_customers_order_looks_like_a_missing_one(server: Server, owner: Person) -> None:
    others, deleted = server.people.customer().order(), owner.order()
    owner.delete(deleted)
    problems = []
    for order in (others, deleted, "1" + "0" * 17, str(2**63 - 1)):
        with pytest.raises(Refused) as error, raw_watching(server, order, owner.token):
            pass
        assert error.value.status == 404
        problems.append(error.value.problem)
    assert all(problem == problems[0] for problem in problems)
    assert problems[0]["code"] == "not_found"


def test_staff_watch_any_order(server: Server, owner: Person, driver: Person) -> None:
    order = owner.order()
    for person in (owner, driver, server.people.admin()):
        with raw_watching(server, order, person.token) as raw:
            assert raw.next()["version"] == 1


def test_a_browser_offers_its_token_as_a_subprotocol(server: Server, owner: Person) -> None:
    order = owner.order()
    offered = ["ordertrack.v1", f"bearer.{owner.token}"]
    for protocols in (offered, offered[::-1]):
        with raw_watching(server, order, subprotocols=protocols) as raw:
            assert raw.subprotocol == "ordertrack.v1"  # the token is never sent back
            assert raw.next()["version"] == 1


def test_a_token_subprotocol_is_used_only_beside_the_protocols_name(
    server: Server, owner: Person
) -> None:
    order = owner.order()
    for protocols in ([f"bearer.{owner.token}"], ["ordertrack.v2", f"bearer.{owner.token}"]):
        found = refused(server, order, None, subprotocols=protocols)
        assert found == (401, "invalid_token")


@pytest.mark.safety("sockets-of-other-sites")
def test_cookies_are_never_used(server: Server, owner: Person) -> None:
    order = owner.order()
    cookie = {"Cookie": f"access_token_cookie={owner.token}"}
    for options in ({}, {"origin": server.url}, {"subprotocols": ["ordertrack.v1"]}):
        assert refused(server, order, None, headers=cookie, **options) == (401, "invalid_token")
    path = f"/ws/orders/{order['id']}"
    for query in (f"?token={owner.token}", f"?access_token={owner.token}", f"?jwt={owner.token}"):
        answer = server.api.get(path + query, headers=HANDSHAKE)
        assert (answer.status_code, answer.code) == (401, "invalid_token")


def test_a_revoked_session_cannot_connect(server: Server, owner: Person) -> None:
    order = owner.order()
    owner.api.post("/api/logout")
    assert refused(server, order, owner.token) == (401, "invalid_token")


# --- origins -----------------------------------------------------------------------------------

FOREIGN = [
    "https://evil.example",
    "null",
    "http://127.0.0.1.evil.example:{port}",
    "http://evil-127.0.0.1:{port}",
    "http://127.0.0.1:{port}@evil.example",
    "http://127.0.0.1:1",
    "https://127.0.0.1:{port}",
    "http://127.0.0.1:{port}.evil.example",
    "http://127.0.0.1:{port}/",
    "file://",
    "127.0.0.1:{port}",
    "x",
]


@pytest.mark.safety("sockets-of-other-sites")
@pytest.mark.parametrize("origin", FOREIGN)
def test_a_page_of_another_site_is_refused(server: Server, owner: Person, origin: str) -> None:
    """With a good token even: the answer comes before anything else is looked at."""
    foreign = origin.format(port=server.port)
    found = refused(server, owner.order(), owner.token, origin=foreign)
    assert found == (403, "forbidden")


def test_own_pages_and_clients_without_an_origin_may_connect(server: Server, owner: Person) -> None:
    order = owner.order()
    for origin in (None, server.url):
        with raw_watching(server, order, owner.token, origin=origin) as raw:
            assert raw.next()["version"] == 1


def test_further_origins_can_be_allowed(database: str, start_server: Any) -> None:
    server = start_server(database, ALLOWED_ORIGINS="https://shop.example.com, http://a.example:81")
    owner = server.people.customer()
    order = owner.order()
    for origin in ("https://shop.example.com", "http://a.example:81", server.url):
        with raw_watching(server, order, owner.token, origin=origin) as raw:
            assert raw.next()["version"] == 1
    for origin in ("http://shop.example.com", "https://shop.example.com:444", "http://a.example"):
        assert refused(server, order, owner.token, origin=origin)[0] == 403


# --- requests that are none --------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "?after=-1",
        "?after=x",
        "?after=",
        f"?after={2**31}",
        "?after=1.0",
        "?after=٣",
        "?after=99",
        "?from=1",
        "?After=1",
        "?after=1&role=admin",
    ],
)
def test_invalid_parameters_are_refused(server: Server, owner: Person, query: str) -> None:
    found = refused(server, owner.order(), owner.token, query=quote(query, safe="?=&"))
    assert found == (422, "validation_failed")


@pytest.mark.parametrize("order", ["x", "-1", "1.0", "", "1/2", str(2**63), "9" * 30, "%00", "٣"])
def test_an_invalid_id_is_not_found(server: Server, owner: Person, order: str) -> None:
    answer = owner.api.get(f"/ws/orders/{quote(order, safe='/%')}", headers=HANDSHAKE)
    assert (answer.status_code, answer.code) == (404, "not_found")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_an_ordinary_request_is_answered_426_upgrade_required(
    server: Server, owner: Person, method: str
) -> None:
    answer = owner.api.request(method, f"/ws/orders/{owner.order()['id']}")
    expected = (426, "upgrade_required") if method == "GET" else (405, "method_not_allowed")
    assert (answer.status_code, answer.code) == expected
    assert answer.headers["Content-Type"] == "application/problem+json"


# --- once it is open ---------------------------------------------------------------------------


def test_messages_of_a_client_are_ignored(server: Server, owner: Person) -> None:
    order = owner.order()
    with raw_watching(server, order, owner.token, after=1) as raw:
        for text in ('{"status": "Cancelled"}', "", "x" * 1000, '42["subscribe",{}]'):
            raw.connection.send(text)
        raw.connection.send(b"\x00\xff", opcode=websocket.ABNF.OPCODE_BINARY)
        owner.edit(order, "changed over REST")
        assert raw.next()["type"] == "description_changed"
    assert len(owner.history(order)) == 2


def test_a_ping_is_answered(server: Server, owner: Person) -> None:
    with raw_watching(server, owner.order(), owner.token, after=1) as raw:
        raw.connection.ping(b"are you there")
        opcode, frame = raw.connection.recv_data_frame(control_frame=True)
        assert (opcode, frame.data) == (websocket.ABNF.OPCODE_PONG, b"are you there")


@pytest.mark.safety("oversized-messages")
def test_a_message_that_is_too_large_ends_the_connection(server: Server, owner: Person) -> None:
    with raw_watching(server, owner.order(), owner.token, after=1) as raw:
        raw.connection.send("x" * 100_000)
        assert raw.until_closed() == 1009


def test_a_draining_server_closes_with_service_restart(database: str, start_server: Any) -> None:
    stopping = start_server(database, DRAIN_SECONDS="2")
    owner = stopping.people.customer()
    order = owner.order()
    with (
        raw_watching(stopping, order, owner.token) as raw,
        watching(stopping, owner.token) as watcher,
    ):
        watcher.watch(order)
        assert stopping.terminate() == 0
        assert raw.next()["version"] == 1
        assert raw.until_closed() == 1012
        assert watcher.closed.wait(10)
        assert watcher.signed_out == []
