"""Counters of this process's sockets, for metrics."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Plain numbers, read when metrics are collected. None is ever reset."""

    open: int = 0
    opened: int = 0
    messages_in: int = 0
    frames_out: int = 0
    sends: int = 0
    queued_bytes: int = 0
    slow_closes: int = 0
    closed: dict[int, int] = field(default_factory=dict)  # by close code
    refused: dict[str, int] = field(default_factory=dict)  # handshakes, by problem code

    def refuse(self, code: str) -> None:
        self.refused[code] = self.refused.get(code, 0) + 1


counters = Counters()
