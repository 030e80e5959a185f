"""What is measured, for whom, and what was promised: the rows of the results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.load import Step

Figures = dict[str, float]


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


@dataclass(frozen=True)
class Promise:
    """A bound on the ratio of OrderTrack's figure to another case's, and one to aim at beyond."""

    figure: str
    against: str  # a contender
    target: float | None = None
    beyond: float | None = None
    ours: str = ""  # the labels of the two cases, where a contender has several
    theirs: str = ""


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    figures: dict[str, str]  # name → unit; the first is the one that the chart shows
    less_is_better: bool
    measure: Callable[[Sequence[Step]], Figures]
    cases: tuple[Case, ...]
    promises: tuple[Promise, ...] = ()
    min_rounds: int = 1
    max_rounds: int = 99


def _cases(case: Case, *contenders: str) -> tuple[Case, ...]:
    return tuple(replace(case, contender=contender) for contender in contenders)


def _deliveries(steps: Sequence[Step]) -> Figures:
    changes = [step for step in steps if step.figures["step"] == "change"]
    delivered = sum(step.figures["delivered"] for step in changes)
    return {
        "deliveries/s": delivered / sum(step.seconds for step in changes),
        "server CPU per delivery": sum(step.server_cpu for step in changes) / delivered * 1e6,
        "p99": max(step.figures["delivery_ms"]["p99"] for step in changes),
    }


_DELIVERIES = {"deliveries/s": "/s", "server CPU per delivery": "µs", "p99": "ms"}


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
        "p99": step.figures["connect_ms"]["p99"],
    }


def _memory(steps: Sequence[Step]) -> Figures:
    # Against what it was with the first clients: what a server allocates once is no one client's.
    first, last = steps[1], steps[3]
    clients = steps[2].figures["connected"]
    return {"memory per connection": (last.pss_after - first.pss_after) / clients / 1024}


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


def all_scenarios(*, quick: bool = False) -> list[Scenario]:
    """Every scenario. `quick` asks the same questions of fewer clients in less time."""
    size = 0.2 if quick else 1.0

    def n(full: int) -> int:
        return max(20, round(full * size))

    seconds = 1 if quick else 4
    calls = seconds * 2500  # orders; each takes three changes
    watch_ten = Case(
        contender="",
        steps=(f"connect {n(1000)} 100", "change 1 30 0"),
        orders=10,
        warm_up=("connect 100 50", "change 1 30 0"),
        warm_up_orders=10,
        watch="all",
    )
    return [
        Scenario(
            "fan-out",
            f"Fan-out: {n(1000):,} Socket.IO clients, each in the rooms of 10 orders, 30 changes",
            _DELIVERIES,
            False,
            _deliveries,
            _cases(watch_ten, "ordertrack", "node", "flask", "c"),
            (
                Promise("deliveries/s", "node", 1.8, 2.2),
                Promise("deliveries/s", "c", 0.65, 0.8),
                Promise("deliveries/s", "flask", 5.5),
            ),
        ),
        Scenario(
            "fan-out-10-drivers",
            "The same, ten drivers changing at once",
            _DELIVERIES,
            False,
            _deliveries,
            _cases(
                replace(watch_ten, steps=(watch_ten.steps[0], "change 10 30 0")),
                "ordertrack",
                "node",
                "c",
            ),
        ),
        Scenario(
            "latency",
            f"PUT → receipt: {n(500)} clients, each on its own order, 200 changes a second,"
            " commits not awaited",
            _LATENCY,
            True,
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
            (Promise("p50", "node", 1.0, 0.5), Promise("p99", "node", 1.0, 0.5)),
            min_rounds=1 if quick else 10,
        ),
        Scenario(
            "put",
            "PUT status with its audit row, 16 connections, durable",
            _REQUESTS,
            False,
            _requests,
            _cases(
                Case(contender="", steps=(f"put 16 {seconds} 1",), orders=calls),
                "ordertrack",
                "node",
                "fastapi",
                "flask",
                "pgbench",
            ),
            (
                Promise("requests/s", "node", 1.3),
                Promise("requests/s", "fastapi", 1.1),
            ),
        ),
        Scenario(
            "get",
            "GET order, 16 connections",
            _REQUESTS,
            False,
            _requests,
            _cases(
                Case(contender="", steps=(f"get 16 {seconds} 1",), orders=500),
                "ordertrack",
                "node",
                "fastapi",
                "flask",
            ),
            (Promise("requests/s", "fastapi", 1.0), Promise("requests/s", "node", beyond=1.0)),
        ),
        Scenario(
            "post",
            "POST order, 16 connections, durable",
            _REQUESTS,
            False,
            _requests,
            _cases(Case(contender="", steps=(f"post 16 {seconds} 1",), orders=1), "ordertrack"),
        ),
        *(
            Scenario(
                f"{kind}1",
                f"{kind.upper()}, 1 connection, commits not awaited",
                _REQUESTS,
                False,
                _requests,
                _cases(
                    Case(
                        contender="",
                        steps=(f"{kind} 1 {seconds / 2} 0.5",),
                        orders=calls // 2,
                        durable=False,
                    ),
                    "ordertrack",
                ),
            )
            for kind in ("get", "put", "post")
        ),
        *(
            Scenario(
                name,
                title,
                {"clients/s": "/s", "server CPU per client": "µs", "p99": "ms"},
                False,
                _connects,
                _cases(
                    Case(
                        contender="",
                        steps=(f"connect {n(clients)} {in_flight}",),
                        orders=100,
                        warm_up=(f"connect {n(300)} {in_flight}",),
                        warm_up_orders=100,
                        protocol=protocol,
                    ),
                    "ordertrack",
                ),
            )
            for name, title, clients, in_flight, protocol in (
                ("connect1", "Connect, authenticate, subscribe; one at a time", 500, 1, "socketio"),
                (
                    "raw-connect",
                    "Raw WebSocket: connect, authenticate, first message; 100 in flight",
                    2000,
                    100,
                    "websocket",
                ),
            )
        ),
        Scenario(
            "connect",
            "Connect, authenticate, subscribe; 100 in flight",
            {"clients/s": "/s", "server CPU per client": "µs", "p99": "ms"},
            False,
            _connects,
            _cases(
                Case(
                    contender="",
                    steps=(f"connect {n(2000)} 100",),
                    orders=100,
                    warm_up=(f"connect {n(300)} 100",),
                    warm_up_orders=100,
                ),
                "ordertrack",
                "node",
                "flask",
            ),
            (Promise("clients/s", "node", 0.6, 1.0),),
        ),
        Scenario(
            "memory",
            f"Memory per idle connection, {n(2000):,} subscribed clients",
            {"memory per connection": "KiB"},
            True,
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
                "flask",
            ),
            (Promise("memory per connection", "node", 1.3, 1.0),),
            max_rounds=3,
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
            True,
            _return,
            tuple(
                Case(
                    "ordertrack",
                    (
                        f"connect {clients} 200",
                        "hold 0.2",
                        "drop",
                        "hold 1",
                        "change 16 750 0",
                        f"connect {clients} 500",
                    ),
                    orders=250,
                    label=f"{clients:,} clients",
                )
                for clients in (n(500), n(1500), n(5000))
            ),
            (
                Promise(
                    "server CPU per client",
                    "ordertrack",
                    1.2,
                    ours=f"{n(5000):,} clients",
                    theirs=f"{n(500):,} clients",
                ),
            ),
            max_rounds=3,
        ),
        Scenario(
            "raw-websocket",
            f"Raw WebSocket fan-out: {n(1000):,} sockets on one order",
            _DELIVERIES,
            False,
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
            (Promise("deliveries/s", "ordertrack", 1.0, ours="raw WebSocket", theirs="Socket.IO"),),
        ),
        Scenario(
            "clients",
            "Fan-out as clients grow",
            {"server CPU per delivery": "µs", "deliveries/s": "/s", "p99": "ms"},
            True,
            _deliveries,
            tuple(
                replace(
                    watch_ten,
                    contender="ordertrack",
                    label=f"{clients:,} clients",
                    steps=(f"connect {clients} 100", "change 1 30 0"),
                )
                for clients in (n(100), n(300), n(1000), n(3000), n(9000))
            ),
            (
                Promise(
                    "server CPU per delivery",
                    "ordertrack",
                    1.1,
                    ours=f"{n(9000):,} clients",
                    theirs=f"{n(1000):,} clients",
                ),
            ),
            max_rounds=1,
        ),
        Scenario(
            "processes",
            f"Fan-out over several processes on all cores, {n(2000):,} clients in all",
            _DELIVERIES,
            False,
            _deliveries,
            tuple(
                replace(
                    watch_ten,
                    contender="ordertrack",
                    label=f"{processes} process{'es' if processes > 1 else ''}",
                    steps=(f"connect {n(2000)} 100", "change 1 30 0"),
                    processes=processes,
                    all_cores=True,
                )
                for processes in (1, 2, 4)
            ),
            max_rounds=3,
        ),
    ]
