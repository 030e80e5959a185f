"""A tail of the log skips, repeats and delays no event, also after a crash of PostgreSQL."""

import contextlib

import psycopg2
import pytest

from ordertrack.log_tail import Cursor, LogLost, Tail
from tests.faults.cluster import Cluster
from tests.support.events import append_event, append_uncommitted, insert_order


@pytest.fixture
def order(cluster: Cluster) -> int:
    return insert_order(cluster.superuser_dsn)


@pytest.fixture
def tail(cluster: Cluster) -> Tail:
    started = Tail()
    read(started, cluster)
    return started


def read(tail: Tail, cluster: Cluster) -> list[int]:
    """The ids of the new events, read with a new connection each time."""
    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        tail.open(cursor)
        _, events = tail.read(cursor)
        return [event.id for event in events]


@pytest.mark.safety("late-commits")
def test_an_event_that_commits_late_is_neither_skipped_nor_waited_for(
    cluster: Cluster, order: int, tail: Tail
) -> None:
    with contextlib.closing(psycopg2.connect(cluster.superuser_dsn)) as slow:
        first = append_uncommitted(slow, insert_order(cluster.superuser_dsn)).id
        second = append_event(cluster.superuser_dsn, order).id
        assert read(tail, cluster) == [second]
        assert read(tail, cluster) == []
        slow.commit()
        assert read(tail, cluster) == [first]
        assert read(tail, cluster) == []


def test_an_event_that_rolls_back_is_never_read(cluster: Cluster, order: int, tail: Tail) -> None:
    with contextlib.closing(psycopg2.connect(cluster.superuser_dsn)) as connection:
        append_uncommitted(connection, order)
        assert read(tail, cluster) == []
        connection.rollback()
        after = append_event(cluster.superuser_dsn, order).id
        assert read(tail, cluster) == [after]


def test_a_transaction_id_that_a_crash_gave_out_twice_hides_no_event(
    cluster: Cluster, order: int, tail: Tail
) -> None:
    before = append_event(cluster.superuser_dsn, order)
    assert read(tail, cluster) == [before.id]
    # Ids of transactions of which nothing reaches the disk: rolled back, or only notifying.
    with contextlib.closing(psycopg2.connect(cluster.superuser_dsn)) as connection:
        for _ in range(20):
            connection.cursor().execute("SELECT pg_current_xact_id()::text::bigint")
            connection.rollback()
            connection.cursor().execute("NOTIFY somebody")
            connection.commit()
        assert read(tail, cluster) == []
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()::text::bigint")
            (burnt,) = cursor.fetchone() or (0,)
        connection.rollback()
    cluster.kill()
    cluster.ensure_running()
    after = append_event(cluster.superuser_dsn, order)
    assert after.xid <= burnt, "this crash gave no transaction id out twice, so it proves nothing"
    assert read(tail, cluster) == [after.id]
    assert read(tail, cluster) == []


@pytest.mark.safety("late-commits")
def test_a_foreign_transaction_held_open_does_not_make_reading_slower(
    cluster: Cluster, order: int, tail: Tail
) -> None:
    with contextlib.closing(psycopg2.connect(cluster.superuser_dsn)) as foreign:
        foreign.cursor().execute("CREATE TABLE held_open (id int)")
        costs = []
        for _ in range(5):
            for _ in range(100):
                append_event(cluster.superuser_dsn, order)
            assert len(read(tail, cluster)) == 100
            append_event(cluster.superuser_dsn, order)
            costs.append(buffers_of_a_read(tail, cluster))
            assert len(read(tail, cluster)) == 1
    # Pages looked at, not time. An index that grows by a level may add a few.
    assert costs[-1] <= costs[0] + 10, costs


def buffers_of_a_read(tail: Tail, cluster: Cluster) -> int:
    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")  # as the relay does
        tail.open(cursor)
        cursor.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {tail._statement} (%s)",
            [str(tail.position)],
        )
        plan = cursor.fetchone()[0][0]["Plan"]
        return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def test_a_cursor_is_written_as_postgresql_writes_snapshots() -> None:
    assert str(Cursor(7, frozenset())) == "8:8:"
    assert str(Cursor(7, frozenset({5, 3}))) == "3:8:3,5"
    assert Cursor.at("3:12:3,5,9", 7) == Cursor(7, frozenset({3, 5}))


def test_a_database_that_lost_transactions_already_read_is_not_read_on() -> None:
    with pytest.raises(LogLost):
        Cursor.at("90:90:", 100)
