"""Logs: one JSON object per line on standard error, without secrets, whatever is in a message.

Fields: ``time`` (UTC), ``level``, ``logger``, ``message``; ``request_id`` where the record belongs
to a request; what a caller adds with `fields`; ``traceback`` for an exception. Everything is ASCII
and control characters are escaped, so a client cannot forge a line or move a terminal's cursor.

Secrets are kept out three times. Nothing of ours logs a header, a query string or a body. What
libraries put into messages and tracebacks is searched for what looks like a secret (`redact`). And
what is known to be one, of this server (`set_up`) or of the present request (`hide`), is replaced
wherever it turns up.
"""

import io
import json
import logging
import re
import sys
import traceback
from collections.abc import Iterable
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

HIDDEN: Final = "[hidden]"

# A traceback longer than this is shown with its middle left out: recursion makes huge ones.
MAX_TEXT: Final = 16_384

# Shorter ones are no secrets that this server would accept, and replacing every "a" of a traceback
# because somebody tried the password "a" would leave nothing to read.
_MIN_HIDDEN: Final = 6

_NAMED: Final = (
    r"((?:password|passwd|pwd|secret|token|csrf|cookie|authorization)\w{0,40}"
    r"(?:['\"]\s?:|\s?=|:)\s?)(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&)}\]]+)"
)

# What is a secret by its own shape, or by the name before it. `input_value` is how pydantic quotes
# what it refuses. Each pattern looks at a character once: a client may have written the text.
_SHAPES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"eyJ[\w.-]{8,}", HIDDEN),
        (r"\$argon2[\w$=,+/.-]*", HIDDEN),
        (r"\b(bearer[. ]|basic )[\w.~+/=-]+", rf"\1{HIDDEN}"),
        (r"(://[^/\s:@]*:)[^/\s@]+@", rf"\1{HIDDEN}@"),
        (r"\b(input_value=)[^\n]*", rf"\1{HIDDEN}"),
        (r"\b(cookie:)[^\n]*", rf"\1 {HIDDEN}"),
        (_NAMED, rf"\1{HIDDEN}"),
    )
)


class Request:
    """What the log knows of a request: its id, the template of its path, who sent it."""

    __slots__ = ("hidden", "id", "route", "user_id")

    def __init__(self, id: str) -> None:
        self.id = id
        self.route: str | None = None
        self.user_id: int | None = None
        self.hidden: tuple[str, ...] = ()


_request: ContextVar[Request | None] = ContextVar("request", default=None)


def enter(request: Request) -> Token[Request | None]:
    """From here on, records of this greenlet belong to *request*."""
    return _request.set(request)


def leave(token: Token[Request | None]) -> None:
    _request.reset(token)


def request_id() -> str | None:
    request = _request.get()
    return request.id if request is not None else None


def note_user(user_id: int) -> None:
    """The present request is this user's."""
    request = _request.get()
    if request is not None:
        request.user_id = user_id


def note_route(template: str) -> None:
    """The path of the present request is one of these."""
    request = _request.get()
    if request is not None:
        request.route = template


def hide(secret: str) -> None:
    """Keep *secret*, which came with the present request, out of whatever is logged for it."""
    request = _request.get()
    if request is not None and len(secret) >= _MIN_HIDDEN:
        request.hidden += (secret,)


def fields(**values: Any) -> dict[str, Any]:
    """For ``log.info("…", extra=fields(status=200))``: members of the record's JSON object."""
    return {"fields": values}


def redact(text: str, known: Iterable[str] = ()) -> str:
    """*text* without the *known* secrets and without whatever looks like one."""
    for secret in known:
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


# Made once: json.dumps makes one for each call.
_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON. *secrets* are never shown."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = tuple(secret for secret in secrets if len(secret) >= _MIN_HIDDEN)

    def format(self, record: logging.LogRecord) -> str:
        request = _request.get()
        known = self._secrets + (request.hidden if request is not None else ())
        extra = getattr(record, "fields", None)
        shown: dict[str, Any] = {
            "time": _rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            # Records with fields are our own, and say nothing but constants.
            "message": record.getMessage()
            if extra is not None
            else _text(record.getMessage(), known),
        }
        if request is not None:
            shown["request_id"] = request.id
        if extra is not None:
            shown.update(extra)
        if record.exc_info and record.exc_info[1] is not None:
            lines = traceback.format_exception(record.exc_info[1])
            shown["traceback"] = _text("".join(lines), known)
        if record.stack_info:
            shown["stack"] = _text(record.stack_info, known)
        # DEL is the one control character that JSON leaves as it is.
        return _encode(shown).replace("\x7f", "\\u007f")


def _text(text: str, known: Iterable[str]) -> str:
    text = redact(text, known)
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - MAX_TEXT} characters left out …]\n{text[-half:]}"


_second: tuple[int, str] = (-1, "")


def _rfc3339(moment: float) -> str:
    """With milliseconds. Formatting a date costs more than the rest of a short record."""
    global _second  # noqa: PLW0603 (a cache of one)
    second = int(moment)
    if _second[0] != second:
        _second = (second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    return f"{_second[1]}.{int(moment % 1 * 1000):03d}Z"


class Stderr(io.TextIOBase):
    """Standard error for everybody who is not a logger: each line written becomes a record.

    Eventlet prints what nobody caught in the loop; libraries print what they like.
    """

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner
        self._begun = ""  # of a line
        self._busy = False

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        # When the log itself cannot be written, that is printed, too: once is enough.
        if not self._busy:
            self._busy = True
            try:
                for line in filter(str.strip, lines):
                    logging.getLogger("stderr").warning("%s", line)
            finally:
                self._busy = False
        return len(text)

    def fileno(self) -> int:
        return self.inner.fileno()

    def flush(self) -> None:
        self.inner.flush()


def set_up(level: str, secrets: Iterable[str] = ()) -> None:
    """Log to standard error from *level* on: our records, libraries', warnings, last words."""
    stderr = sys.stderr.inner if isinstance(sys.stderr, Stderr) else sys.stderr
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(JsonFormatter(secrets))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # What our lines do not show need not be found out: it is a third of the cost of a record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # the documented switch for callers
    # It says at INFO what it has migrated, and that it is PostgreSQL, at every start.
    logging.getLogger("alembic").setLevel(max(logging.WARNING, logging.getLogger().level))
    sys.stderr = Stderr(stderr)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("ordertrack").critical("uncaught", exc_info=(kind, error, trace))


def _unraisable(event: "sys.UnraisableHookArgs") -> None:
    if event.exc_value is not None:
        logging.getLogger("ordertrack").error(
            "ignored in %r", event.object, exc_info=event.exc_value
        )
