"""Assembles the realtime part of a server: hub, connections, both protocols, relay."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from wsgiref.types import WSGIApplication

from flask import Flask, Response

from ordertrack.config import Settings
from ordertrack.errors import Unavailable
from ordertrack.eventlog import Event
from ordertrack.histogram import Histogram
from ordertrack.origins import Origins
from ordertrack.realtime.connections import Connections
from ordertrack.realtime.database_gate import DatabaseGate
from ordertrack.realtime.hub import Hub, Watcher
from ordertrack.realtime.order_socket import OrderSockets
from ordertrack.realtime.relay import Relay
from ordertrack.realtime.socketio_handlers import SocketIOHandlers
from ordertrack.server import loop
from ordertrack.server.websocket import Limits
from ordertrack.server.ws_frames import CloseCode
from ordertrack.services.orders import Budget
from ordertrack.sio.socketio import SocketIO

log = logging.getLogger(__name__)

# Histogram buckets of the delivery lag, in seconds: 1 ms is normal, 60 s follows an outage.
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)

# Connections of the pool that sockets leave to HTTP requests.
_KEPT_FOR_REQUESTS = 2

RESUME = "The server has lost its place in the log. Connect again, and resume."


@dataclass(frozen=True, slots=True)
class Realtime:
    """The parts, for the metrics and the server's start and end."""

    socketio: SocketIO
    order_sockets: Callable[[WSGIApplication], OrderSockets]  # wraps the given application
    connections: Connections
    hub: Hub
    relay: Relay
    lag: Histogram


def init_app(app: Flask, settings: Settings) -> Realtime:
    """Add the sockets to *app*. The serving process starts the relay that feeds them."""
    limits = Limits(
        max_message_bytes=settings.max_body_bytes,
        max_queue_bytes=settings.queue_max_bytes,
        max_queue_seconds=settings.queue_max_seconds,
        max_connections=settings.max_connections,
        max_pending_sessions=settings.max_connections,
    )
    origins = Origins(frozenset(settings.allowed_origins))
    connections = Connections(
        limit=settings.max_connections, per_user=settings.max_connections_per_user
    )
    budget = Budget(bytes=limits.max_answer_bytes)
    gate = DatabaseGate(max(1, settings.db_pool_size - _KEPT_FOR_REQUESTS), budget)
    hub = Hub(gate.catch_up, budget)
    socketio = SocketIO(
        app, origins=origins, limits=limits, credential_cookie=app.config["JWT_ACCESS_COOKIE_NAME"]
    )
    SocketIOHandlers(app, socketio, hub, connections, gate)

    order_sockets = partial(
        OrderSockets,
        app,
        hub=hub,
        connections=connections,
        gate=gate,
        origins=origins,
        limits=limits,
    )
    lag = Histogram(LAG_BOUNDS)

    def publish(event: Event) -> None:
        hub.publish(event)
        # Compares the database's clock with ours, so clock skew shows up as lag.
        lag.observe(max(0.0, time.time() - event.created_at.timestamp()))

    def disconnect_all() -> None:
        """Close every connection with 1012, spread over time, so that its client resumes."""
        stopped = connections.stop_all(lambda: Unavailable(RESUME))
        loop.spawn(close_each, stopped, settings.drain_seconds / 2)

    relay = Relay(
        settings.db_dsn or "",
        publish=publish,
        revoke=connections.close_revoked,
        before_read=hub.before_read,
        after_read=hub.after_read,
        on_gap=disconnect_all,
        poll=settings.relay_poll_ms / 1000,
    )
    loop.every_second(connections.close_expired)

    @app.after_request
    def let_the_relay_read(response: Response) -> Response:
        if relay.is_woken:
            # The relay reads now, while this answer is made: a third less latency of the push.
            loop.pause()
        return response

    return Realtime(socketio, order_sockets, connections, hub, relay, lag)


def close_each(stopped: list[Watcher], seconds: float) -> None:
    """Close connections that have been stopped, spread over *seconds*."""
    for watcher in loop.spread(stopped, seconds):
        try:
            watcher.close(CloseCode.SERVICE_RESTART, "resume")
        except Exception:  # the others get no events any more, and must not stay open
            log.exception("A connection could not be closed")
