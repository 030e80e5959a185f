"""The live side of a server, put together: rooms, raw sockets, fan-out, relay."""

from flask import Flask, Response, request

from ordertrack.config import Settings
from ordertrack.policy import DriverScope
from ordertrack.realtime import transport
from ordertrack.realtime.engine import SocketIO
from ordertrack.realtime.fanout import Fanout, Watcher
from ordertrack.realtime.guests import Guests
from ordertrack.realtime.relay import Relay
from ordertrack.realtime.rooms import Rooms
from ordertrack.realtime.transport import Limits, Origins
from ordertrack.realtime.websocket import OrderSockets, RawRooms


def init_app(app: Flask, settings: Settings) -> Relay:
    """Add the sockets to *app*. The relay that feeds them is started by who serves."""
    scope = DriverScope(settings.driver_scope)
    limits = Limits(
        max_queue_bytes=settings.queue_max_bytes, max_queue_seconds=settings.queue_max_seconds
    )
    origins = Origins(
        allowed=frozenset(settings.allowed_origins), behind_proxy=settings.trusted_proxies > 0
    )
    guests = Guests(most=settings.max_connections, per_user=settings.max_connections_per_user)
    raw_rooms = RawRooms()

    def members(room: str) -> list[Watcher]:
        return [*rooms.members(room), *raw_rooms.members(room)]

    fanout = Fanout(members, scope)
    socketio = SocketIO(app, origins=origins, limits=limits)
    rooms = Rooms(app, socketio, fanout, guests, scope)
    app.wsgi_app = OrderSockets(  # type: ignore[method-assign]
        app,
        app.wsgi_app,
        fanout=fanout,
        rooms=raw_rooms,
        guests=guests,
        origins=origins,
        limits=limits,
        scope=scope,
    )
    relay = Relay(
        settings.db_dsn or "",
        publish=fanout.publish,
        end_access=guests.end_access,
        reading=fanout.reading,
        caught_up=fanout.caught_up,
        poll=settings.relay_poll_ms / 1000,
    )
    transport.every_second(guests.sweep)
    app.extensions["ordertrack_relay"] = relay
    app.extensions["ordertrack_drain"] = socketio.drain

    @app.after_request
    def wake_the_relay(response: Response) -> Response:
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            relay.wake()
        return response

    return relay
