"""What waits to be sent on a socket: frames that were not tried yet, or not accepted by the kernel.

Those not tried yet are `Frames`: one frame, or those before it and one more. Sockets for which the
same frames wait have the same object, so that a broadcast costs each of them a reference, and all
of them one join. The others are in the `SendQueue` of their socket.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from ordertrack.server.counters import counters

# Frames are joined up to this size per `send`: more would only copy bytes that are not accepted.
JOIN_BYTES: Final = 65_536


Frames = bytes | tuple["Frames", bytes]


@dataclass(slots=True)
class _Last:
    """The last results of `longer` and `joined`, which the next call is likely to want, too."""

    longer: tuple[Frames, bytes] = (b"", b"")
    joined: tuple[Frames, bytes] = (b"", b"")  # the frames and their join


_last = _Last()


def longer(frames: Frames, frame: bytes) -> Frames:
    """The frames and one more: the same object if called with the same arguments as before."""
    found = _last.longer
    if found[1] is not frame or found[0] is not frames:
        found = _last.longer = (frames, frame)
    return found


def joined(frames: Frames) -> bytes:
    """The bytes of all frames: the same object if called with the same frames as before."""
    if type(frames) is bytes:
        return frames
    if _last.joined[0] is not frames:
        _last.joined = (frames, b"".join(parts(frames)))
    return _last.joined[1]


def parts(frames: Frames) -> list[bytes]:
    """The frames one by one."""
    found = []
    while type(frames) is tuple:
        frames, frame = frames
        found.append(frame)
    assert type(frames) is bytes
    found.append(frames)
    found.reverse()
    return found


class SendQueue:
    """Frames in the order in which they are sent, each with the time when it was queued."""

    __slots__ = ("_since", "_taken", "frames", "size", "times")

    def __init__(self, now: float) -> None:
        self.frames: deque[bytes | memoryview] = deque()
        self.times: deque[float] = deque()
        self.size = 0
        self._since = now  # the start of the period in which the reading rate is measured
        self._taken = 0  # bytes accepted in it

    def append(self, frame: bytes | memoryview, now: float) -> None:
        self.frames.append(frame)
        self.times.append(now)
        self.size += len(frame)
        counters.queued_bytes += len(frame)

    def head(self) -> bytes | memoryview:
        """The next bytes to send: at least one frame, several small ones joined."""
        waiting = self.frames
        if len(waiting) == 1 or len(waiting[0]) >= JOIN_BYTES:
            return waiting[0]
        joined, size = [], 0
        for frame in waiting:
            size += len(frame)
            joined.append(frame)
            if size >= JOIN_BYTES:
                break
        return b"".join(joined)

    def sent(self, count: int) -> None:
        """Forget the first `count` bytes; a partly sent frame stays as its rest."""
        self.size -= count
        self._taken += count
        counters.queued_bytes -= count
        while count:
            frame = self.frames[0]
            if count < len(frame):
                self.frames[0] = memoryview(frame)[count:]
                return
            count -= len(frame)
            self.frames.popleft()
            self.times.popleft()

    def is_stuck(self, now: float, seconds: float, rate: float) -> bool:
        """Whether the oldest frame has waited more than *seconds* for a client that hardly reads.

        That is one that read less than *rate* bytes a second meanwhile. Age alone says little: one
        large frame may take a steady reader longer than that. Checked about once a second, a stuck
        client is detected before twice *seconds* have passed.
        """
        watched = now - self._since
        if watched < seconds:
            return False
        if self._taken >= rate * watched:
            self._since, self._taken = now, 0
            return False
        return bool(self.times) and now - self.times[0] >= seconds

    def discard(self) -> bytes | memoryview | None:
        """Empty the queue; returns the rest of a partly sent frame, which the peer must get."""
        counters.queued_bytes -= self.size
        head = self.frames[0] if self.frames else None
        self.frames.clear()
        self.times.clear()
        self.size = 0
        return head if isinstance(head, memoryview) else None
