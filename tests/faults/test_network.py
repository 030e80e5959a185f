"""When the network loses an answer, repeating the request has no second effect."""

import json
import re
from collections.abc import Callable, Iterator

import pytest
import requests

from tests.faults.cluster import Cluster
from tests.support.http import OverTheWire
from tests.support.parallel import at_once
from tests.support.people import Person
from tests.support.servers import Server
from tests.support.tcp_proxy import DOWN, TcpProxy
from tests.support.waiting import eventually

Start = Callable[..., Server]


@pytest.fixture
def admin(lasting_server: Server) -> Person:
    return lasting_server.people.admin()


@pytest.fixture
def proxy(lasting_server: Server) -> Iterator[TcpProxy]:
    with TcpProxy(lasting_server.port) as started:
        yield started


@pytest.fixture
def cut_off(admin: Person, proxy: TcpProxy) -> Iterator[Person]:
    """The same admin behind a network that loses every answer from its first bytes on."""
    transport = OverTheWire(proxy.url)
    proxy.cut_after(9, DOWN)
    yield admin.at(transport)
    transport.close()


@pytest.mark.safety("answer-lost")
def test_a_repeated_put_is_idempotent(admin: Person, cut_off: Person, proxy: TcpProxy) -> None:
    order = admin.order()
    with pytest.raises(requests.RequestException):
        cut_off.move(order, "Processing")
    eventually(lambda: admin.read(order)["status"] == "Processing")
    proxy.heal()
    assert cut_off.move(order, "Processing")["version"] == 2
    assert [event["version"] for event in admin.history(order)] == [1, 2]


@pytest.mark.safety("answer-lost")
def test_a_repeated_idempotency_key_returns_the_order_of_the_first_request(
    cluster: Cluster, admin: Person, cut_off: Person, proxy: TcpProxy
) -> None:
    def made() -> int:
        return int(cluster.execute("SELECT count(*) FROM orders WHERE description = 'once'")[0][0])

    def place() -> requests.Response:
        return cut_off.api.post(
            "/api/orders", json={"description": "once"}, headers={"Idempotency-Key": "once"}
        )

    with pytest.raises(requests.RequestException):
        place()
    eventually(lambda: made() == 1)
    proxy.heal()
    answer = place()
    assert (answer.status_code, answer.json()["version"]) == (201, 1)
    assert made() == 1


def test_a_polling_client_that_posts_twice_at_once_is_closed(
    lasting_server: Server, admin: Person
) -> None:
    order = admin.order()
    session = requests.Session()
    path = f"{lasting_server.url}/socket.io/?EIO=4&transport=polling"
    path += "&sid=" + json.loads(session.get(path).text[1:])["sid"]
    session.post(path, data="40" + json.dumps({"token": admin.token}))
    assert session.get(path).text.startswith("40")

    def subscribe(number: int) -> int:
        body = f"42{number}" + json.dumps(["subscribe", {"order_id": order["id"], "after": 0}])
        return requests.post(path, data=body, timeout=10).status_code

    def keep_the_database_busy() -> int:
        return lasting_server.api.post("/fault/query?sql=SELECT pg_sleep(2)").status_code

    def figure(name: str) -> float:
        text = lasting_server.api.get("/metrics").text
        found = re.search(rf"^ordertrack_{name} (\S+)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def first() -> int:
        eventually(lambda: figure("db_pool_checked_out") == figure("db_pool_size"))
        return subscribe(0)

    def second() -> int:
        # The first is being handled: it waits for a connection, of which there is none.
        eventually(lambda: figure("db_pool_waiting") >= 1)
        return subscribe(1)

    busy = [keep_the_database_busy] * int(figure("db_pool_size"))
    codes = at_once([*busy, first, second])
    session.close()
    assert sorted(codes[-2:]) == [200, 400]
