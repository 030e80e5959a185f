"""WebSocket connections without a greenlet each: callbacks read, and sends never block (RFC 6455).

`take_over` turns a WSGI request into a `WebSocket`: it checks the handshake (section 4.2), takes
the socket away from the HTTP server and answers 101. From then on the connection is an object of a
few hundred bytes; the request's greenlet, buffers and environ are freed. Example::

    class Echo:
        def on_open(self, ws): ...
        def on_message_in_loop(self, ws, message): return False  # on_message handles all of them
        def on_message(self, ws, message): ws.write(text_frame(message))
        def on_close(self, ws, code, reason): print("closed with", code)

    def application(environ, start_response):
        try:
            take_over(environ, Echo())
            return []
        except DomainError as error:
            return problems.refuse(error, start_response)

The rules of this file:

*Reading.* A readable socket is read once per turn, into a buffer that all share; `ws_frames.Parser`
keeps an incomplete message, within its limits. A message goes to `Handler.on_message_in_loop`,
which must not block and may say that it is done. Otherwise it goes to the inbox, which a worker
greenlet empties through `Handler.on_message`, one message after the other; the greenlet exists only
while there is work. While the inbox is full, reading pauses; while more than the high watermark
waits for the client to read, no message is handled (backpressure). A token bucket limits the rate
of messages.

*Writing.* `write` sends a frame now. `enqueue` sends it when the loop flushes this socket, together
with all others for it, in one `send`: broadcasts use it. `answer` does so in the loop's next turn,
whatever else waits to be flushed. What the kernel does not accept waits in the `SendQueue`, the
rest of a partly sent frame first, until the socket is writable. A waiting frame is either in
`_pending` (not tried yet) or in `_queue` (tried), never in both: there is one writer, and the order
is kept. A body larger than the send queue is sent in pieces, as the client reads (`stream`).

*Bounds.* A send queue that exceeds `max_queue_bytes`, or from which the client reads too slowly for
`max_queue_seconds`, is dropped, and the connection closed with TRY_AGAIN_LATER: the client can
resume by version, and what it missed is cheaper to read again than to keep. The first frame always
fits, whatever its size: an answer larger than the bound is slow, not impossible.

*Faults.* An exception in a callback ends its own connection only; see `loop`.

*End.* `Handler.on_close` runs exactly once, after CLOSED, in a greenlet, and never while
`on_message` runs for the same connection. `CLOSE_TRANSITIONS` is the state table.
"""

import _socket
import logging
import socket as _constants
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final, Protocol, cast

from ordertrack.server import loop, ws_frames
from ordertrack.server.admission import admission, no_capacity
from ordertrack.server.counters import counters
from ordertrack.server.heartbeat import Deadlines, Heartbeat, take_due
from ordertrack.server.http_request import TAKE_OVER
from ordertrack.server.loop import event_loop, monotonic
from ordertrack.server.send_queue import Frames, SendQueue, joined, longer, parts
from ordertrack.server.ws_frames import CloseCode, close_frame
from ordertrack.server.ws_handshake import check_handshake

log = logging.getLogger(__name__)


class CloseState(Enum):
    """Where the closing handshake (RFC 6455, 7.1) stands; only in OPEN are messages exchanged."""

    OPEN = auto()
    CLOSING = auto()  # our close frame is queued or sent, and the peer's is awaited
    DISCARDING = auto()  # the same, but whatever the peer sends is thrown away
    ANSWERING = auto()  # the peer's close frame has arrived, and ours is still to be sent (5.5.1)
    CLOSED = auto()  # the descriptor is gone


class CloseEvent(Enum):
    CLOSE = auto()  # the application calls `close`
    FAULT = auto()  # the peer broke a rule, exceeds its rate limit, or reads too slowly
    PEER_CLOSE = auto()  # the peer's close frame has arrived
    QUEUE_SENT = auto()  # everything queued has been sent, our close frame last
    LOST = auto()  # end of stream, socket error, `abort`, or CLOSE_SECONDS are over


