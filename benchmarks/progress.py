"""A progress bar on standard error: a moving line on a terminal, a line per turn elsewhere."""

import shutil
import sys
import time
from types import TracebackType
from typing import Self

_WIDTH = 24


class Progress:
    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._moving = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._moving:
            print(file=sys.stderr)

    def begin(self, what: str) -> None:
        """Show that `what` is under way."""
        if self._moving:
            self._show(what)

    def advance(self, what: str) -> None:
        """Show that `what` is done."""
        self._done += 1
        self._show(what)

    def _show(self, what: str) -> None:
        elapsed = time.monotonic() - self._began
        left = elapsed / self._done * (self._total - self._done) if self._done else 0
        filled = _WIDTH * self._done // self._total
        line = (
            f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {self._done}/{self._total}"
            f" {_clock(elapsed)}{f', {_clock(left)} left' if left else ''}  {what}"
        )
        if self._moving:
            columns = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:columns]:<{columns}}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
