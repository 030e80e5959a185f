"""Replay and live events have no gap and no repeat between them, in any interleaving."""

from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ordertrack.errors import DomainError, Unavailable
from ordertrack.eventlog import Event
from ordertrack.policy import Actor, DriverScope, Role
from ordertrack.realtime.hub import Announcement, Answers, Hub, State, order_room
from ordertrack.server.ws_frames import CloseCode
from ordertrack.services.orders import CaughtUp, Wanted
from tests.realtime.fakes import FakeWatcher
from tests.support.examples import examples

ACTOR = Actor(1, "Ann", Role.ADMIN, DriverScope.ALL)


class Client(FakeWatcher):
    """What one client has: versions by order, those of its acknowledgement first."""

    def __init__(self) -> None:
        super().__init__()
        self.received: dict[int, list[int]] = defaultdict(list)

    def deliver(self, announcement: Announcement) -> None:
        self.received[announcement.event.order_id].append(announcement.event.version)


def event_of(order_id: int, version: int) -> Event:
    return Event(
        id=0,
        order_id=order_id,
        version=version,
        type="description_changed",
        status="Pending",
        previous_status="Pending",
        actor_id=1,
        actor_name="Ann",
        actor_role="admin",
        note=None,
        changes=None,
        customer_id=1,
        driver_id=None,
        created_at=datetime.now(UTC),
    )


# What happens around a read of the log: one of the orders wanted changes, any order does, the relay
# takes a step, or a whole turn, or it has to start over. That ends every client, so it is rare.
often = ["wanted", "wanted", "any", "step", "turn", "turn"]
happenings = st.lists(st.sampled_from([*often, *often, *often, "over"]), max_size=6)

# What the machine is for, and how often it got there.
REACHED: Counter[str] = Counter()
STATES = {
    "read again",
    "changing too fast",
    "held",
    "read again after an earlier answer",
    "failed after an earlier answer",
    "dropped below the watermark",
    "started over while the log was read",
}