# The state table. An event that is not listed changes nothing in that state.
CLOSE_TRANSITIONS: Final[dict[CloseState, dict[CloseEvent, CloseState]]] = {
    CloseState.OPEN: {
        CloseEvent.CLOSE: CloseState.CLOSING,
        CloseEvent.FAULT: CloseState.DISCARDING,
        CloseEvent.PEER_CLOSE: CloseState.ANSWERING,
        CloseEvent.LOST: CloseState.CLOSED,
    },
    CloseState.CLOSING: {
        CloseEvent.FAULT: CloseState.DISCARDING,
        CloseEvent.PEER_CLOSE: CloseState.ANSWERING,
        CloseEvent.LOST: CloseState.CLOSED,
    },
    CloseState.DISCARDING: {CloseEvent.LOST: CloseState.CLOSED},
    CloseState.ANSWERING: {
        CloseEvent.QUEUE_SENT: CloseState.CLOSED,
        CloseEvent.LOST: CloseState.CLOSED,
    },
    CloseState.CLOSED: {},
}

_OPEN: Final = CloseState.OPEN  # a global name, because it is compared for each frame

# How long a peer may take to answer a close frame before the descriptor is closed anyway. Closing
# connections keep no queue, so this only bounds descriptors.
CLOSE_SECONDS: Final = 3.0

# What a ping, a pong or a fragment takes from a client's token bucket; a message takes 1. Each
# costs us about a tenth of a message's work.
CONTROL_COST: Final = 0.1

# Bytes of an answer that does not wait for the loop's next turn.
LARGE_ANSWER: Final = 4_096

# `send` calls for one writable socket before the other sockets' turn.
SENDS_IN_A_ROW: Final = 4

# The defaults of Engine.IO, so that clients of both kinds are treated alike.
PING_INTERVAL: Final = 25.0
PING_TIMEOUT: Final = 20.0

Message = str | bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may use. Shared by all connections of a kind."""

    # Summed over the fragments of a message; more closes with MESSAGE_TOO_BIG.
    max_message_bytes: int = 65_536

    # What may wait for a client that does not read, and for how long if it reads fewer bytes a
    # second than any connection that is still of use; more closes with TRY_AGAIN_LATER.
    max_queue_bytes: int = 1_000_000
    max_queue_seconds: float = 20.0
    min_bytes_per_second: int = 8_192

    # The rate limit, a token bucket. A burst is enough to subscribe to 200 orders one by one,
    # twice; the rate is more than a person can cause. More closes with POLICY_VIOLATION. Pings,
    # pongs and fragments count, too, at `CONTROL_COST`.
    message_burst: int = 400
    messages_per_second: float = 50.0

    # Messages that wait for a busy worker before reading pauses: with messages of the largest size
    # they hold a megabyte.
    max_inbox: int = 16

    # Connections of the process; another one is answered 503.
    max_connections: int = 10_000

    # Socket.IO sessions that have not authenticated yet, beside those connections: in all, and from
    # one address. Such a session needs no token, so the oldest is evicted for a new one. An honest
    # client is pending for one round trip: the first bound lets all `max_connections` reconnect at
    # once, the second a thousand from behind one proxy.
    max_pending_sessions: int = 10_000
    max_pending_sessions_per_address: int = 1_000

    @property
    def max_answer_bytes(self) -> int:
        """What one answer should hold, so that the next frames fit while it is being read."""
        return self.max_queue_bytes // 2

    @property
    def high_watermark(self) -> int:
        """With more bytes than this waiting for a client, none of its messages is handled."""
        return self.max_queue_bytes // 4

    def take_tokens(self, full_at: float, tokens: float = 1.0) -> float | None:
        """Take tokens from a client's bucket; None if it holds fewer: the rate limit is exceeded.

        The bucket is one number, the time at which it will be full again; 0 is a full bucket.
        Returns the time for the bucket without these tokens.
        """
        now = monotonic()
        full_at = max(full_at, now) + tokens / self.messages_per_second
        return full_at if full_at - now <= self.message_burst / self.messages_per_second else None


DEFAULT_LIMITS: Final = Limits()


class Handler(Protocol):
    """The callbacks of a connection. Implementations keep the connection's state themselves."""

    def on_open(self, ws: "WebSocket") -> None:
        """The connection is open; frames may be written. Runs in the handshake's greenlet."""

    def on_message_in_loop(self, ws: "WebSocket", message: Message) -> bool:
        """True if the message has been dealt with. Must neither block nor wait."""

    def on_message(self, ws: "WebSocket", message: Message) -> None:
        """Handle one message; the connection's next one waits. May block cooperatively."""

    def on_close(self, ws: "WebSocket", code: int, reason: str) -> None:
        """The connection is closed. `code` is what was received or sent, else ABNORMAL.

        Called exactly once, in a greenlet.
        """


