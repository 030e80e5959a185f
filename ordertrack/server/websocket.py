"""WebSocket connections without a greenlet each: read by callbacks, written without blocking.

Theory of operation
-------------------
`accept` checks an RFC 6455 handshake, takes the socket away from the HTTP server and answers 101.
From then on the connection is a `WebSocket` of a few hundred bytes: the request's greenlet, buffers
and environ are gone. All such sockets live in one epoll of our own (`readiness`), and only that
epoll is known to eventlet's hub, as one descriptor to watch. A thousand idle connections therefore
cost the hub nothing, and the only things asked of eventlet are "call me when this descriptor is
readable", "call me in the next turn" and "run this in a greenlet".

*In.* A readable socket is read once per turn into a buffer that all share; `ws_frames.Parser` keeps
what is incomplete, within its limits. A message goes first to `Handler.on_message_in_loop`, which
must not block and may say "done"; otherwise to the connection's inbox, which a worker greenlet
empties through `Handler.on_message`, one message after the other, and which exists only while there
is work. While an inbox is full nothing is parsed and the socket is not read (backpressure); neither
is a message handled while much waits for the client to read. A client that sends more than its
allowance is closed (1008); frames are taken one by one, so it is looked at after each of them.

*Out.* A frame is handed over with `write` (now) or `enqueue` (in the next turn, together with all
others for that socket, in one `send`: this is what broadcasts use, and as recipients are served
in chunks with the loop running in between, nobody has to yield while publishing). What the kernel
does not take stays as the socket's backlog, the rest of a partly sent frame first, until the
socket is writable. At any time all waiting frames are in exactly one of two places,
`_pending` (never tried) or `_backlog` (tried), so there is never a second writer and order is kept.

*Bounds.* A backlog that exceeds `max_queue_bytes`, or of which hardly anything was taken for
`max_queue_seconds`, is dropped and the connection closed with 1013: it can resume by version, and
what it missed is cheaper to read again than to keep. A frame that finds no backlog is always taken,
whatever its size, so an answer larger than the bound is slow, not impossible. What is longer than
one answer is handed over in pieces, as the client takes them (`stream`).

*Time.* One sweep per second on the monotonic clock serves everything that waits: ages of backlogs,
close handshakes, pings (`Heartbeat`), and whatever others add with `every`.

*Faults.* Whatever a callback raises ends its own connection, and the others go on. Where that is
impossible the loop is broken: nobody would hear anything any more, and nobody could see it, so the
process ends (`EXIT_CODE`).

*States.* OPEN → CLOSING (a close frame is queued; nothing further is accepted) → CLOSED (the
descriptor is gone). `Handler.on_close` runs exactly once, after CLOSED, in a greenlet, and never
while `on_message` runs for the same connection.

With `readiness` this is all of `realtime` that knows eventlet; the small wrappers at the end are
what the relay and the engine use instead.
"""

import _socket  # its sockets lack what socket.socket adds for files and contexts, and are smaller
import logging
import socket as _constants
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import eventlet

from ordertrack.server import ws_frames
from ordertrack.server.counters import counters
from ordertrack.server.heartbeat import Heartbeat
from ordertrack.server.loop import (
    event_loop,
    every,
    every_second,
    monotonic,
    one_by_one,
    pause,
    sleep,
    spawn,
    start,
)
from ordertrack.server.send_queue import SendQueue
from ordertrack.server.ws_frames import CloseCode, close_frame
from ordertrack.server.ws_handshake import Refused, check_handshake, too_many
from ordertrack.server.ws_handshake import refuse as _refuse

log = logging.getLogger(__name__)

OPEN: Final = 0
CLOSING: Final = 1
CLOSED: Final = 2

# How long a peer may take to answer a close frame before the descriptor is closed anyway. Closing
# connections keep no queue, so this only bounds descriptors.
CLOSE_SECONDS: Final = 3.0

# What a ping, a pong or a fragment takes off a client's allowance; a message takes 1. Each costs us
# about a tenth of a message's work.
CONTROL_COST: Final = 0.1

