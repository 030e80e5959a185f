"""Many clients at once: conflicting changes, a reconnect storm, a flood that is not read."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from tests.faults.cluster import Cluster
from tests.support.bare_client import BareClient, all_of, allow_descriptors
from tests.support.http import Answer
from tests.support.parallel import at_once
from tests.support.servers import Server

Start = Callable[..., Server]

# The connections of a killed server are closed by the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

CROWD = 1000
CLIENTS, ORDERS = 50, 40

# The clients, their acknowledgements, and the seconds until the last of them had its own.
CaughtUp = tuple[list[BareClient], list[dict[str, object]], float]


@pytest.mark.safety("conflicting-changes")
def test_of_conflicting_changes_one_wins_and_the_others_get_the_present_status(
    start: Start,
) -> None:
    servers = [start(), start()]
    customer = servers[0].people.customer()
    driver = servers[0].people.driver()
    orders = [customer.order() for _ in range(ORDERS)]

    def change_all(number: int) -> list[tuple[str, str, Answer]]:
        """Half of the clients cancel as the customer; the others begin to process as a driver."""
        who, target = (customer, "Cancelled") if number % 2 else (driver, "Processing")
        who = who.at(random.choice(servers).transport)
        answers = []
        for order in random.sample(orders, ORDERS):
            body = {"status": target}
            for _ in range(20):  # as clients do after a 503
                answer = who.api.put(f"/api/orders/{order['id']}/status", json=body)
                if answer.status_code != 503:
                    break
            answers.append((order["id"], target, answer))
        return answers

    results = at_once([lambda n=number: change_all(n) for number in range(CLIENTS)])  # type: ignore[misc]
    winners = {}
    for order in orders:
        trail = driver.history(order)
        assert [event["version"] for event in trail] == [1, 2]
        winners[order["id"]] = trail[-1]["status"]
    for order_id, target, answer in [one for result in results for one in result]:
        if target == winners[order_id]:
            assert (answer.status_code, answer.json()["version"]) == (200, 2)
        else:
            assert (answer.status_code, answer.code) == (409, "invalid_transition")
            assert answer.json()["current"] == winners[order_id]
    assert len(Counter(winners.values())) == 2, "one side always won, so this proves little"


@pytest.mark.safety("reconnect-storm")
def test_in_a_reconnect_storm_a_thousand_clients_resume_and_get_what_they_missed(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    allow_descriptors()
    first, second = (start(MAX_CONNECTIONS_PER_USER="5000") for _ in range(2))
    admin = first.people.admin()
    orders = [admin.order() for _ in range(10)]
    wanted = [orders[number % 10]["id"] for number in range(CROWD)]

    async def come(port: int, after: int) -> CaughtUp:
        clients = [BareClient() for _ in range(CROWD)]
        began = time.monotonic()
        await all_of(clients, lambda client: client.connect(port, admin.token))
        answers = await asyncio.gather(
            *(
                client.call("subscribe", {"order_id": order_id, "after": after})
                for client, order_id in zip(clients, wanted, strict=True)
            )
        )
        return clients, answers, time.monotonic() - began

    async def storm() -> float:
        clients, answers, _ = await come(first.port, 1)
        assert all(answer["ok"] and answer["version"] == 1 for answer in answers)
        listening = asyncio.gather(*(client.listen() for client in clients))
        first.process.kill()
        await listening
        for client in clients:
            client.close()
        elsewhere = admin.at(second.transport)
        await asyncio.to_thread(
            lambda: [elsewhere.edit(order, f"edit {n}") for order in orders for n in range(3)]
        )
        clients, answers, took = await come(second.port, 1)
        for answer in answers:
            assert answer["ok"], answer
            assert [event["version"] for event in answer["events"]] == [2, 3, 4]
        for client in clients:
            client.close()
        return took

    took = asyncio.run(storm())
    assert "unexpected error" not in second.log
    with capsys.disabled():
        print(f"\n{CROWD} clients back, authorised and caught up in {took:.1f} s")  # noqa: T201


@pytest.mark.safety("floods-and-hoarding")
def test_a_flood_to_clients_that_stop_reading_does_not_slow_the_others(
    cluster: Cluster, start: Start
) -> None:
    allow_descriptors()
    server = start(MAX_CONNECTIONS_PER_USER="5000", QUEUE_MAX_BYTES="200000", QUEUE_MAX_SECONDS="2")
    admin = server.people.admin()
    order = admin.order()
    memory = psutil.Process(server.process.pid).memory_info

    def figure(name: str) -> int:
        lines = server.api.get("/metrics").text.splitlines()
        return int(float(next(line for line in lines if line.startswith(f"{name} ")).split()[1]))

    async def broadcast(clients: list[BareClient], number: int) -> int:
        """Make changes one by one, each after all clients got the one before; the system calls
        that sending them took."""
        before = figure("ordertrack_sends_total")
        for _ in range(number):
            seen = [len(client.events) for client in clients]
            await asyncio.to_thread(admin.edit, order, "🍎" * 1900 + str(random.random()))
            while any(  # noqa: ASYNC110 (one condition on 500 clients)
                len(client.events) == before for client, before in zip(clients, seen, strict=True)
            ):
                await asyncio.sleep(0.001)
        return figure("ordertrack_sends_total") - before

    async def scenario() -> tuple[int, int, int, list[int | None]]:
        clients = [BareClient() for _ in range(500)]
        stopped = [BareClient() for _ in range(5)]
        for group in (clients, stopped):
            await all_of(group, lambda client: client.connect(server.port, admin.token))
            await all_of(group, lambda c: c.call("subscribe", {"order_id": order["id"]}))
        listening = [asyncio.create_task(client.listen()) for client in [*clients, *stopped]]
        healthy = await broadcast(clients, 20)
        before = memory().rss
        for client in stopped:
            client.read_no_more()
        # Fills the kernel's buffers and then the queue, past its bound.
        beside = await broadcast(clients, 80)
        grown = memory().rss - before
        for client in stopped:
            client.read_on()
        await asyncio.wait(listening[500:], timeout=10)
        for task in listening:
            task.cancel()
        # Each change, once, in order, and whole: whatever the others did.
        for client in clients:
            assert [event["version"] for event, _ in client.events] == list(range(2, 102))
        for client in [*clients, *stopped]:
            client.close()
        return healthy, beside, grown, [client.close_code for client in stopped]

    healthy, beside, grown, codes = asyncio.run(scenario())
    assert grown < 5 * 200_000 + 20_000_000
    # One system call per client and change, as before the five stopped reading, and for those five
    # no more than that either.
    assert healthy <= 20 * 505 + 100
    assert beside <= 80 * 505 + 400
    # The last frame to a stopped client has the code; a connection that was reset got none.
    assert all(code in (1013, None) for code in codes)
    assert figure("ordertrack_slow_closes_total") == 5