class WebSocket:
    """One connection. Every method returns at once and none raises; the module has the rules."""

    __slots__ = (
        "_bucket_full_at",
        "_has_worker",
        "_heard",
        "_inbox",
        "_parser",
        "_paused",
        "_pending",
        "_queue",
        "_socket",
        "_source",
        "close_code",
        "close_reason",
        "descriptor",
        "handler",
        "limits",
        "state",
    )

    def __init__(self, raw: _socket.socket, handler: Handler, limits: Limits) -> None:
        self.handler: Handler | None = handler
        self.limits = limits
        self.state = _OPEN
        self.close_code: int = CloseCode.ABNORMAL
        self.close_reason = ""
        self.descriptor = raw.fileno()
        self._socket = raw
        self._parser: ws_frames.Parser | None = ws_frames.Parser(limits.max_message_bytes)
        self._inbox: deque[Message] | None = None
        self._has_worker = False  # a greenlet is emptying the inbox
        self._paused = False  # not read, because the inbox is full
        self._heard = True
        self._pending: Frames | None = None  # frames not tried yet
        self._queue: SendQueue | None = None  # frames that the kernel did not accept
        self._source: Callable[[], bool] | None = None  # see `stream`
        self._bucket_full_at = 0.0  # see Limits.take_tokens

    @property
    def alive(self) -> bool:
        return self.state is _OPEN

    @property
    def heard(self) -> bool:
        """Whether the client has sent anything since the last ping; true while reading pauses."""
        return self._heard or self._paused

    @heard.setter
    def heard(self, value: bool) -> None:
        self._heard = value

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait here for the client to read."""
        return self._queue.size if self._queue is not None else 0

    # Writing --------------------------------------------------------------------------------------

    def write(self, frame: bytes) -> None:
        """Send a whole encoded frame now, behind everything written before it."""
        if self.state is _OPEN:
            self._write(frame)

    def enqueue(self, frame: bytes) -> None:
        """Send a frame soon, in one `send` with the others of this socket."""
        if self.state is not _OPEN:
            return
        counters.frames_out += 1
        pending = self._pending
        if pending is not None:
            self._pending = longer(pending, frame)
        elif self._queue is not None:
            self._append(frame)
        else:
            self._pending = frame
            event_loop.flush_soon(self)

    def answer(self, frame: bytes) -> None:
        """Send a frame in the loop's next turn, before broadcasts that wait for other sockets.

        So the answers to several clients leave one right after the other, which costs less than one
        now and then: an eighth of what a connecting client takes. A large one leaves at once, so
        that no more messages are handled until the client reads it.
        """
        if len(frame) > LARGE_ANSWER:
            self.write(frame)
        elif self.state is _OPEN and self._pending is None and self._queue is None:
            counters.frames_out += 1
            self._pending = frame
            event_loop.flush_first(self)
        else:
            self.enqueue(frame)

    def stream(self, source: Callable[[], bool]) -> None:
        """Call `source` in a greenlet whenever nothing waits for the client, until it says False.

        What it sends may thus be of any length and takes no more memory than one call's frames.
        """
        self._source = source
        self._start_worker()

    def _write(self, frame: bytes) -> None:
        counters.frames_out += 1
        if self._queue is not None:
            self._append(frame)
        elif self._pending is not None:
            self._pending = longer(self._pending, frame)
            self.flush()
        else:
            self._send(frame)

    def flush(self) -> None:
        """Send the pending frames, in one `send`."""
        pending = self._pending
        if pending is None:
            return
        self._pending = None
        self._send(pending)

    def _send(self, frames: Frames) -> None:
        """Try to send the frames at once; what the kernel does not accept is queued."""
        counters.sends += 1
        data = joined(frames)
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._release()
            return
        if sent == len(data):
            return
        now = monotonic()
        queue = self._queue = SendQueue(now)
        for frame in parts(frames):
            queue.append(frame, now)
        queue.sent(sent)
        _slow.add(self)
        self._watch()

    def _append(self, frame: bytes) -> None:
        """Queue a frame behind those that wait already."""
        queue = self._queue
        assert queue is not None
        if self.state is _OPEN and queue.size + len(frame) > self.limits.max_queue_bytes:
            self._close_slow("queue full")
        else:
            queue.append(frame, monotonic())

    def on_writable(self) -> None:
        """Called by the loop: the kernel accepts bytes again."""
        queue = self._queue
        if queue is None:
            return
        for _ in range(SENDS_IN_A_ROW):
            data = queue.head()
            counters.sends += 1
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                return
            except OSError:
                self._release()
                return
            queue.sent(sent)
            if not queue.frames:
                self._queue = None
                _slow.discard(self)
                self._watch()
                if self.state is not _OPEN:
                    self._on_queue_sent()
            if self._has_work():
                self._start_worker()
            if self._queue is None or sent < len(data):
                return

    def check_pace(self, now: float) -> None:
        """Called by the sweep while frames are queued."""
        queue, limits = self._queue, self.limits
        if (
            self.state is _OPEN
            and queue is not None
            and queue.is_stuck(now, limits.max_queue_seconds, limits.min_bytes_per_second)
        ):
            self._close_slow("reading too slowly")

    def _close_slow(self, reason: str) -> None:
        """Drop the queue; the peer gets only the rest of a partly sent frame, and the reason."""
        counters.slow_closes += 1
        queue = self._queue
        assert queue is not None
        rest = queue.discard()
        if rest is not None:
            queue.append(rest, monotonic())
        self._advance(CloseEvent.FAULT, CloseCode.TRY_AGAIN_LATER, reason)

    def _watch(self) -> None:
        """Tell the loop which events this socket waits for now."""
        if self.state is not CloseState.CLOSED:
            event_loop.watch(self, read=not self._paused, write=self._queue is not None)

    # Closing (RFC 6455, 7) ------------------------------------------------------------------------

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Send a close frame behind what is queued, then close when the peer has answered.

        It has `CLOSE_SECONDS` for that. Nothing else is sent from now on.
        """
        self._advance(CloseEvent.CLOSE, code, reason)

    def abort(self) -> None:
        """Close at once, without a close frame and without sending what is queued."""
        self._release(reset=True)

    def expire(self) -> None:
        """Called by the sweep: the peer has not answered the close frame in time."""
        self._release()

    def _advance(self, event: CloseEvent, code: int, reason: str) -> None:
        """Take a transition of the closing handshake; the close frame is sent on leaving OPEN."""
        was_open = self.state is _OPEN
        state = CLOSE_TRANSITIONS[self.state].get(event)
        if state is None:
            return
        self.state = state
        if state is not CloseState.CLOSING:
            self._parser = None  # nothing more is read: discarded (1.4)
        if was_open:
            self.close_code, self.close_reason = code, reason
            self._inbox = self._source = None
            _closing.append((monotonic() + CLOSE_SECONDS, self))
            if self._paused:
                self._paused = False
                self._watch()
            # An answer repeats the peer's code (5.5.1), not its reason.
            self._write(close_frame(code, "" if event is CloseEvent.PEER_CLOSE else reason))
        if self._queue is None:
            self._on_queue_sent()

    def _on_queue_sent(self) -> None:
        """Our close frame has been sent."""
        if self.state is CloseState.DISCARDING:
            # Closing with unread input would send a reset, which may overtake the close frame.
            try:
                self._socket.shutdown(_constants.SHUT_WR)
            except OSError:
                self._release()
        else:
            self._release(CloseEvent.QUEUE_SENT)

    def _release(self, event: CloseEvent = CloseEvent.LOST, *, reset: bool = False) -> None:
        """Close the descriptor and free all that is kept for the peer, if the event leads there."""
        state = CLOSE_TRANSITIONS[self.state].get(event)
        if state is None:
            return
        self.state = state
        _slow.discard(self)
        event_loop.forget(self)
        if self._queue is not None:
            self._queue.discard()
            reset = True  # else the kernel would keep its own queue for minutes
        self._pending = self._queue = self._parser = self._inbox = self._source = None
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

    # Reading --------------------------------------------------------------------------------------

    def on_readable(self) -> None:
        """Called by the loop: there is something to read, or the end of the stream."""
        try:
            count = self._socket.recv_into(event_loop.buffer)
        except BlockingIOError:
            return
        except OSError:
            self._release()
            return
        if count == 0:
            self._release()
            return
        self.heard = True
        if self._parser is not None:
            self.feed(bytes(event_loop.view[:count]))

    def feed(self, data: bytes) -> None:
        """Take bytes that the peer sent."""
        if self._parser is not None:
            self._parser.feed(data)
            self._parse()

    def _parse(self) -> None:
        """Handle what was fed, frame by frame, until no whole frame is left or reading pauses."""
        while not self._paused and (parser := self._parser) is not None:
            event = parser.next()
            if event is None:
                if parser.error is not None:
                    self._advance(CloseEvent.FAULT, parser.error.code, parser.error.reason)
                return
            opcode, payload = event
            whole = opcode in {ws_frames.TEXT, ws_frames.BINARY}
            full_at = self.limits.take_tokens(self._bucket_full_at, 1.0 if whole else CONTROL_COST)
            if full_at is None:
                self._advance(CloseEvent.FAULT, CloseCode.POLICY_VIOLATION, "too many messages")
                return
            self._bucket_full_at = full_at
            if whole:
                self._deliver(payload)
            elif opcode == ws_frames.PING:
                assert isinstance(payload, bytes)
                # RFC 6455, 5.5.3; enqueued, so that several pongs leave together.
                self.enqueue(ws_frames.encode(ws_frames.PONG, payload))
            elif opcode == ws_frames.CLOSE:
                assert isinstance(payload, bytes)
                try:
                    self._advance(CloseEvent.PEER_CLOSE, *ws_frames.read_close(payload))
                except ws_frames.ProtocolError as error:
                    self._advance(CloseEvent.PEER_CLOSE, error.code, error.reason)
                return

    def _deliver(self, message: Message) -> None:
        handler = self.handler
        if self.state is not _OPEN or handler is None:
            return
        counters.messages_in += 1
        if handler.on_message_in_loop(self, message):
            return
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(message)
        if len(self._inbox) >= self.limits.max_inbox and not self._paused:
            self._paused = True
            self._watch()
        self._start_worker()

    # The worker -----------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        if not self._has_worker:
            self._has_worker = True
            loop.spawn(self._work)

    def _has_work(self) -> bool:
        """Whether there is something to do, and the client reads fast enough for its answers."""
        if self.state is not _OPEN or self.handler is None:
            return False
        if self._source is not None:
            return self._queue is None
        return bool(self._inbox) and self.queued_bytes <= self.limits.high_watermark

    def _work(self) -> None:
        """The connection's greenlet while there is something to do."""
        try:
            while self._has_work():
                try:
                    if self._source is not None:
                        self._send_more(self._source)
                    else:
                        self._handle_next()
                except loop.FAILURES:
                    log.exception("A message handler failed")
                    self.close(CloseCode.INTERNAL_ERROR, "internal error")
        finally:
            self._has_worker = False
            self._inbox = self._inbox or None
        if self.state is CloseState.CLOSED:
            handler, self.handler = self.handler, None
            if handler is not None:
                handler.on_close(self, self.close_code, self.close_reason)

    def _send_more(self, source: Callable[[], bool]) -> None:
        if not source() and self._source is source:
            self._source = None
        self.flush()

    def _handle_next(self) -> None:
        assert self._inbox and self.handler is not None
        message = self._inbox.popleft()
        if self._paused and len(self._inbox) <= self.limits.max_inbox // 2:
            self._paused = False
            self._parse()  # what was read before
            self._watch()
        self.handler.on_message(self, message)