# The kernel's own queue per connection. Without a bound it grows to megabytes for a client that has
# stopped reading, which then looks healthy for minutes.
SEND_BUFFER: Final = 65_536

# The key in a WSGI environ of a callable that gives the connection away, as its socket and what has
# been read from it beyond the request. The server then forgets about both.
TAKE_OVER: Final = "ordertrack.take_over"

# As Engine.IO's defaults, which clients of the other kind live by.
PING_INTERVAL: Final = 25.0
PING_TIMEOUT: Final = 20.0

Message = str | bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may use. Shared by all connections of a kind."""

    # Summed over the fragments of a message; more closes with 1009.
    max_message_bytes: int = 65_536

    # What may wait for a client that does not read, and for how long if it reads less than so many
    # bytes a second, which is less than any connection that is still of use; more closes with 1013.
    max_queue_bytes: int = 1_000_000
    max_queue_seconds: float = 20.0
    min_bytes_per_second: int = 8_192

    # Messages that a client may send: enough to subscribe to its 200 orders one by one, twice, at
    # once, and after that more than a person can cause. More closes with 1008. Pings, pongs and
    # fragments count, too, at `CONTROL_COST`.
    message_burst: int = 400
    messages_per_second: float = 50.0

    # Messages that wait for a busy worker before the socket is not read any more: with messages of
    # the largest size they hold a megabyte.
    max_inbox: int = 16

    # Connections of the process; another one is answered 503.
    max_connections: int = 10_000

    # Socket.IO sessions that have not asked to be let in yet, beside those connections: in all, and
    # from one address. Such a session needs no token, so the oldest goes when another one comes. A
    # client that means it is among them for a round trip: in all there is room for everybody who
    # may be connected to come back at once, and for a thousand from behind one proxy.
    max_newcomers: int = 10_000
    max_newcomers_per_address: int = 1_000

    @property
    def max_answer_bytes(self) -> int:
        """What one answer should hold, so that what follows finds room while it is being read."""
        return self.max_queue_bytes // 2

    @property
    def crowded_bytes(self) -> int:
        """While so much waits for a client, it gets no further answers."""
        return self.max_queue_bytes // 4

    def afford(self, allowance: float, cost: float = 1.0) -> float | None:
        """Take a message, or what costs less, off a client's allowance; None when it is spent.

        A token bucket kept as one number: the time at which it will be full again. 0 is a full one.
        """
        now = monotonic()
        full = max(allowance, now) + cost / self.messages_per_second
        return full if full - now <= self.message_burst / self.messages_per_second else None


DEFAULT_LIMITS: Final = Limits()


class Handler(Protocol):
    """What a connection calls. Implementations keep the state of the connection themselves."""

    def on_open(self, ws: "WebSocket") -> None:
        """The connection stands; frames may be written. Runs in the greenlet of the handshake."""

    def on_message_in_loop(self, ws: "WebSocket", message: Message) -> bool:
        """True if the message has been dealt with. Must neither block nor wait."""

    def on_message(self, ws: "WebSocket", message: Message) -> None:
        """Handle one message; the next one of this connection waits. May block cooperatively."""

    def on_close(self, ws: "WebSocket", code: int, reason: str) -> None:
        """The connection is gone. `code` is what was received or sent, else ABNORMAL.

        Called exactly once, in a greenlet.
        """


class WebSocket:
    """One connection. Every method returns at once and none raises; see the module's text."""

    __slots__ = (
        "_allowance",
        "_backlog",
        "_deaf",
        "_fd",
        "_heard",
        "_inbox",
        "_muted",
        "_parser",
        "_peer_closed",
        "_pending",
        "_socket",
        "_source",
        "_working",
        "close_code",
        "close_reason",
        "handler",
        "limits",
        "state",
    )

    def __init__(self, raw: _socket.socket, handler: Handler, limits: Limits) -> None:
        self.handler: Handler | None = handler
        self.limits = limits
        self.state: int = OPEN
        self.close_code: int = CloseCode.ABNORMAL
        self.close_reason = ""
        self._heard = True
        self._socket = raw
        self._fd = raw.fileno()
        self._parser: ws_frames.Parser | None = ws_frames.Parser(limits.max_message_bytes)
        self._inbox: deque[Message] | None = None
        self._working = False  # a greenlet is emptying the inbox
        self._muted = False  # not read, because the inbox is full
        self._deaf = False  # read, but thrown away: the peer broke the protocol
        self._peer_closed = False  # its close frame has arrived
        self._pending: list[bytes] | None = None  # never tried
        self._backlog: SendQueue | None = None  # tried, and waiting for the kernel
        self._source: Callable[[], bool] | None = None  # see `stream`
        self._allowance = 0.0  # for messages; see Limits.afford

    @property
    def descriptor(self) -> int:
        return self._fd

    @property
    def alive(self) -> bool:
        return self.state == OPEN

    @property
    def heard(self) -> bool:
        """Whether the client has sent anything since the last ping; yes while we do not listen."""
        return self._heard or self._muted

    @heard.setter
    def heard(self, value: bool) -> None:
        self._heard = value

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait here for the client to read."""
        return self._backlog.size if self._backlog is not None else 0

    # Writing --------------------------------------------------------------------------------------

    def write(self, frame: bytes) -> None:
        """Send a whole encoded frame now, behind everything handed over before it."""
        if self.state == OPEN:
            self._put(frame)

    def enqueue(self, frame: bytes) -> None:
        """Send a frame in the loop's next turn, in one `send` with the others of this socket."""
        if self.state != OPEN:
            return
        counters.frames_out += 1
        if self._pending is not None:
            self._pending.append(frame)
        elif self._backlog is not None:
            self._grow(frame)
        else:
            self._pending = [frame]
            event_loop.flush_soon(self)

    def stream(self, source: Callable[[], bool]) -> None:
        """Call `source` in a greenlet whenever nothing waits for the client, until it says False.

        So what it sends may be of any length and takes no more memory than one call's worth.
        """
        self._source = source
        self._start_worker()

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Send a close frame behind what is queued, then close when the peer has answered.

        It has `CLOSE_SECONDS` for that. Nothing else is sent from now on.
        """
        if self.state == OPEN:
            self.close_code, self.close_reason = code, reason
            self._close_with(close_frame(code, reason))

    def abort(self) -> None:
        """Close at once, without a close frame and without sending what is queued."""
        self._drop(reset=True)

    def _watch(self) -> None:
        """Wait for what this socket waits for now."""
        if self.state != CLOSED:
            event_loop.watch(self, read=not self._muted, write=self._backlog is not None)

    def _put(self, frame: bytes) -> None:
        counters.frames_out += 1
        if self._backlog is not None:
            self._grow(frame)
            return
        if self._pending is not None:
            self._pending.append(frame)
            self.flush()
            return
        self._send(frame, (frame,))

    def flush(self) -> None:
        """Hand what is pending to the kernel, in one `send`."""
        pending = self._pending
        if pending is None:
            return
        self._pending = None
        self._send(pending[0] if len(pending) == 1 else b"".join(pending), pending)

    def _send(self, data: bytes, parts: Iterable[bytes]) -> None:
        """Try to send `data`, the join of `parts`; whatever is left becomes the backlog."""
        counters.sends += 1
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop()
            return
        if sent == len(data):
            return
        now = monotonic()
        backlog = self._backlog = SendQueue(now)
        for part in parts:
            backlog.append(part, now)
        backlog.sent(sent)
        event_loop.stalled.add(self)
        self._watch()

    def _grow(self, frame: bytes) -> None:
        backlog = self._backlog
        assert backlog is not None
        if self.state == OPEN and backlog.size + len(frame) > self.limits.max_queue_bytes:
            self._too_slow("queue full")
            return
        backlog.append(frame, monotonic())

    def _too_slow(self, reason: str) -> None:
        """Give up the backlog; what the peer gets is the rest of one frame and the reason."""
        counters.slow_closes += 1
        self.close_code, self.close_reason = CloseCode.TRY_AGAIN_LATER, reason
        backlog = self._backlog
        assert backlog is not None
        rest = backlog.discard()
        if rest is not None:
            backlog.append(rest, monotonic())
        self._deaf = True
        self._close_with(close_frame(CloseCode.TRY_AGAIN_LATER, reason))

    def check_pace(self, now: float) -> None:
        """Called by the sweep while there is a backlog."""
        backlog, limits = self._backlog, self.limits
        if (
            self.state == OPEN
            and backlog is not None
            and backlog.is_stuck(now, limits.max_queue_seconds, limits.min_bytes_per_second)
        ):
            self._too_slow("reading too slowly")

    def on_writable(self) -> None:
        """Called by the loop: the kernel takes bytes again."""
        backlog = self._backlog
        if backlog is None:
            return
        for _ in range(4):  # then it is somebody else's turn
            data = backlog.head()
            counters.sends += 1
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                return
            except OSError:
                self._drop()
                return
            backlog.sent(sent)
            if not backlog.frames:
                self._backlog = None
                event_loop.stalled.discard(self)
                self._watch()
                if self.state == CLOSING:
                    self._close_sent()
            if self._may_work():
                self._start_worker()
            if self._backlog is None or sent < len(data):
                return

    # Closing --------------------------------------------------------------------------------------

    def _fail(self, code: int, reason: str) -> None:
        """The peer broke a rule: say so, and throw away whatever else it sends."""
        self._deaf = True
        if self.state == OPEN:
            self.close(code, reason)
        else:
            self._parser = None

    def _close_with(self, frame: bytes) -> None:
        self.state = CLOSING
        self._parser = None if self._deaf else self._parser
        self._inbox = self._source = None
        event_loop.closing.append((monotonic() + CLOSE_SECONDS, self))
        if self._muted:
            self._muted = False
            self._watch()
        self._put(frame)
        if self.state == CLOSING and self._backlog is None:
            self._close_sent()

    def _close_sent(self) -> None:
        """Our close frame has left: the peer's is awaited, unless it was there first."""
        if self._peer_closed:
            self._drop()
        elif self._deaf:
            # Closing with unread input would send a reset, which may overtake the close frame.
            try:
                self._socket.shutdown(_constants.SHUT_WR)
            except OSError:
                self._drop()

    def _drop(self, *, reset: bool = False) -> None:
        """Release the descriptor and everything that is kept for the peer."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        event_loop.forget(self)
        if self._backlog is not None:
            self._backlog.discard()
            reset = True  # else the kernel would keep its own queue for minutes
        self._pending = self._backlog = self._parser = self._inbox = self._source = None
        try:
            if reset:
                self._socket.setsockopt(
                    _constants.SOL_SOCKET, _constants.SO_LINGER, b"\x01\0\0\0\0\0\0\0"
                )
            self._socket.close()
        except OSError:
            pass
        counters.open -= 1
        code = min(self.close_code, 4000)  # private codes count as one: clients choose them freely
        counters.closed[code] = counters.closed.get(code, 0) + 1
        self._start_worker()

    def expire(self) -> None:
        """Called by the sweep: the close handshake took too long."""
        self._drop(reset=self._backlog is not None)

    # Reading --------------------------------------------------------------------------------------

    def on_readable(self) -> None:
        """Called by the loop: there is something to read, or an end."""
        try:
            count = self._socket.recv_into(event_loop.buffer)
        except BlockingIOError:
            return
        except OSError:
            self._drop()
            return
        if count == 0:
            self._drop()
            return
        self.heard = True
        if self._parser is not None:
            self.feed(bytes(event_loop.view[:count]))

    def feed(self, data: bytes) -> None:
        """Take bytes that the peer sent."""
        if self._parser is not None:
            self._parser.feed(data)
            self._take()

    def _take(self) -> None:
        """Deal with what was fed, frame by frame, until there is no more or the inbox is full."""
        while not self._muted and (parser := self._parser) is not None:
            event = parser.next()
            if event is None:
                if parser.error is not None:
                    self._fail(parser.error.code, parser.error.reason)
                return
            opcode, payload = event
            whole = opcode in {ws_frames.TEXT, ws_frames.BINARY}
            allowance = self.limits.afford(self._allowance, 1.0 if whole else CONTROL_COST)
            if allowance is None:
                self._fail(CloseCode.POLICY_VIOLATION, "too many messages")
                return
            self._allowance = allowance
            if whole:
                self._deliver(payload)
            elif opcode == ws_frames.PING:
                assert isinstance(payload, bytes)
                # With those to others that came together with it.
                self.enqueue(ws_frames.encode(ws_frames.PONG, payload))
            elif opcode == ws_frames.CLOSE:
                assert isinstance(payload, bytes)
                self._on_close_frame(payload)
                return

    def _on_close_frame(self, payload: bytes) -> None:
        self._peer_closed = True
        if self.state == CLOSING:
            if self._backlog is None:
                self._drop()
            return
        try:
            code, self.close_reason = ws_frames.read_close(payload)
        except ws_frames.ProtocolError as error:
            code, self.close_reason = error.code, error.reason
        self.close_code = code
        self._close_with(
            close_frame(code)
            if code != CloseCode.NO_STATUS
            else ws_frames.encode(ws_frames.CLOSE, b"")
        )

    def _deliver(self, message: Message) -> None:
        handler = self.handler
        if self.state != OPEN or handler is None:
            return
        counters.messages_in += 1
        if handler.on_message_in_loop(self, message):
            return
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(message)
        if len(self._inbox) >= self.limits.max_inbox and not self._muted:
            self._muted = True
            self._watch()
        self._start_worker()

    def _start_worker(self) -> None:
        if not self._working:
            self._working = True
            spawn(self._work)

    def _may_work(self) -> bool:
        """Whether there is something to do, and the client takes what comes of it."""
        if self.state != OPEN or self.handler is None:
            return False
        if self._source is not None:
            return self._backlog is None
        return bool(self._inbox) and self.queued_bytes <= self.limits.crowded_bytes

    def _work(self) -> None:
        """The connection's greenlet while there is something to do."""
        try:
            while self._may_work():
                try:
                    if self._source is not None:
                        self._draw(self._source)
                    else:
                        self._handle_next()
                except (Exception, eventlet.Timeout):  # whatever a handler did, the others go on
                    log.exception("A message handler failed")
                    self.close(CloseCode.INTERNAL_ERROR, "internal error")
        finally:
            self._working = False
            self._inbox = self._inbox or None
        if self.state == CLOSED:
            handler, self.handler = self.handler, None
            if handler is not None:
                handler.on_close(self, self.close_code, self.close_reason)

    def _draw(self, source: Callable[[], bool]) -> None:
        if not source() and self._source is source:
            self._source = None
        self.flush()

    def _handle_next(self) -> None:
        assert self._inbox and self.handler is not None
        message = self._inbox.popleft()
        if self._muted and len(self._inbox) <= self.limits.max_inbox // 2:
            self._muted = False
            self._take()  # what was read before
            self._watch()
        self.handler.on_message(self, message)


