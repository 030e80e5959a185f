"""The seam between replay and live: no gap and no repeat, whatever happens at whatever moment."""

from collections import defaultdict
from collections.abc import Collection
from datetime import UTC, datetime

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from ordertrack.errors import DomainError, Unavailable
from ordertrack.eventlog import Event
from ordertrack.policy import Actor, DriverScope, Role
from ordertrack.realtime.fanout import Announcement, Fanout, Wanted
from ordertrack.services.orders import CaughtUp

ACTOR = Actor(1, "Ann", Role.ADMIN)


class Rooms:
    def __init__(self) -> None:
        self.members: dict[str, dict[Watcher, None]] = defaultdict(dict)

    def __call__(self, room: str) -> Collection["Watcher"]:
        return self.members[room]


class Watcher:
    """What one connection gets: versions by order, the acknowledged ones first."""

    def __init__(self, rooms: Rooms) -> None:
        self.actor: Actor | None = None
        self.rooms = rooms
        self.closed = False
        self.received: dict[int, list[int]] = defaultdict(list)

    def deliver(self, announcement: Announcement) -> None:
        self.received[announcement.event.order_id].append(announcement.event.version)

    def join(self, room: str) -> None:
        if not self.closed:
            self.rooms.members[room][self] = None

    def leave(self, room: str) -> None:
        self.rooms.members[room].pop(self, None)

    def sign_out(self, error: DomainError) -> None:
        self.hang_up(1008, error.code)

    def hang_up(self, code: int, reason: str) -> None:
        self.closed = True
        for members in self.rooms.members.values():
            members.pop(self, None)


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


class Seam(RuleBasedStateMachine):
    """A log in memory, a relay whose turns are torn into their steps, and clients that come and go.

    The log is what the database would show: `committed` counts an order's events. The relay reads
    at one moment and publishes later, event by event, while everything else goes on.
    """

    clients = Bundle("clients")
    order_ids = st.integers(1, 3)

    def __init__(self) -> None:
        super().__init__()
        self.rooms = Rooms()
        self.fanout = Fanout(self.rooms, DriverScope.ALL)
        self.committed: dict[int, int] = dict.fromkeys((1, 2, 3), 1)
        self.unread: list[tuple[int, int]] = []  # committed, and not read by the relay
        self.read: list[tuple[int, int]] | None = None  # read, and to be published in this turn
        self.connected: dict[Watcher, dict[int, int]] = {}  # and where each order began for it

    # --- the world ----------------------------------------------------------------------------

    @rule(order_id=order_ids)
    def commit(self, order_id: int) -> None:
        self.committed[order_id] += 1
        self.unread.append((order_id, self.committed[order_id]))

    @rule()
    def relay_step(self) -> None:
        if self.read is None:
            self.fanout.reading()
            self.read, self.unread = self.unread, []
        elif self.read:
            self.fanout.publish(event_of(*self.read.pop(0)))
        else:
            self.fanout.caught_up()
            self.read = None

    @rule()
    def start_over(self) -> None:
        """The relay cannot read on: it begins at the log's end, and everybody is sent away."""
        self.unread, self.read = [], None
        for watcher in self.connected:
            watcher.hang_up(1012, "")

    # --- clients ------------------------------------------------------------------------------

    @rule(target=clients)
    def connect(self) -> Watcher:
        watcher = Watcher(self.rooms)
        self.connected[watcher] = {}
        return watcher

    @rule(client=consumes(clients))
    def cut(self, client: Watcher) -> None:
        client.hang_up(1006, "")
        del self.connected[client]

    @rule(client=clients, order_id=order_ids)
    def unsubscribe(self, client: Watcher, order_id: int) -> None:
        self.fanout.unsubscribe(client, order_id)
        self.connected[client].pop(order_id, None)
        client.received.pop(order_id, None)

    @rule(
        client=clients,
        wanted=st.dictionaries(order_ids, st.integers(0, 3), min_size=1),
        meanwhile=st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=2, max_size=2),
        fails=st.integers(0, 9).map(lambda n: n == 0),
    )
    def subscribe(
        self, client: Watcher, wanted: dict[int, int], meanwhile: list[list[int]], fails: bool
    ) -> None:
        """*wanted*: how many versions behind the client is, by order. *meanwhile*: what happens
        before and after the log is read, each time: 1 to 3 is a commit, 5 a relay that starts over,
        the rest a relay's step."""
        if client.closed:
            return
        after = {o: max(0, self.committed[o] - behind) for o, behind in wanted.items()}

        def let(happen: list[int]) -> None:
            for what in happen:
                if 1 <= what <= 3:
                    self.commit(what)
                elif what == 5:
                    self.start_over()
                else:
                    self.relay_step()

        def read(some: Wanted) -> tuple[Actor, dict[int, CaughtUp | DomainError]]:
            let(meanwhile[0])
            if fails:
                raise Unavailable("gone")
            answers: dict[int, CaughtUp | DomainError] = {
                order_id: caught_up(self.committed[order_id]) for order_id in some
            }
            let(meanwhile[1])
            meanwhile[:] = [[], []]  # once: else it would change too fast for ever
            return ACTOR, answers

        # Whoever subscribes again names what it has seen, and begins anew from there.
        try:
            answers = self.fanout.subscribe(client, dict(after), read)
        except Unavailable:
            return
        for order_id, answer in answers.items():
            assert isinstance(answer, CaughtUp)
            missed = list(range(after[order_id] + 1, answer.version + 1))
            client.received[order_id] = missed
            self.connected[client][order_id] = after[order_id]

    @invariant()
    def nobody_has_a_gap_or_a_repeat(self) -> None:
        for client, began in self.connected.items():
            for order_id, after in began.items():
                got = client.received[order_id]
                assert got == list(range(after + 1, after + 1 + len(got))), (order_id, after, got)

    def teardown(self) -> None:
        """When the relay has caught up everybody has everything, and nothing is kept of the way."""
        while self.unread or self.read is not None:
            self.relay_step()
        self.relay_step()
        self.relay_step()
        for client, began in self.connected.items():
            for order_id, after in began.items():
                if not client.closed:
                    assert after + len(client.received[order_id]) == self.committed[order_id]
        assert self.fanout._transit == {}


def caught_up(version: int) -> CaughtUp:
    return CaughtUp(None, version, [])  # type: ignore[arg-type] (nobody looks at the order)


TestSeam = Seam.TestCase
TestSeam.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