# All connections ----------------------------------------------------------------------------------

_slow: set[WebSocket] = set()  # those with a send queue
_closing: Deadlines[WebSocket] = deque()  # those that wait for the peer's close frame


def take_over(
    environ: Mapping[str, Any],
    handler: Handler,
    *,
    subprotocol: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    heartbeat: bool = True,
    accept_key: bytes | None = None,
) -> WebSocket:
    """Turn the request in `environ` into a WebSocket; afterwards WSGI must answer nothing.

    With `heartbeat`, the connection is kept alive by protocol pings. `accept_key` is for a caller
    that has checked the handshake already. Raises what `check_handshake` raises, and `Unavailable`
    at the limit of connections, while an HTTP answer is still possible; `RuntimeError` where the
    request is not served by `server.server`.
    """
    if accept_key is None:
        accept_key = check_handshake(environ)
    if admission.is_draining or (
        counters.open >= limits.max_connections and not admission.evict(websocket=True)
    ):
        raise no_capacity()
    release_socket = environ.get(TAKE_OVER)
    if release_socket is None:
        raise RuntimeError("WebSockets need OrderTrack's own server, ordertrack.server")
    event_loop.start()
    raw, early = release_socket()
    # It has the listening socket's options (`server.bind`): no delay, and a bounded send buffer.
    try:
        ws = WebSocket(raw, handler, limits)
        event_loop.add(ws)
    except BaseException:
        raw.close()
        raise
    counters.open += 1
    counters.opened += 1
    protocol = f"Sec-WebSocket-Protocol: {subprotocol}\r\n".encode() if subprotocol else b""
    # It leaves together with what the handler writes first.
    ws._pending = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key + b"\r\n" + protocol + b"\r\n"
    )
    if heartbeat:
        _pings.add(ws)
    try:
        handler.on_open(ws)
        if early:
            ws.feed(early)
        ws.flush()
    except Exception as error:  # noqa: BLE001 (logged there; an HTTP answer is no longer possible)
        event_loop.abort_failed(ws, error)
    return ws