# Connections ----------------------------------------------------------------------------------


def refuse(start_response: Callable[..., Any], refused: Refused) -> list[bytes]:
    """Answer a handshake with a problem document, and count it."""
    counters.refuse(refused.code)
    return _refuse(start_response, refused)


def take_over(
    environ: Mapping[str, Any],
    handler: Handler,
    *,
    subprotocol: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    heartbeat: bool = True,
) -> WebSocket:
    """Turn the request in `environ` into a WebSocket; afterwards WSGI must answer nothing.

    With `heartbeat`, the connection is kept alive by protocol pings. Raises `Refused` while an HTTP
    answer is still possible, and `RuntimeError` where the request is not served by `server.server`.
    """
    answer = check_handshake(environ)
    if full(limits):
        raise too_many()
    give = environ.get(TAKE_OVER)
    if give is None:
        raise RuntimeError("WebSockets need OrderTrack's own server, ordertrack.server")
    start()
    raw, early = give()
    ws_socket = _socket.socket(raw.family, raw.type, raw.proto, raw.detach())
    try:
        ws_socket.setblocking(False)
        ws_socket.setsockopt(_constants.IPPROTO_TCP, _constants.TCP_NODELAY, 1)
        ws_socket.setsockopt(_constants.SOL_SOCKET, _constants.SO_SNDBUF, SEND_BUFFER)
        ws = WebSocket(ws_socket, handler, limits)
        event_loop.add(ws)
    except BaseException:
        ws_socket.close()
        raise
    counters.open += 1
    counters.opened += 1
    protocol = f"Sec-WebSocket-Protocol: {subprotocol}\r\n".encode() if subprotocol else b""
    # Enqueued, so that it leaves together with what the handler writes first.
    ws.enqueue(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + answer + b"\r\n" + protocol + b"\r\n"
    )
    if heartbeat:
        _pings.add(ws)
    try:
        handler.on_open(ws)
        if early:
            ws.feed(early)
    except Exception as error:  # noqa: BLE001 (logged there; nobody can be answered any more)
        event_loop.failed(ws, error)
    return ws