class Seam(RuleBasedStateMachine):
    """A log in memory, a relay whose turns are torn into their steps, and clients that come and go.

    The log is what the database would show: `committed` counts an order's events. The relay reads
    at one moment and publishes later, event by event, while everything else goes on.
    """

    clients = Bundle("clients")
    order_ids = st.integers(1, 3)

    def __init__(self) -> None:
        super().__init__()
        self.hub = Hub(lambda _, wanted: self.read_log(wanted))
        self.read_log: Callable[[Wanted], tuple[Actor, Answers]]
        self.committed: dict[int, int] = dict.fromkeys((1, 2, 3), 1)
        self.unread: list[tuple[int, int]] = []  # committed, and not read by the relay
        self.read: list[tuple[int, int]] | None = None  # read, and to be published in this turn
        self.connected: dict[Client, dict[int, int]] = {}  # and where each order began for it

    # --- the world ----------------------------------------------------------------------------

    @rule(order_id=order_ids)
    def commit(self, order_id: int) -> None:
        self.committed[order_id] += 1
        self.unread.append((order_id, self.committed[order_id]))

    @rule()
    def relay_step(self) -> None:
        if self.read is None:
            self.hub.before_read()
            self.read, self.unread = self.unread, []
        elif self.read:
            order_id, version = self.read.pop(0)
            self.note_what_is_not_delivered(order_id, version)
            self.hub.publish(event_of(order_id, version))
        else:
            self.hub.after_read()
            self.read = None

    def relay_turn(self) -> None:
        """To the end of one turn, the one under way or the next."""
        self.relay_step()
        while self.read is not None:
            self.relay_step()

    @rule()
    def start_over(self) -> None:
        """The relay cannot read on: it begins at the log's end, and everybody is sent away."""
        self.unread, self.read = [], None
        for watcher in self.connected:
            watcher.close(CloseCode.SERVICE_RESTART, "")

    def note_what_is_not_delivered(self, order_id: int, version: int) -> None:
        for watcher, subscription in self.hub._subscriptions.get(order_id, {}).items():
            if watcher.closing or order_room(order_id) not in watcher.rooms:
                continue
            if subscription.state is State.READING and version > subscription.watermark:
                REACHED["held"] += 1
            if subscription.state is State.SETTLING and version <= subscription.watermark:
                REACHED["dropped below the watermark"] += 1

    # --- clients ------------------------------------------------------------------------------

    @precondition(lambda self: sum(not one.closing for one in self.connected) < 3)
    @rule(target=clients)
    def connect(self) -> Client:
        watcher = Client()
        self.connected[watcher] = {}
        return watcher

    @rule(client=consumes(clients))
    def cut(self, client: Client) -> None:
        client.close(CloseCode.ABNORMAL, "")
        self.hub.remove(client)
        del self.connected[client]

    @rule(client=clients, order_id=order_ids)
    def unsubscribe(self, client: Client, order_id: int) -> None:
        self.hub.unsubscribe(client, order_id)
        self.connected[client].pop(order_id, None)
        client.received.pop(order_id, None)

    @rule(
        client=clients,
        wanted=st.dictionaries(order_ids, st.integers(0, 3), min_size=1),
        before=st.lists(happenings, max_size=3),
        behind=st.lists(happenings, max_size=3),
        end=st.sampled_from(["calm", "calm", "calm", "restless", "lost"]),
    )
    def subscribe(
        self,
        client: Client,
        wanted: dict[int, int],
        before: list[list[str]],
        behind: list[list[str]],
        end: str,
    ) -> None:
        """*wanted*: how many versions behind the client is, by order. *before*, *behind*: what
        happens before and after each time that the log is read. In the *end* all is calm, or the
        order goes on changing, or the database is lost."""
        if client.closing:
            return
        after = {o: max(0, self.committed[o] - missed) for o, missed in wanted.items()}
        earlier = any(order_id in self.connected[client] for order_id in wanted)
        reads = 0

        def read(some: Wanted) -> tuple[Actor, Answers]:
            nonlocal reads
            reads += 1
            if reads == 2:
                REACHED["read again"] += 1
                REACHED["read again after an earlier answer"] += earlier
            self.let(before.pop(0) if before else [], min(wanted))
            if end == "lost" and not before:
                REACHED["failed after an earlier answer"] += earlier
                raise Unavailable("gone")
            answers: Answers = {order_id: caught_up(self.committed[order_id]) for order_id in some}
            restless = ["wanted", "turn", "turn"] if end == "restless" else []
            self.let(behind.pop(0) if behind else restless, min(wanted))
            return ACTOR, answers

        self.read_log = read
        # A client that subscribes again names the version that it has seen, and goes on from there.
        try:
            answers = self.hub.subscribe(client, dict(after))
        except Unavailable:
            return
        for order_id, answer in answers.items():
            self.take(client, order_id, after[order_id], answer)

    def let(self, happen: list[str], wanted: int) -> None:
        for what in happen:
            match what:
                case "wanted":
                    self.commit(wanted)
                case "any":
                    self.commit(1)
                case "step":
                    self.relay_step()
                case "turn":
                    self.relay_turn()
                case "over":
                    REACHED["started over while the log was read"] += 1
                    self.start_over()

    def take(
        self, client: Client, order_id: int, after: int, answer: CaughtUp | DomainError
    ) -> None:
        if isinstance(answer, Unavailable):  # it is out of the room
            REACHED["changing too fast"] += 1
            self.connected[client].pop(order_id, None)
            client.received.pop(order_id, None)
            return
        assert isinstance(answer, CaughtUp)
        client.received[order_id] = list(range(after + 1, answer.version + 1))
        self.connected[client][order_id] = after

    @invariant()
    def no_client_has_a_gap_or_a_repeat(self) -> None:
        for client, began in self.connected.items():
            for order_id, after in began.items():
                got = client.received[order_id]
                assert got == list(range(after + 1, after + 1 + len(got))), (order_id, after, got)

    def teardown(self) -> None:
        """When the relay has caught up, clients have all events, and all subscriptions are live."""
        while self.unread or self.read is not None:
            self.relay_step()
        self.relay_step()
        self.relay_step()
        for client, began in self.connected.items():
            for order_id, after in began.items():
                if not client.closing:
                    assert after + len(client.received[order_id]) == self.committed[order_id]
        assert self.hub._subscriptions == {}


def caught_up(version: int) -> CaughtUp:
    return CaughtUp(None, version, [])  # type: ignore[arg-type] (nobody looks at the order)


def test_no_client_has_a_gap_or_a_repeat_in_any_interleaving() -> None:
    # Hypothesis leaves out rules at random, so a round may miss a state; ten rounds never do.
    for _ in range(10):
        run_state_machine_as_test(
            Seam,
            settings=settings(
                max_examples=examples(100),
                stateful_step_count=40,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if all(REACHED[state] for state in STATES):
            return
    assert {state for state in STATES if REACHED[state]} == STATES, REACHED