def read_now(ws: WebSocket) -> None:
    """Read what has arrived, before the loop would."""
    event_loop.guard(ws, ws.on_readable)


def close_all(code: int, reason: str, seconds: float) -> None:
    """Refuse new connections and close the open ones, evenly spread over `seconds`.

    Clients that are told to reconnect then do not all do so at once. Returns when every connection
    has ended or been given `CLOSE_SECONDS` for it.
    """
    admission.is_draining = True
    for ws in loop.spread(cast(list[WebSocket], list(event_loop.sockets.values())), seconds):
        event_loop.guard(ws, ws.close, code, reason)
    end = monotonic() + CLOSE_SECONDS
    while event_loop.sockets and monotonic() < end:
        loop.sleep(0.02)


def _expire_closing(now: float) -> None:
    for _, ws in take_due(_closing, now, loop.pause):
        event_loop.guard(ws, ws.expire)


def _close_slow(now: float) -> None:
    for ws in list(_slow):
        event_loop.guard(ws, ws.check_pace, now)


def _ping(ws: WebSocket) -> None:
    ws.enqueue(ws_frames.encode(ws_frames.PING, b""))


# For connections that have no pings of their own, as Engine.IO sessions do.
_pings = Heartbeat(
    PING_INTERVAL, PING_TIMEOUT, ping=_ping, expire=WebSocket.abort, pause=loop.pause
)

loop.every_second(_expire_closing)
loop.every_second(_close_slow)
loop.every(_pings.period, _pings.sweep)