def accept(
    environ: Mapping[str, Any],
    start_response: Callable[..., Any],
    handler: Handler,
    *,
    subprotocol: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    heartbeat: bool = True,
) -> list[bytes]:
    """`take_over` as a WSGI application: what it answers, refusals included, is the body."""
    try:
        take_over(
            environ, handler, subprotocol=subprotocol, limits=limits, heartbeat=heartbeat
        )  # fmt: skip
    except Refused as refused:
        return refuse(start_response, refused)
    return []


def full(limits: Limits) -> bool:
    """Whether a new connection has to be refused, with `too_many`.

    Before that, one that has not authenticated is ended to make room, if there is any.
    """
    if draining():
        return True
    return counters.open >= limits.max_connections and not make_room(socket=True)


def read_now(ws: WebSocket) -> None:
    """Read what has arrived, ahead of its turn."""
    try:
        ws.on_readable()
    except Exception as error:  # noqa: BLE001 (logged there)
        event_loop.failed(ws, error)


def draining() -> bool:
    """Whether the process is about to end, and takes nobody in."""
    return event_loop.draining


def make_room(*, socket: bool) -> bool:
    """End what somebody holds who has not authenticated; False if there is nothing.

    With `socket` it is a WebSocket that ends, at once; else it may be a request, soon.
    """
    return any(end_one(socket) for end_one in event_loop.room_makers)


