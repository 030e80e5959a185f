"""Both client libraries deliver each event once and in order, whatever fails on the way."""

import random
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import pytest

from tests.clients.drivers import FEED, Stream
from tests.support.frames import Mangle, mangling
from tests.support.people import Person
from tests.support.servers import Server
from tests.support.tcp_proxy import UP, TcpProxy
from tests.support.waiting import eventually

Open = Callable[..., Stream]


def assert_tells(stream: Stream, person: Person, order: Any, after: int = 0) -> None:
    """*stream* has delivered exactly the audit trail from *after* on."""
    expected = person.history(order, after)
    if expected:
        stream.until_seen(order, expected[-1]["version"])
    assert stream.events[order["id"]] == expected


# --- following -----------------------------------------------------------------------------------


def test_missed_events_are_replayed_and_live_ones_follow(
    open_stream: Open, customer: Person, driver: Person
) -> None:
    order = customer.order()
    customer.edit(order, "three boxes")
    stream = open_stream(customer)
    stream.watch(order, 1)
    stream.until_seen(order, 2)
    stream.until("live")
    driver.move(order, "Processing", "Shipped", "Completed")
    assert_tells(stream, customer, order, after=1)
    assert stream.states == ["connecting", "live"]
    assert stream.resets[order["id"]] == []


def test_without_a_version_it_starts_from_the_present_state(
    open_stream: Open, customer: Person, driver: Person
) -> None:
    order = customer.order()
    stream = open_stream(customer)
    stream.watch(order, None)
    stream.until("live")
    driver.move(order, "Processing")
    assert_tells(stream, customer, order, after=1)
    assert stream.resets[order["id"]] == [order]


@pytest.mark.safety("client-offline")
def test_too_many_missed_events_are_a_reset(
    open_stream: Open, long_order: tuple[Person, dict[str, Any]]
) -> None:
    owner, order = long_order
    stream = open_stream(owner)
    stream.watch(order, 1)
    eventually(lambda: stream.resets[order["id"]])
    stream.until("live")
    [state] = stream.resets[order["id"]]
    assert state == owner.read(order)
    owner.edit(order, f"after version {state['version']}")
    assert_tells(stream, owner, order, after=state["version"])


def test_as_many_events_as_are_replayed_come_one_by_one(
    open_stream: Open, long_order: tuple[Person, dict[str, Any]]
) -> None:
    owner, order = long_order
    after = owner.read(order)["version"] - 500
    stream = open_stream(owner)
    stream.watch(order, after)
    assert_tells(stream, owner, order, after=after)
    assert stream.resets[order["id"]] == []


def test_a_version_that_the_order_has_not_reached_is_a_reset(
    open_stream: Open, customer: Person, driver: Person
) -> None:
    order, another = customer.order(), customer.order()
    stream = open_stream(customer)
    stream.watch(order, 99)
    stream.watch(another, 1)
    stream.until("live")
    assert stream.resets[order["id"]] == [order]
    driver.move(order, "Processing")
    assert_tells(stream, customer, order, after=1)


def test_an_order_of_another_user_is_an_error_for_that_order_only(
    open_stream: Open, customer: Person, driver: Person, server: Server
) -> None:
    own, other = customer.order(), server.people.customer().order()
    stream = open_stream(customer)
    stream.watch(other, 0)
    stream.watch(own, 1)
    eventually(lambda: stream.errors[other["id"]])
    stream.until("live")
    driver.move(own, "Processing")
    driver.move(other, "Processing")
    assert_tells(stream, customer, own, after=1)
    assert [problem["code"] for problem in stream.errors[other["id"]]] == ["not_found"]
    assert stream.events[other["id"]] == []


def test_a_deletion_is_the_last_event(open_stream: Open, customer: Person) -> None:
    order = customer.order()
    stream = open_stream(customer)
    stream.watch(order, 1)
    stream.until("live")
    customer.delete(order)
    stream.until_seen(order, 2)
    stream.reconnect()
    eventually(lambda: stream.errors[order["id"]])
    assert [event["type"] for event in stream.events[order["id"]]] == ["deleted"]
    assert stream.errors[order["id"]][0]["code"] == "not_found"


