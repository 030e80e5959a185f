"""The live side of a server, put together: rooms, raw sockets, fan-out, relay."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from wsgiref.types import WSGIApplication

from flask import Flask, Response

from ordertrack.config import Settings
from ordertrack.errors import Unavailable
from ordertrack.eventlog import Event
from ordertrack.histogram import Histogram
from ordertrack.origins import Origins
from ordertrack.realtime.connections import Connection, Connections
from ordertrack.realtime.hub import Hub, Watcher
from ordertrack.realtime.order_socket import OrderSockets, RawRooms
from ordertrack.realtime.relay import Relay
from ordertrack.realtime.socketio_handlers import SocketIOHandlers
from ordertrack.server import loop
from ordertrack.server.websocket import Limits
from ordertrack.server.ws_frames import CloseCode
from ordertrack.services.orders import Budget
from ordertrack.sio.socketio import SocketIO

log = logging.getLogger(__name__)

# Of an event's age when the sockets get it: from the wake-up in time to the database gone for long.
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)

RESUME = "The server has lost its place in the log. Connect again, and resume."


@dataclass(frozen=True, slots=True)
class Realtime:
    """The parts, for who watches over them."""

    socketio: SocketIO
    order_sockets: Callable[[WSGIApplication], OrderSockets]  # the middleware, around its argument
    raw_rooms: RawRooms
    connections: Connections
    hub: Hub
    relay: Relay
    lag: Histogram


def init_app(app: Flask, settings: Settings) -> Realtime:
    """Add the sockets to *app*. The relay that feeds them is started by who serves."""
    limits = Limits(
        max_message_bytes=settings.max_body_bytes,
        max_queue_bytes=settings.queue_max_bytes,
        max_queue_seconds=settings.queue_max_seconds,
        max_connections=settings.max_connections,
        max_pending_sessions=settings.max_connections,
    )
    origins = Origins(frozenset(settings.allowed_origins))
    connections = Connections(
        most=settings.max_connections,
        per_user=settings.max_connections_per_user,
        at_once=max(1, settings.db_pool_size - 2),
    )
    raw_rooms = RawRooms()

    def members(room: str) -> list[Watcher]:
        return [*rooms.members(room), *raw_rooms.members(room)]

    hub = Hub(members, settings.driver_scope, Budget(bytes=limits.max_answer_bytes))
    socketio = SocketIO(
        app,
        origins=origins,
        limits=limits,
        credential_cookie=app.config["JWT_ACCESS_COOKIE_NAME"],
    )
    rooms = SocketIOHandlers(app, socketio, hub, connections)

    def order_sockets(inner: WSGIApplication) -> OrderSockets:
        return OrderSockets(
            app,
            inner,
            hub=hub,
            rooms=raw_rooms,
            connections=connections,
            origins=origins,
            limits=limits,
        )

    lag = Histogram(LAG_BOUNDS)

    def publish(event: Event) -> None:
        hub.publish(event)
        # By two clocks, the database's and ours: as good as they agree.
        lag.observe(max(0.0, time.time() - event.created_at.timestamp()))

    def start_over() -> None:
        """Send everybody away, to come back and resume; those who come meanwhile are let in."""
        leaving = connections.silence_all(lambda: Unavailable(RESUME))
        loop.spawn(hang_up, leaving, settings.drain_seconds / 2)

    relay = Relay(
        settings.db_dsn or "",
        publish=publish,
        end_access=connections.end_access,
        reading=hub.reading,
        caught_up=hub.caught_up,
        start_over=start_over,
        poll=settings.relay_poll_ms / 1000,
    )
    loop.every_second(connections.sweep)

    @app.after_request
    def let_the_relay_look(response: Response) -> Response:
        if relay.is_due:
            # Its read is under way while this answer is made: a third off the time to the push.
            loop.pause()
        return response

    return Realtime(socketio, order_sockets, raw_rooms, connections, hub, relay, lag)


def hang_up(leaving: list[Connection], seconds: float) -> None:
    """Close the connections of those who have been silenced."""
    for connection in loop.one_by_one(leaving, seconds):
        try:
            connection.hang_up(CloseCode.SERVICE_RESTART, "resume")
        except Exception:  # the others hear nothing any more, and must not wait for it for ever
            log.exception("A connection could not be closed")
