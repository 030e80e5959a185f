"""File descriptors: how many there are, and who may have them."""

import logging
import resource
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

# For everything that is neither a client nor a connection to the database: standard streams,
# listening sockets, epolls, pipes, files that are being sent, the embedded PostgreSQL, and what
# connecting and looking up a name take for a moment.
SPARE: Final = 100

# HTTP has its share whatever the WebSockets take: what says 503, /readyz, and everybody's REST.
MIN_HTTP: Final = 32
MAX_HTTP: Final = 8_192


class TooFewDescriptors(Exception):
    """The limit on open files leaves no room to serve."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections there may be: *sockets* of watchers, and *most* in all."""

    sockets: int
    most: int


def raise_limit() -> int:
    """Allow this process as many descriptors as the system lets it; answers how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:
            log.warning("File descriptors stay limited to %d: %s", soft, error)
    log.info("Up to %d file descriptors may be open", soft)
    return soft


def room_for(sockets: int, *, descriptors: int, database: int) -> Room:
    """Room for that many sockets beside HTTP, or for as many as *descriptors* allow.

    *database*: connections to it. Raises `TooFewDescriptors`.
    """
    clients = descriptors - SPARE - database
    if clients < 2 * MIN_HTTP:
        raise TooFewDescriptors(
            f"at most {descriptors} files may be open, and at least"
            f" {SPARE + database + 2 * MIN_HTTP} are needed; raise the limit (ulimit -n)"
        )
    http = min(MAX_HTTP, max(MIN_HTTP, clients // 8))
    room = min(sockets, clients - http)
    if room < sockets:
        log.warning(
            "MAX_CONNECTIONS is %d, but at most %d files may be open (ulimit -n):"
            " %d connections are taken",
            sockets,
            descriptors,
            room,
        )
    return Room(sockets=room, most=min(clients, room + MAX_HTTP))
