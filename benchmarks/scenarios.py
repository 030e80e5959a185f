"""What is measured, for whom, and what was promised: the rows of the results."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from benchmarks import machine
from benchmarks.load import Step

Figures = dict[str, float]

NODE = ("node", "node-transaction", "fastify")


@dataclass(frozen=True)
class Case:
    """One server doing one job. `steps` are lines of a plan (loadgen/plan.h)."""

    contender: str
    steps: tuple[str, ...]
    orders: int
    label: str = ""  # what varies, when one contender has several cases
    warm_up: tuple[str, ...] = ()  # before it, on the same server, with orders of its own
    warm_up_orders: int = 0
    watch: str = "own"
    protocol: str = "socketio"
    durable: bool = True
    processes: int = 1
    all_cores: bool = False
    repeats: int = 1  # on the same server, each time with new clients and new orders
    max_rounds: int = 99

    @property
    def seconds(self) -> float:
        """About how long a turn takes, for servers as fast as most."""
        start = 2.5 if self.steps else 0.0
        return (
            start + sum(map(_seconds, self.warm_up)) + self.repeats * sum(map(_seconds, self.steps))
        )


def _seconds(step: str) -> float:
    kind, *words = step.split()
    numbers = [float(word) for word in words]
    match kind:
        case "connect":
            return numbers[0] / 1500
        case "change":
            return 1 + (numbers[1] / numbers[2] if numbers[2] else 0)
        case "put" | "get" | "post":
            return numbers[1] + numbers[2]
        case "hold":
            return numbers[0]
    return 0


@dataclass(frozen=True)
class Promise:
    """A bound on the ratio of OrderTrack's figure to another case's, and one to aim at beyond.

    Of several contenders the best counts. Against none, the bounds are on the figure itself.
    Without bounds the ratio is shown, and nothing was promised.
    """

    figure: str
    against: tuple[str, ...] = ()
    target: float | None = None
    beyond: float | None = None
    ours: str = ""  # the labels of the two cases, where a contender has several
    theirs: str = ""


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    figures: dict[str, str]  # name → unit; the first is the one that the chart shows
    measure: Callable[[Sequence[Step]], Figures]
    cases: tuple[Case, ...]
    promises: tuple[Promise, ...] = ()
    min_rounds: int = 1
    max_rounds: int = 99

    def rounds(self, wanted: int) -> int:
        return min(max(wanted, self.min_rounds), self.max_rounds)

    def less_is_better(self, figure: str) -> bool:
        """Rates should be high; times, sizes and shares low."""
        return not self.figures[figure].startswith("/")


def _cases(case: Case, *contenders: str) -> tuple[Case, ...]:
    return tuple(replace(case, contender=contender) for contender in contenders)


def _deliveries(steps: Sequence[Step]) -> Figures:
    changes = [step for step in steps if step.figures["step"] == "change"]
    delivered = sum(step.figures["delivered"] for step in changes)
    return {
        "deliveries/s": delivered / sum(step.seconds for step in changes),
        "server CPU per delivery": sum(step.server_cpu for step in changes) / delivered * 1e6,
        "p50": _mean(step.figures["delivery_ms"]["p50"] for step in changes),
        "p99": _mean(step.figures["delivery_ms"]["p99"] for step in changes),
    }


_DELIVERIES = {
    "deliveries/s": "/s",
    "server CPU per delivery": "µs",
    "p50": "ms",
    "p99": "ms",
}


def _latency(steps: Sequence[Step]) -> Figures:
    step = steps[-1]
    quantiles = step.figures["delivery_ms"]
    figures = {name: quantiles[name] for name in ("p50", "p90", "p99", "max")}
    return {**figures, "server CPU per change": step.server_cpu / step.figures["started"] * 1e6}


_LATENCY = {"p50": "ms", "p90": "ms", "p99": "ms", "max": "ms", "server CPU per change": "µs"}


def _requests(steps: Sequence[Step]) -> Figures:
    step = steps[-1]
    return {
        "requests/s": step.figures["answered"] / step.seconds,
        # The step's whole CPU time, hence over all its requests, those of the warm-up too.
        "server CPU per request": step.server_cpu / step.figures["started"] * 1e6,
        "p50": step.figures["answer_ms"]["p50"],
        "p99": step.figures["answer_ms"]["p99"],
    }


_REQUESTS = {"requests/s": "/s", "server CPU per request": "µs", "p50": "ms", "p99": "ms"}


def _connects(steps: Sequence[Step]) -> Figures:
    step = steps[-1]
    return {
        "clients/s": step.figures["connected"] / step.seconds,
        "server CPU per client": step.server_cpu / step.figures["connected"] * 1e6,
        "p50": step.figures["connect_ms"]["p50"],
        "p99": step.figures["connect_ms"]["p99"],
    }


_CONNECTS = {"clients/s": "/s", "server CPU per client": "µs", "p50": "ms", "p99": "ms"}


def _memory(steps: Sequence[Step]) -> Figures:
    # Against what it was with the first clients: what a server allocates once is no one client's.
    first, last = steps[1], steps[3]
    clients = steps[2].figures["connected"]
    return {"memory per connection": (last.pss_after - first.pss_after) / clients / 1024}


def _idle(steps: Sequence[Step]) -> Figures:
    connect, hold = steps
    share = hold.server_cpu / hold.seconds
    return {"of a core, per 10,000 clients": share / connect.figures["connected"] * 1e4 * 100}


def _return(steps: Sequence[Step]) -> Figures:
    _connect, _hold, drop, cleaning_up, _change, back = steps
    clients = back.figures["connected"]
    return {
        "server CPU per client": back.server_cpu / clients * 1e3,
        "all back after": back.seconds,
        "clients/s": clients / back.seconds,
        "server CPU of the drop, per client": (
            (drop.server_cpu + cleaning_up.server_cpu) / clients * 1e3
        ),
    }


def _mean(values: Iterable[float]) -> float:
    found = [*values]
    return sum(found) / len(found)


def all_scenarios(*, quick: bool = False) -> list[Scenario]:
    """Every scenario. `quick` asks the same questions of fewer clients in less time."""
    size = 0.2 if quick else 1.0

    def n(full: int) -> int:
        return max(20, round(full * size))

    return [
        *_fan_outs(n, quick=quick),
        *_latencies(n, quick=quick),
        *_calls(quick=quick),
        *_connecting(n),
        *_idling(n, quick=quick),
        *_growing(n, quick=quick),
    ]


Sizes = Callable[[int], int]


def _watch_ten(n: Sizes) -> Case:
    return Case(
        contender="",
        steps=(f"connect {n(1000)} 100", "change 1 30 0"),
        orders=10,
        warm_up=("connect 100 50", "change 1 30 0"),
        warm_up_orders=10,
        watch="all",
    )


# The same for each kind of fan-out.
_FAN_OUT_VS_NODE = (
    Promise("deliveries/s", ("node",), 3.0, 4.0),
    Promise("p50", ("node",), 1.0, 0.6),
    Promise("p99", ("node",), 1.0, 0.6),
)
_FAN_OUT_VS_C = Promise("deliveries/s", ("c",), 0.85, 1.1)


def _fan_outs(n: Sizes, *, quick: bool) -> list[Scenario]:
    one = _watch_ten(n)
    ten = replace(one, steps=(one.steps[0], "change 10 30 0"))
    raw = Case(
        contender="",
        steps=(f"connect {n(5000)} 100", "change 1 15 0"),
        orders=5,
        repeats=1 if quick else 2,
        warm_up=("connect 500 100", "change 1 15 0"),
        warm_up_orders=5,
        protocol="websocket",
    )
    return [
        Scenario(
            "fan-out",
            f"Fan-out: {n(1000):,} Socket.IO clients, each in the rooms of 10 orders, 30 changes by"
            " one driver, the next one sent when the last one is answered",
            _DELIVERIES,
            _deliveries,
            (
                *_cases(one, "ordertrack", "node", "c"),
                replace(one, contender="flask", max_rounds=1),
            ),
            (*_FAN_OUT_VS_NODE, _FAN_OUT_VS_C, Promise("deliveries/s", ("flask",), 5.5)),
        ),
        Scenario(
            "fan-out-10-drivers",
            "The same, ten drivers changing at once",
            _DELIVERIES,
            _deliveries,
            _cases(ten, "ordertrack", "node", "c"),
            (*_FAN_OUT_VS_NODE, _FAN_OUT_VS_C),
        ),
        Scenario(
            "raw-fan-out",
            f"Raw WebSocket fan-out: {n(5000):,} sockets over 5 orders, 15 changes by one driver",
            _DELIVERIES,
            _deliveries,
            _cases(raw, "ordertrack", "node", "go"),
            (*_FAN_OUT_VS_NODE, Promise("deliveries/s", ("go",)), Promise("p50", ("go",))),
        ),
        Scenario(
            "raw-websocket",
            f"Socket.IO or raw WebSocket: {n(1000):,} sockets on one order",
            _DELIVERIES,
            _deliveries,
            tuple(
                Case(
                    "ordertrack",
                    label=label,
                    steps=(f"connect {n(1000)} 100", "change 1 3 0"),
                    orders=1,
                    repeats=1 if quick else 5,
                    warm_up=("connect 100 50", "change 1 30 0"),
                    warm_up_orders=10,
                    protocol=protocol,
                )
                for label, protocol in (("Socket.IO", "socketio"), ("raw WebSocket", "websocket"))
            ),
            (
                Promise(
                    "deliveries/s", ("ordertrack",), 1.0, ours="raw WebSocket", theirs="Socket.IO"
                ),
            ),
            max_rounds=3,
        ),
    ]


def _latencies(n: Sizes, *, quick: bool) -> list[Scenario]:
    return [
        Scenario(
            "latency",
            f"PUT → receipt: {n(500)} clients, each on its own order, 200 changes a second,"
            " commits not awaited",
            _LATENCY,
            _latency,
            _cases(
                Case(
                    contender="",
                    steps=(f"connect {n(500)} 100", f"change 16 {min(n(800), 3 * n(500))} 200"),
                    orders=n(500),
                    warm_up=("connect 50 50", "change 16 150 200"),
                    warm_up_orders=50,
                    durable=False,
                ),
                "ordertrack",
                "node",
            ),
            (
                Promise("p50", ("node",), 0.9, 0.7),
                Promise("p99", ("node",), 0.7, 0.5),
                Promise("server CPU per change", ("node",), 1.2, 1.0),
            ),
            min_rounds=1 if quick else 7,
        )
    ]


def _calls(*, quick: bool) -> list[Scenario]:
    seconds = 1 if quick else 3
    warm_up = 1 if quick else 2  # after one second V8 is not at its best yet
    moved = (seconds + warm_up) * 3300  # orders; each takes three changes

    def case(kind: str, connections: int = 16, orders: int = 500) -> Case:
        return Case(
            contender="", steps=(f"{kind} {connections} {seconds} {warm_up}",), orders=orders
        )

    put, get, post = case("put", orders=moved), case("get"), case("post", orders=1)
    return [
        Scenario(
            "put",
            "PUT status with its audit row, 16 connections, durable",
            _REQUESTS,
            _requests,
            (
                *_cases(put, "ordertrack", *NODE, "go", "fastapi"),
                replace(put, contender="flask", max_rounds=1),
                replace(put, contender="pgbench"),
            ),
            (
                # The express peer, changing as the Go peer does, and the best that Node can do.
                Promise("requests/s", ("node-transaction",), 1.8, 2.5),
                Promise("requests/s", NODE, 1.8, 2.5),
                Promise("requests/s", ("go",), 1.0, 1.3),
                Promise("requests/s", ("pgbench",), 0.5, 0.8),
                Promise("requests/s", ("fastapi",)),
            ),
        ),
        Scenario(
            "get",
            "GET order, 16 connections",
            _REQUESTS,
            _requests,
            (
                *_cases(get, "ordertrack", "node", "fastify", "go", "fastapi"),
                replace(get, contender="flask", max_rounds=1),
            ),
            (
                Promise("requests/s", ("node",), 1.3, 2.0),
                Promise("requests/s", NODE, 1.3, 2.0),
                Promise("requests/s", ("go",), 0.25, 0.35),
                Promise("requests/s", ("fastapi",)),
            ),
        ),
        Scenario(
            "post",
            "POST order with its audit row, 16 connections, durable",
            _REQUESTS,
            _requests,
            _cases(post, "ordertrack", "node", "fastify", "go", "fastapi"),
            (
                Promise("requests/s", ("node",), 1.3, 2.0),
                Promise("requests/s", NODE, 1.3, 2.0),
                Promise("requests/s", ("go",)),
                Promise("requests/s", ("fastapi",)),
            ),
        ),
        *(
            Scenario(
                f"{kind}1",
                f"{kind.upper()}, 1 connection, commits not awaited",
                _REQUESTS,
                _requests,
                _cases(
                    replace(
                        case(kind, orders=moved // 2),
                        steps=(f"{kind} 1 {seconds / 2} 0.5",),
                        durable=False,
                    ),
                    "ordertrack",
                ),
                max_rounds=3,
            )
            for kind in ("get", "put", "post")
        ),
    ]


def _connecting(n: Sizes) -> list[Scenario]:
    def case(clients: int, in_flight: int, protocol: str) -> Case:
        return Case(
            contender="",
            steps=(f"connect {n(clients)} {in_flight}",),
            orders=100,
            # V8 is at its best after 3,000 clients: then it takes 20 to 50 % more than after 1,000.
            warm_up=(f"connect {n(clients * 3 // 2)} {in_flight}",),
            warm_up_orders=100,
            protocol=protocol,
        )

    many, raw = case(2000, 100, "socketio"), case(2000, 100, "websocket")
    return [
        Scenario(
            "connect",
            "Connect, authenticate, subscribe; 100 in flight",
            _CONNECTS,
            _connects,
            (*_cases(many, "ordertrack", "node"), replace(many, contender="flask", max_rounds=1)),
            (Promise("clients/s", ("node",), 1.3, 2.0),),
        ),
        Scenario(
            "raw-connect",
            "Raw WebSocket: connect, authenticate, first message; 100 in flight",
            _CONNECTS,
            _connects,
            _cases(raw, "ordertrack", "node", "go"),
            (Promise("clients/s", ("node",), 1.3, 2.0), Promise("clients/s", ("go",))),
        ),
        Scenario(
            "connect1",
            "Connect, authenticate, subscribe; one at a time",
            _CONNECTS,
            _connects,
            _cases(case(500, 1, "socketio"), "ordertrack"),
            max_rounds=3,
        ),
    ]


def _idling(n: Sizes, *, quick: bool) -> list[Scenario]:
    idle = min(n(10_000), machine.file_limit() - 500)
    all_clients = (5000, 1500, 500)
    return [
        Scenario(
            "memory",
            f"Memory per idle connection, {n(2000):,} subscribed clients",
            {"memory per connection": "KiB"},
            _memory,
            _cases(
                Case(
                    contender="",
                    steps=(
                        f"connect {n(500)} 100",
                        "hold 1",
                        f"connect {n(2500)} 100",
                        "hold 1",
                    ),
                    orders=100,
                ),
                "ordertrack",
                "node",
            ),
            (
                Promise("memory per connection", (), 2.5, 2.0),
                Promise("memory per connection", ("node",)),
            ),
            max_rounds=3,
        ),
        Scenario(
            "idle",
            f"CPU of {idle:,} idle, subscribed clients, each of which is pinged once meanwhile",
            {"of a core, per 10,000 clients": "%"},
            _idle,
            _cases(
                Case(
                    contender="",
                    steps=(f"connect {idle} 200", f"hold {2 if quick else 25}"),
                    orders=100,
                ),
                "ordertrack",
                "node",
            ),
            (Promise("of a core, per 10,000 clients", ("node",)),),
            max_rounds=1,
        ),
        Scenario(
            "return",
            "All clients dropped at once, and back with `after`, each missing 3 events",
            {
                "server CPU per client": "ms",
                "all back after": "s",
                "clients/s": "/s",
                "server CPU of the drop, per client": "ms",
            },
            _return,
            tuple(
                Case(
                    "ordertrack",
                    (
                        f"connect {n(clients)} 200",
                        "hold 0.2",
                        "drop",
                        "hold 1",
                        "change 16 750 0",
                        f"connect {n(clients)} 500",
                    ),
                    orders=250,
                    label=f"{n(clients):,} clients",
                )
                for clients in reversed(all_clients)
            ),
            (
                Promise(
                    "server CPU per client",
                    ("ordertrack",),
                    1.2,
                    ours=f"{n(max(all_clients)):,} clients",
                    theirs=f"{n(min(all_clients)):,} clients",
                ),
            ),
            max_rounds=2,
        ),
    ]


def _growing(n: Sizes, *, quick: bool) -> list[Scenario]:
    watch_ten = replace(_watch_ten(n), contender="ordertrack")

    def in_processes(processes: int, clients: int) -> Case:
        return replace(
            watch_ten,
            label=f"{processes} process{'es' if processes > 1 else ''}, {clients:,} clients",
            steps=(f"connect {clients} 100", "change 1 30 0"),
            processes=processes,
            all_cores=processes > 1,
        )

    weak = [in_processes(number, number * n(1000)) for number in (1, 2)]
    return [
        Scenario(
            "clients",
            "Fan-out as clients grow",
            {"server CPU per delivery": "µs", "deliveries/s": "/s", "p50": "ms", "p99": "ms"},
            _deliveries,
            tuple(
                replace(
                    watch_ten,
                    label=f"{clients:,} clients",
                    steps=(f"connect {clients} 100", "change 1 30 0"),
                )
                for clients in (n(100), n(300), n(1000), n(3000), n(9000))
            ),
            (
                Promise(
                    "server CPU per delivery",
                    ("ordertrack",),
                    1.1,
                    ours=f"{n(9000):,} clients",
                    theirs=f"{n(1000):,} clients",
                ),
            ),
            max_rounds=1,
        ),
        Scenario(
            "weak-scaling",
            f"Fan-out with {n(1000):,} clients for each process; two processes have both cores,"
            " which they share with the database and the load generator",
            _DELIVERIES,
            _deliveries,
            tuple(weak),
            (
                Promise(
                    "server CPU per delivery",
                    ("ordertrack",),
                    ours=weak[1].label,
                    theirs=weak[0].label,
                ),
                Promise("deliveries/s", ("ordertrack",), ours=weak[1].label, theirs=weak[0].label),
            ),
            max_rounds=3,
        ),
        Scenario(
            "processes",
            f"Fan-out over several processes on all cores, {n(2000):,} clients in all",
            _DELIVERIES,
            _deliveries,
            tuple(replace(in_processes(number, n(2000)), all_cores=True) for number in (1, 2, 4)),
            max_rounds=1 if quick else 2,
        ),
    ]
