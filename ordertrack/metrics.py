"""Metrics of this process, for Prometheus.

Nothing is counted through the client library: the code that does the work keeps plain integers, and
`Collector` reads them at each scrape. So a scrape costs some milliseconds, and an event or a
request next to nothing. Names and meanings are in docs/operations.md; each process counts for
itself.
"""

import logging
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from flask import Flask
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector as BaseCollector
from sqlalchemy.pool import QueuePool

from ordertrack.db import pool_stats
from ordertrack.extensions import db
from ordertrack.histogram import Histogram
from ordertrack.realtime.setup import Realtime
from ordertrack.server import loop
from ordertrack.server.counters import counters
from ordertrack.services import housekeeping
from ordertrack.web.middleware.request_log import RequestLog

log = logging.getLogger(__name__)


class LoopWatch:
    """Measures how long the event loop is blocked, by how late a timer runs."""

    # A block is seen less the time until the timer was due, so one that is longer than this is seen
    # for certain. To wake an idle process ten times a second costs 0.1 % of a core.
    PERIOD: Final = 0.1
    LOGGED_FROM: Final = 0.25

    def __init__(self) -> None:
        self.lag = Histogram((0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5))

    def start(self) -> None:
        """Measure from now on; for the serving process."""
        loop.spawn(self._watch)

    def _watch(self) -> None:
        while True:
            due = loop.monotonic() + self.PERIOD
            loop.sleep(self.PERIOD)
            late = max(0.0, loop.monotonic() - due)
            self.lag.observe(late)
            if late > self.LOGGED_FROM:
                log.warning("event loop blocked for %.2f s", late)