def test_a_stopped_watch_gets_no_more_events_and_can_begin_again(
    open_stream: Open, customer: Person, driver: Person
) -> None:
    order, another = customer.order(), customer.order()
    stream = open_stream(customer)
    stream.watch(order, 1)
    stream.watch(another, 1)
    stream.until("live")
    stream.stop(order)
    driver.move(another, "Processing")
    stream.until_seen(another, 2)  # so the stop has taken effect
    driver.move(order, "Processing")
    driver.move(another, "Shipped")
    stream.until_seen(another, 3)
    assert stream.events[order["id"]] == []
    stream.watch(order, 1)
    driver.move(order, "Shipped")
    assert_tells(stream, customer, order, after=1)


def test_hundreds_of_orders_are_watched_and_resumed(
    open_stream: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    orders = [customer.order(f"box {number}") for number in range(430)]
    stream = open_stream(customer)
    for order in orders:
        stream.watch(order, 0)
    stream.until("live")
    network.refuse()
    network.cut()
    changed = orders[::43]
    for order in changed:
        driver.move(order, "Processing")
    network.accept()
    for order in changed:
        stream.until_seen(order, 2)
    stream.until("live")
    for order in orders:
        expected = [1, 2] if order in changed else [1]
        assert stream.versions(order) == expected


# --- lost connections ----------------------------------------------------------------------------


def test_a_cut_connection_loses_and_repeats_nothing(
    open_stream: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    order = customer.order()
    stream = open_stream(customer)
    stream.watch(order, 0)
    stream.until("live")
    network.refuse()
    network.cut()
    stream.until("reconnecting")
    driver.move(order, "Processing", "Shipped")
    network.accept()
    stream.until("live")
    driver.move(order, "Completed")
    assert_tells(stream, customer, order)
    assert stream.states == ["connecting", "live", "reconnecting", "live"]


@pytest.mark.safety("client-offline")
@pytest.mark.parametrize("seed", range(3))
def test_connections_cut_at_any_byte_lose_and_repeat_nothing(
    open_stream: Open, network: TcpProxy, customer: Person, seed: int
) -> None:
    chance = random.Random(seed)
    order = customer.order()
    network.cut_after(chance.randint(300, 3000))
    stream = open_stream(customer, poll_after=60)  # so that no poll helps
    stream.watch(order, 0)
    for number in range(30):
        customer.edit(order, f"box {number}")
        network.cut_after(chance.randint(300, 3000))
    network.heal()
    assert_tells(stream, customer, order)
    stream.until("live")
    assert stream.resets[order["id"]] == []


def test_a_connection_that_falls_silent_is_closed(
    open_stream: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    order, another = customer.order(), customer.order()
    stream = open_stream(customer, ack_timeout=0.3, poll_after=60)
    stream.watch(order, 0)
    stream.until("live")
    network.pause()
    driver.move(order, "Processing")
    stream.watch(another, 0)  # the request that is not answered
    eventually(lambda: network.accepted > 1)
    network.resume()
    assert_tells(stream, customer, order)
    assert_tells(stream, customer, another)
    stream.until("live")


def test_many_clients_cut_off_at_once_all_catch_up(
    open_stream: Open, network: TcpProxy, server: Server, driver: Person
) -> None:
    people = [server.people.customer() for _ in range(12)]
    orders = [person.order() for person in people]
    streams = [open_stream(person) for person in people]
    for stream, order in zip(streams, orders, strict=True):
        stream.watch(order, 0)
        stream.until("live", timeout=60)
    network.refuse()
    network.cut()
    for order in orders:
        driver.move(order, "Processing", "Shipped")
    network.accept()
    for stream, person, order in zip(streams, people, orders, strict=True):
        assert_tells(stream, person, order)
        stream.until("live")


# --- servers that go away ------------------------------------------------------------------------


@pytest.fixture
def two_servers(
    fresh_database: Callable[[], str], start_server: Callable[..., Server]
) -> tuple[Server, Callable[[], Server]]:
    """One that stays, and how to start others beside it on the same database."""
    dsn = fresh_database()
    return start_server(dsn), lambda: start_server(dsn)


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_server_that_restarts_leaves_no_gap(
    open_stream: Open,
    two_servers: tuple[Server, Callable[[], Server]],
    network: TcpProxy,
    how: str,
) -> None:
    steady, start = two_servers
    customer, driver = steady.people.customer(), steady.people.driver()
    orders = [customer.order() for _ in range(3)]
    dying = start()
    network.target = dying.port
    stream = open_stream(customer)
    for order in orders:
        stream.watch(order, 0)
    stream.watch_feed()
    stream.until("live")
    getattr(dying, how)()
    for order in orders:
        driver.move(order, "Processing", "Shipped")
    stream.until("reconnecting")
    network.target = start().port
    for order in orders:
        assert_tells(stream, customer, order)
    stream.until("live")
    driver.move(orders[0], "Completed")
    assert_tells(stream, customer, orders[0])
    first, *later = stream.resumes[FEED]
    assert first
    assert later  # and more while it polled
    assert not any(later)


def test_a_replay_larger_than_one_answer_comes_in_several_rounds(
    open_stream: Open,
    database: str,
    start_server: Callable[..., Server],
    network: TcpProxy,
) -> None:
    """The server sends what fits; the client asks for the rest again, in several rounds."""
    server = start_server(database, QUEUE_MAX_BYTES="65536")  # half of it is what an answer holds
    customer = server.people.customer()
    orders = [customer.order() for _ in range(6)]
    for order in orders:
        for letter in "abcdefgh":
            customer.edit(order, letter * 2000)
    network.target = server.port
    stream = open_stream(customer, poll_after=60)  # so that no poll helps
    for order in orders:
        stream.watch(order, 1)
    for order in orders:
        assert_tells(stream, customer, order, after=1)
        assert stream.resets[order["id"]] == []
    stream.until("live")


def test_a_replay_too_large_for_any_answer_is_a_reset(
    open_stream: Open,
    database: str,
    start_server: Callable[..., Server],
    network: TcpProxy,
) -> None:
    server = start_server(database, QUEUE_MAX_BYTES="65536")
    customer = server.people.customer()
    large, small = customer.order(), customer.order()
    for number in range(20):
        large = customer.edit(large, f"{number}" * 1000)
    customer.edit(small, "a box")
    network.target = server.port
    stream = open_stream(customer, poll_after=60)
    stream.watch(large, 1)
    stream.watch(small, 1)
    stream.until("live")
    assert_tells(stream, customer, small, after=1)
    assert stream.resets[large["id"]] == [large]
    assert stream.events[large["id"]] == []


# --- messages that a correct server never sends --------------------------------------------------
# The real server behind a proxy that changes its messages.


def is_update(message: str) -> bool:
    return message.startswith('42["order_update"')


def is_ack(message: str) -> bool:
    return message.startswith("43")


def unreliable(chance: random.Random) -> Mangle:
    """Updates are lost, repeated, or delayed until after the next one."""
    held: list[str] = []

    def mangle(message: str) -> Iterable[str]:
        if not is_update(message):
            return [message]
        now = [message, *held]
        held.clear()
        match chance.choice(["pass", "pass", "lose", "repeat", "hold", "shuffle"]):
            case "lose":
                return now[1:]
            case "repeat":
                return now * 2
            case "hold":
                held.extend(now)
                return []
            case "shuffle":
                chance.shuffle(now)
        return now

    return mangle


@pytest.mark.parametrize("seed", range(3))
def test_lost_repeated_and_reordered_updates_arrive_once_and_in_order(
    open_stream: Open, network: TcpProxy, customer: Person, seed: int
) -> None:
    chance = random.Random(seed)
    network.filter(mangling(lambda: unreliable(chance)))
    orders = [customer.order() for _ in range(3)]
    stream = open_stream(customer)
    for order in orders:
        stream.watch(order, 0)
    stream.until("live")
    for number in range(60):
        customer.edit(chance.choice(orders), f"box {number}")
    network.filter(None)
    stream.reconnect()  # the last update of an order may be lost, and no later one shows the gap
    for order in orders:
        assert_tells(stream, customer, order)


def test_a_lost_acknowledgement_is_requested_again(
    open_stream: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    numbers = count()
    network.filter(
        mangling(lambda: lambda message: [] if is_ack(message) and next(numbers) < 1 else [message])
    )
    order = customer.order()
    stream = open_stream(customer, ack_timeout=0.3, poll_after=60)
    stream.watch(order, 0)
    stream.until("live")
    driver.move(order, "Processing")
    assert_tells(stream, customer, order)
    assert network.accepted == 1


def test_a_busy_server_is_asked_again(
    open_stream: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    numbers = count()

    def busy(message: str) -> Iterable[str]:
        if is_ack(message) and next(numbers) < 3:
            head = message[: message.index("[")]
            return [head + '[{"ok":false,"error":{"code":"unavailable","status":503}}]']
        return [message]

    network.filter(mangling(lambda: busy))
    orders = [customer.order() for _ in range(2)]
    stream = open_stream(customer, poll_after=60)
    for order in orders:
        stream.watch(order, 0)
    stream.until("live")
    for order in orders:
        driver.move(order, "Processing")
        assert_tells(stream, customer, order)
    assert next(numbers) > 3


def test_it_reconnects_after_a_disconnect_by_the_server(
    open_stream: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    # After this packet the stock clients do not reconnect by themselves.
    numbers = count()
    network.filter(
        mangling(
            lambda: (
                lambda message: ["41"] if is_update(message) and next(numbers) < 1 else [message]
            )
        )
    )
    order = customer.order()
    stream = open_stream(customer)
    stream.watch(order, 0)
    stream.until("live")
    driver.move(order, "Processing", "Shipped")
    assert_tells(stream, customer, order)
    stream.until("live")
    assert stream.states == ["connecting", "live", "reconnecting", "live"]


# --- networks without sockets --------------------------------------------------------------------


def blocking(part: bytes, *, swallow: bool = False) -> Callable[[], Callable[[bytes], bytes]]:
    """Breaks or hangs connections on which *part* is requested."""

    def start() -> Callable[[bytes], bytes]:
        hanging = False

        def pass_on(data: bytes) -> bytes:
            nonlocal hanging
            if part in data:
                if not swallow:
                    raise ConnectionResetError
                hanging = True
            return b"" if hanging else data

        return pass_on

    return start


@pytest.mark.parametrize("swallow", [False, True], ids=["refused", "swallowed"])
def test_without_any_socket_it_polls_and_becomes_live_again(
    open_stream: Open, network: TcpProxy, customer: Person, driver: Person, *, swallow: bool
) -> None:
    network.filter(blocking(b"/socket.io/", swallow=swallow), UP)
    order, another = customer.order(), customer.order()
    stream = open_stream(customer, connect_timeout=0.5)
    stream.watch(order, 0)
    stream.watch(another, None)
    stream.watch_feed()
    stream.until("polling")
    driver.move(order, "Processing")
    driver.move(another, "Processing")
    stream.until_seen(order, 2)
    stream.until_seen(another, 2)
    assert stream.resets[another["id"]] == [another]
    assert stream.resumes[FEED][0] is True
    network.filter(None)
    stream.until("live")
    driver.move(order, "Shipped")
    assert_tells(stream, customer, order)
    assert_tells(stream, customer, another, after=1)


@pytest.mark.parametrize("swallow", [False, True], ids=["refused", "swallowed"])
def test_without_websockets_long_polling_is_live(
    open_stream: Open, network: TcpProxy, customer: Person, driver: Person, *, swallow: bool
) -> None:
    network.filter(blocking(b"transport=websocket", swallow=swallow), UP)
    order = customer.order()
    stream = open_stream(customer, connect_timeout=0.5)
    stream.watch(order, 0)
    stream.until("live")
    driver.move(order, "Processing", "Shipped")
    assert_tells(stream, customer, order)


def test_without_a_network_its_state_is_offline(
    open_stream: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    order = customer.order()
    stream = open_stream(customer)
    stream.watch(order, 0)
    stream.until("live")
    network.refuse()
    network.cut()
    stream.until("offline")
    driver.move(order, "Processing")
    network.accept()
    stream.until("live")
    assert_tells(stream, customer, order)
    assert stream.states[:4] == ["connecting", "live", "reconnecting", "offline"]


def test_polling_reads_a_long_history_event_by_event(
    open_stream: Open, network: TcpProxy, long_order: tuple[Person, dict[str, Any]]
) -> None:
    owner, order = long_order
    network.filter(blocking(b"/socket.io/"), UP)
    stream = open_stream(owner)
    stream.watch(order, 0)
    assert_tells(stream, owner, order)


def test_polling_reports_that_an_order_is_gone(
    open_stream: Open, network: TcpProxy, customer: Person, server: Server
) -> None:
    network.filter(blocking(b"/socket.io/"), UP)
    order = server.people.customer().order()
    stream = open_stream(customer)
    stream.watch(order, 0)
    eventually(lambda: stream.errors[order["id"]])
    assert stream.errors[order["id"]][0]["code"] == "not_found"


# --- the feed ------------------------------------------------------------------------------------


def test_the_feed_has_every_event_once_and_reports_possible_gaps(
    open_stream: Open, network: TcpProxy, customer: Person, driver: Person
) -> None:
    watched = customer.order()
    stream = open_stream(customer)
    stream.watch(watched, 1)
    stream.watch_feed()
    stream.until("live")
    eventually(lambda: stream.resumes[FEED] == [True])
    order = customer.order()
    driver.move(watched, "Processing")
    driver.move(order, "Processing", "Shipped")

    def told() -> list[tuple[str, int]]:
        return [(event["order_id"], event["version"]) for event in stream.events[FEED]]

    expected = [(order["id"], 1), (watched["id"], 2), (order["id"], 2), (order["id"], 3)]
    eventually(lambda: len(told()) >= len(expected))
    assert told() == expected
    assert stream.versions(watched) == [2]
    network.cut()
    eventually(lambda: stream.resumes[FEED] == [True, False])
    stream.until("live")
    driver.move(order, "Completed")
    eventually(lambda: told()[len(expected) :] == [(order["id"], 4)])
    assert stream.events[order["id"]] == []


def test_the_feed_can_be_left_and_joined_again(
    open_stream: Open, customer: Person, driver: Person
) -> None:
    watched, order = customer.order(), customer.order()
    stream = open_stream(customer)
    stream.watch(watched, 1)
    stream.watch_feed()
    stream.until("live")
    stream.stop(FEED)
    driver.move(watched, "Processing")
    stream.until_seen(watched, 2)  # so the stop has taken effect
    driver.move(order, "Processing")
    driver.move(watched, "Shipped")
    stream.until_seen(watched, 3)
    heard = {event["order_id"] for event in stream.events[FEED]}
    assert order["id"] not in heard
    stream.watch_feed()
    eventually(lambda: stream.resumes[FEED] == [True, True])
    driver.move(order, "Shipped")
    eventually(lambda: stream.events[FEED][-1:] and stream.events[FEED][-1]["version"] == 3)


# --- credentials ---------------------------------------------------------------------------------


@pytest.fixture
def hasty_server(start_server: Callable[..., Server], database: str) -> Server:
    """A server whose access tokens live for three seconds."""
    return start_server(database, ACCESS_TOKEN_SECONDS="3")


def renewed(person: Person, server: Server) -> str:
    """A new access token of the same session."""
    answer = server.api.post(
        "/api/refresh", headers={"Authorization": f"Bearer {person.refresh_token}"}
    )
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["access_token"]
    return token


def test_an_expired_token_is_renewed_and_nothing_is_missed(
    open_stream: Open, network: TcpProxy, server: Server, hasty_server: Server, driver: Person
) -> None:
    customer = hasty_server.people.customer()
    order = customer.at(server.transport).order()
    network.target = hasty_server.port
    # The other server's tokens live longer, and are valid here.
    stream = open_stream(customer, renewals=[renewed(customer, server)])
    stream.watch(order, 0)
    stream.until("live")
    eventually(lambda: stream.renewals)
    driver.move(order, "Processing")
    stream.until_seen(order, 2)
    stream.until("live")
    assert [problem["code"] for problem in stream.renewals] == ["token_expired"]
    assert stream.states == ["connecting", "live", "reconnecting", "live"]


def test_a_token_that_was_replaced_in_time_needs_no_renewal(
    open_stream: Open, network: TcpProxy, server: Server, hasty_server: Server, driver: Person
) -> None:
    customer = hasty_server.people.customer()
    later = customer.at(server.transport)
    order = later.order()
    network.target = hasty_server.port
    stream = open_stream(customer)
    stream.watch(order, 0)
    stream.until("live")
    stream.use_token(renewed(customer, server))
    stream.until("reconnecting")
    driver.move(order, "Processing")
    stream.until_seen(order, 2)
    stream.until("live")


def test_an_expired_token_that_is_not_renewed_ends_the_stream(
    open_stream: Open, network: TcpProxy, hasty_server: Server
) -> None:
    customer = hasty_server.people.customer()
    network.target = hasty_server.port
    stream = open_stream(customer)
    stream.watch_feed()
    stream.until("signed_out")
    assert stream.problem["code"] == "token_expired"


def test_logout_ends_the_stream_and_login_resumes_it(
    open_stream: Open, customer: Person, driver: Person
) -> None:
    order = customer.order()
    stream = open_stream(customer)
    stream.watch(order, 0)
    stream.until("live")
    elsewhere = customer.signed_in_again()
    assert customer.api.post("/api/logout").status_code == 204
    stream.until("signed_out")
    assert stream.problem["code"] == "invalid_token"
    driver.move(order, "Processing")
    stream.use_token(elsewhere.token)
    stream.reconnect()
    assert_tells(stream, elsewhere, order)
    stream.until("live")


def test_refused_renewals_end_the_stream(open_stream: Open, customer: Person) -> None:
    assert customer.api.post("/api/logout").status_code == 204
    stream = open_stream(customer, renewals=[customer.token] * 10)
    stream.until("signed_out")
    assert len(stream.renewals) == 3


def test_logout_is_noticed_while_polling(
    open_stream: Open, network: TcpProxy, customer: Person
) -> None:
    network.filter(blocking(b"/socket.io/"), UP)
    stream = open_stream(customer)
    stream.watch(customer.order(), 0)
    stream.until("polling")
    assert customer.api.post("/api/logout").status_code == 204
    stream.until("signed_out")


def test_a_driver_who_loses_an_order_keeps_the_others(
    open_stream: Open,
    network: TcpProxy,
    start_server: Callable[..., Server],
    fresh_database: Callable[[], str],
) -> None:
    server = start_server(fresh_database(), DRIVER_SCOPE="assigned")
    network.target = server.port
    people = server.people
    admin, driver, another = people.admin(), people.driver(), people.driver()
    customer = people.customer()
    lost, kept = customer.order(), customer.order()
    for order in (lost, kept):
        admin.assign(order, driver)
    stream = open_stream(driver)
    stream.watch(lost, 0)
    stream.watch(kept, 0)
    stream.until("live")
    admin.assign(lost, another)
    eventually(lambda: stream.errors[lost["id"]])
    assert stream.errors[lost["id"]][0]["code"] == "not_found"
    driver.move(kept, "Processing")
    assert_tells(stream, customer, kept)
    stream.until("live")
    assert "signed_out" not in stream.states