def make_room_with(end_one: Callable[[bool], bool]) -> None:
    """Call `end_one` when there is no room; see `make_room`."""
    event_loop.room_makers.append(end_one)


def close_all(code: int, reason: str, seconds: float) -> None:
    """Refuse new connections and close the open ones, evenly spread over `seconds`.

    Clients that are told to come back then do not all come at once. Returns when every connection
    has ended or been given `CLOSE_SECONDS` for it.
    """
    event_loop.draining = True
    for ws in one_by_one(connections(), seconds):
        try:
            ws.close(code, reason)
        except Exception as error:  # noqa: BLE001 (logged there)
            event_loop.failed(ws, error)
    end = monotonic() + CLOSE_SECONDS
    while event_loop.sockets and monotonic() < end:
        sleep(0.02)


def connections() -> list[WebSocket]:
    """Every connection that has a descriptor, in no order."""
    return cast(list[WebSocket], list(event_loop.sockets.values()))


# Pings of the protocol itself, for connections that have none of their own ----------------------


def _ping(ws: WebSocket) -> None:
    ws.enqueue(ws_frames.encode(ws_frames.PING, b""))


_pings = Heartbeat(PING_INTERVAL, PING_TIMEOUT, ping=_ping, expire=WebSocket.abort, pause=pause)
every_second(event_loop.close_late)
every_second(event_loop.close_slow)
every(_pings.period, _pings.sweep)