class Collector(BaseCollector):
    """Reads the counters of *app*'s process."""

    def __init__(
        self, app: Flask, realtime: Realtime, requests: RequestLog, loop: LoopWatch
    ) -> None:
        self._app = app
        self._realtime = realtime
        self._requests = requests
        self._loop = loop

    def describe(self) -> Iterable[Metric]:
        """Nothing: otherwise a registry collects once at the start, before there is a pool."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._relay()
        yield from self._hub()
        yield from self._connections()
        yield from self._http()
        yield from self._process()
        yield from _housekeeping()

    def _relay(self) -> Iterator[Metric]:
        relay, following = self._realtime.relay, self._realtime.relay.is_following
        yield _gauge("relay_following", "1 while the relay follows the log.", following)
        yield _histogram(
            "relay_lag_seconds", "Age of an event when it is delivered.", self._realtime.lag
        )
        yield _counter(
            "relay_events", "Events published, watched or not.", self._realtime.hub.published
        )
        yield _counter("relay_turns", "Reads of the log.", relay.turns)
        yield _counter(
            "relay_reconnects", "Times that the relay lost its connection.", relay.reconnects
        )
        yield _counter(
            "relay_fresh_starts",
            "Times that reading could not continue at the cursor, so every client had to resume.",
            relay.restarts,
        )

    def _hub(self) -> Iterator[Metric]:
        hub = self._realtime.hub
        yield _counter(
            "deliveries", "Events times the connections that they were sent to.", hub.deliveries
        )
        yield _counter("subscribes", "Subscriptions to an order.", hub.subscribes)
        yield _counter("resumes", "Subscriptions with the version last seen.", hub.resumes)
        yield _counter("resets", "Subscriptions too far behind for a replay.", hub.resets)
        yield _counter(
            "replayed_events", "Events replayed to clients that had missed them.", hub.replayed
        )
        yield _counter(
            "frames_sent", "WebSocket frames handed to the kernel or queued.", counters.frames_out
        )
        yield _counter("sends", "System calls that sent them.", counters.sends)
        yield _counter(
            "messages_received", "WebSocket messages from clients.", counters.messages_in
        )
        yield _gauge("queue_bytes", "Bytes queued for slow clients.", counters.queued_bytes)
        yield _counter(
            "slow_closes", "Connections closed for reading too slowly (1013).", counters.slow_closes
        )
        yield _gauges(
            "subscriptions", "Rooms times the connections in them.", "kind", hub.memberships
        )

    def _connections(self) -> Iterator[Metric]:
        sessions = list(self._realtime.socketio.server.eio.sockets.values())
        upgraded = sum(session.ws is not None for session in sessions)
        yield _gauges(
            "connections",
            "Open connections, by kind.",
            "kind",
            {
                "socketio_websocket": upgraded,
                "socketio_polling": len(sessions) - upgraded,
                "websocket": max(0, counters.open - upgraded),
            },
        )
        yield _gauge("guests", "Authenticated connections.", len(self._realtime.connections))
        yield _counter("connections_opened", "WebSockets opened.", counters.opened)
        yield _counters(
            "connections_closed", "WebSockets closed, by code.", "code", counters.closed
        )
        yield _counters(
            "handshakes_refused", "Connections refused, by problem code.", "code", counters.refused
        )

    def _http(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "ordertrack_http_request_duration_seconds",
            "Time from a request's head to the beginning of its response.",
            labels=("route", "method", "status"),
        )
        for (route, method, status), histogram in list(self._requests.seen.items()):
            labels = (route, method, f"{status}xx")
            family.add_metric(labels, histogram.cumulative(), histogram.sum)
        yield family
        yield _gauge(
            "http_requests_in_flight", "Requests being handled now.", self._requests.in_flight
        )

    def _process(self) -> Iterator[Metric]:
        with self._app.app_context():
            pool: QueuePool = db.engine.pool  # type: ignore[assignment]
        yield _gauge("db_pool_size", "Database connections that may be open.", pool.size())
        yield _gauge("db_pool_checked_out", "Database connections in use.", pool.checkedout())
        yield _gauge("db_pool_waiting", "Requests that wait for a connection.", pool_stats.waiting)
        yield _counter("db_pool_waits", "Times that all were in use.", pool_stats.waits)
        yield _counter(
            "db_pool_wait_seconds", "Time waited for a connection.", pool_stats.wait_seconds
        )
        yield _counter("db_pool_timeouts", "Waits that timed out (503).", pool_stats.timeouts)
        yield _histogram(
            "loop_lag_seconds",
            f"How late a timer ran that is due every {LoopWatch.PERIOD:g} s.",
            self._loop.lag,
        )
        build = GaugeMetricFamily("ordertrack_build_info", "Version of Python.", labels=("python",))
        build.add_metric((platform.python_version(),), 1)
        yield build


def _housekeeping() -> Iterator[Metric]:
    done = housekeeping.stats
    yield _counter("housekeeping_turns", "Searches for old rows.", done.runs)
    yield _counter("housekeeping_failures", "Searches for old rows that failed.", done.failures)
    yield _counters("housekeeping_deleted", "Old rows deleted.", "table", done.deleted)


def registry(
    app: Flask, realtime: Realtime, requests: RequestLog, loop: LoopWatch
) -> CollectorRegistry:
    """Make the registry that /metrics shows."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(app, realtime, requests, loop))
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ordertrack_{name}", meaning, value=value)


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"ordertrack_{name}", meaning, value=value)


def _histogram(name: str, meaning: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(f"ordertrack_{name}", meaning)
    family.add_metric((), histogram.cumulative(), histogram.sum)
    return family


def _gauges(name: str, meaning: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(f"ordertrack_{name}", meaning, labels=(label,))
    for value, number in values.items():
        family.add_metric((value,), number)
    return family


def _counters(
    name: str, meaning: str, label: str, values: dict[str, int] | dict[int, int]
) -> Metric:
    family = CounterMetricFamily(f"ordertrack_{name}", meaning, labels=(label,))
    for value, number in list(values.items()):
        family.add_metric((str(value),), number)
    return family
