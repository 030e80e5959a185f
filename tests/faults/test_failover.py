"""Failover: when the database is replaced by another, clients resume and miss nothing unnoticed."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
from ordertrack_client import OrderStream

from ordertrack.realtime.relay import Relay
from tests.faults.cluster import Cluster
from tests.support import missing
from tests.support.bare_client import BareClient, all_of
from tests.support.databases import migrate
from tests.support.events import append_event
from tests.support.people import Person
from tests.support.replication import BINARIES, Pair, replicated
from tests.support.servers import Server, running_server
from tests.support.waiting import eventually
from tests.support.watchers import raw_watching

# The connections of a killed server are closed by the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def pair() -> Iterator[Pair]:
    if not (BINARIES / "pg_basebackup").exists():
        missing.cannot(f"no PostgreSQL in {BINARIES}", "apt install postgresql-15")
    with replicated() as made:
        migrate(made.dsn)
        yield made


class Stream:
    """The Python client library, watching one order: the versions that it passed on."""

    def __init__(self, server: Server, person: Person, order: Any) -> None:
        self.versions: list[int] = []
        self.resets: list[int] = []
        self.problems: list[Any] = []
        self._stream = OrderStream(server.url, lambda: person.token, poll_after=60)
        self._stream.watch(
            order["id"], 0, self._on_event, self._on_reset, on_error=self.problems.append
        )

    def _on_event(self, event: Any) -> None:
        self.versions.append(event["version"])

    def _on_reset(self, order: Any) -> None:
        self.resets.append(order["version"])
        self.versions = [order["version"]]

    @property
    def last(self) -> int:
        return self.versions[-1] if self.versions else 0

    def close(self) -> None:
        self._stream.close()


def burn_transactions(pair: Pair, number: int) -> None:
    for _ in range(number):
        pair.standby.execute("SELECT pg_current_xact_id()")


@pytest.mark.safety("lagging-standby")
def test_after_a_failover_to_a_lagging_standby_all_clients_resume(
    pair: Pair,
) -> None:
    with running_server(pair.dsn, DRAIN_SECONDS="1") as server:
        admin = server.people.admin()
        quiet, busy = admin.order("quiet"), admin.order("busy")
        admin.edit(busy, "before")
        pair.catch_up()
        pair.cut()
        # Watchers get these, and the standby never does.
        for number in range(20):
            admin.edit(busy, f"lost {number}")

        async def watch_through_it() -> list[int | None]:
            clients = [BareClient() for _ in range(10)]
            await all_of(clients, lambda client: client.connect(server.port, admin.token))
            await all_of(clients, lambda c: c.call("subscribe", {"order_id": quiet["id"]}))
            listening = asyncio.gather(*(client.listen() for client in clients))
            await asyncio.to_thread(fail_over)
            await asyncio.wait_for(listening, 30)
            for client in clients:
                client.close()
            # No event from after the gap on a connection from before it.
            assert [client.events for client in clients] == [[]] * 10
            return [client.close_code for client in clients]

        def fail_over() -> None:
            pair.fail_over()
            # So many transactions that the old place in the log looks like the past there, too.
            burn_transactions(pair, 200)
            # By whatever application the promoted standby has served meanwhile.
            for order in (quiet, busy):
                append_event(pair.standby.superuser_dsn, order)
            pair.open_the_standby()

        streams = [Stream(server, admin, order) for order in (quiet, busy)]
        with raw_watching(server, quiet, admin.token, after=1) as raw:
            eventually(lambda: [stream.last for stream in streams] == [1, 22])
            assert asyncio.run(watch_through_it()) == [1012] * 10
            assert raw.until_closed() == 1012
        # By themselves and without another change: the quiet one resumes and gets the missed
        # event; the busy one is reset, because its last versions never reached the standby.
        eventually(lambda: [stream.last for stream in streams] == [2, 3])
        assert [stream.resets for stream in streams] == [[], [3]]

        # The log is followed again.
        eventually(lambda: server.api.get("/readyz").status_code == 200)
        for order in (quiet, busy):
            admin.edit(order, "afterwards")
        eventually(lambda: [stream.last for stream in streams] == [3, 4])
        assert streams[0].versions == [1, 2, 3]
        assert streams[1].versions == [3, 4]
        assert [stream.problems for stream in streams] == [[], []]
        for stream in streams:
            stream.close()
        metrics = server.api.get("/metrics").text
        assert "ordertrack_relay_fresh_starts_total 1.0" in metrics
        assert server.process.poll() is None


def test_a_restart_of_the_same_database_closes_no_connection(
    cluster: Cluster, start: Callable[..., Server]
) -> None:
    server = start()
    admin = server.people.admin()
    order = admin.order()
    with raw_watching(server, order, admin.token, after=1) as raw:
        cluster.kill()
        cluster.ensure_running()
        eventually(lambda: server.api.get("/readyz").status_code == 200)
        admin.edit(order, "after the crash")
        assert raw.next()["version"] == 2
    assert "ordertrack_relay_fresh_starts_total 0.0" in server.api.get("/metrics").text


@pytest.mark.safety("lagging-standby")
def test_a_standby_is_not_followed_and_writes_find_the_primary_among_the_hosts(
    pair: Pair,
) -> None:
    pair.open_the_standby()
    pair.catch_up()
    there, here = str(pair.standby.folder), str(pair.primary.folder)
    swapped = f"host={there},{here} user=ordertrack dbname=ordertrack"
    with running_server(swapped) as server:
        # (People are made by a connection of the test's own.)
        answer = server.api.post(
            "/api/register",
            json={"name": "Ann", "email": "ann@example.org", "password": "a long password"},
        )
        assert answer.status_code == 201, answer.text
    alone = f"host={there} user=ordertrack dbname=ordertrack"
    assert "read-only" in why_it_does_not_start(alone)
    # Told to take any, it still does not follow one that cannot be followed.
    assert "standby" in why_it_does_not_start(f"{alone} target_session_attrs=any")
    # Nor does a relay that comes back to what has become one.
    relay = relay_of(f"{alone} target_session_attrs=any")
    with pytest.raises(psycopg2.OperationalError, match="cannot be followed"):
        relay._connect_follower()


def relay_of(dsn: str) -> Relay:
    def nothing(*_: object) -> None:
        return None

    return Relay(
        dsn, publish=nothing, revoke=nothing, before_read=nothing, after_read=nothing,
        on_gap=nothing, poll=1.0,
    )  # fmt: skip


def why_it_does_not_start(dsn: str) -> str:
    with pytest.raises(RuntimeError, match="does not start: DB_DSN") as failed:
        running_server(dsn).__enter__()
    return str(failed.value)
