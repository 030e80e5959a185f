"""Shares the process's file descriptors out between WebSockets, HTTP and the database."""

import logging
import resource
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

# For everything that is neither a client nor a connection to the database: standard streams,
# listening sockets, epolls, pipes, files that are being sent, the embedded PostgreSQL, and the
# short-lived ones of connecting and of looking up a name.
SPARE: Final = 100

# HTTP's share, which WebSockets never take: for 503 refusals, /readyz, and the REST API.
MIN_HTTP: Final = 32
MAX_HTTP: Final = 8_192


class TooFewDescriptors(Exception):
    """The limit on open files is too low to serve at all."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many connections may be open: WebSockets, and those together with HTTP's."""

    websockets: int
    connections: int


def raise_limit() -> int:
    """Raise the limit on open files as far as the system allows; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError) as error:
            log.warning("File descriptors stay limited to %d: %s", soft, error)
    log.info("Up to %d file descriptors may be open", soft)
    return soft


def capacity_for(websockets: int, *, descriptors: int, database: int) -> Capacity:
    """The capacity for that many WebSockets beside HTTP, or for as many as *descriptors* allow.

    *database* is the number of connections to it. Raises `TooFewDescriptors`.
    """
    clients = descriptors - SPARE - database
    if clients < 2 * MIN_HTTP:
        raise TooFewDescriptors(
            f"at most {descriptors} files may be open, and at least"
            f" {SPARE + database + 2 * MIN_HTTP} are needed; raise the limit (ulimit -n)"
        )
    http = min(MAX_HTTP, max(MIN_HTTP, clients // 8))
    possible = min(websockets, clients - http)
    if possible < websockets:
        log.warning(
            "MAX_CONNECTIONS is %d, but at most %d files may be open (ulimit -n):"
            " %d connections are taken",
            websockets,
            descriptors,
            possible,
        )
    return Capacity(websockets=possible, connections=min(clients, possible + MAX_HTTP))
