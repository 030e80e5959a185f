"""Drain after SIGTERM: running requests finish, no new one begins, sockets close with 1012."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable

import pytest
import requests

from tests.faults.cluster import Cluster
from tests.faults.random_kills import RandomKills
from tests.support.bare_client import BareClient
from tests.support.parallel import at_once
from tests.support.servers import Server
from tests.support.waiting import eventually
from tests.support.watchers import raw_watching

Start = Callable[..., Server]

EXIT_SECONDS = 10


@pytest.mark.safety("drain")
def test_drain_finishes_running_requests_and_accepts_no_new_one(
    cluster: Cluster, start: Start
) -> None:
    server = start()
    admin = server.people.admin()
    order = admin.order()

    def slow() -> int:
        return server.api.post("/fault/query?sql=SELECT pg_sleep(1.5)").status_code

    def end() -> int:
        under_way = "SELECT 1 FROM pg_stat_activity WHERE query LIKE %s AND state = 'active'"
        eventually(lambda: cluster.execute(under_way, "SELECT pg_sleep(1.5)%"))
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        refused = False
        while server.process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                requests.get(f"{server.url}/api/orders/{order['id']}", timeout=5)
                time.sleep(0.02)
                continue
            refused = True
            time.sleep(0.02)
        assert refused
        assert time.monotonic() - began < EXIT_SECONDS
        return server.process.wait()

    assert at_once([slow, end]) == [204, 0]


@pytest.mark.safety("drain")
def test_drain_closes_every_socket_with_1012(start: Start) -> None:
    server = start()
    admin = server.people.admin()
    order = admin.order()

    async def scenario() -> list[int | None]:
        clients = [BareClient() for _ in range(20)]
        for client in clients:
            await client.connect(server.port, admin.token)
            await client.call("subscribe", {"order_id": order["id"]})
        listening = asyncio.gather(*(client.listen() for client in clients))
        server.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(listening, EXIT_SECONDS)
        for client in clients:
            client.close()
        # A DISCONNECT would keep the stock clients from reconnecting by themselves.
        assert all(client.events == [] for client in clients)
        return [client.close_code for client in clients]

    with raw_watching(server, order, admin.token, after=1) as raw:
        assert asyncio.run(scenario()) == [1012] * 20
        with pytest.raises(EOFError):
            raw.next()
        assert raw.close_code == 1012
    assert server.process.wait(EXIT_SECONDS) == 0


@pytest.mark.safety("drain")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_rolling_restarts_under_load_lose_nothing(cluster: Cluster) -> None:
    run = RandomKills(cluster, seed=1, shares={"SIGTERM of a server": 1})
    try:
        report = run.run(4)
    finally:
        run.close()
    assert report.findings == [], str(report)
