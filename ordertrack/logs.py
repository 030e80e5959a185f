"""Writes the log to standard error: JSON, one object per line; on a terminal, readable lines.

Members: ``time`` (UTC), ``level``, ``logger``, ``message``; ``request_id`` where the record belongs
to a request; what a caller adds with `fields`; ``traceback`` for an exception. Control characters
are escaped in both forms, so a client cannot forge a line or move a terminal's cursor.

Secrets are kept out in three ways. Our own code logs no header, query string or body. Messages and
tracebacks, which may quote anything, are searched for what looks like a secret (`redact`). Known
secrets, of this server (`set_up`) or of the present request (`hide`), are replaced in every text.
"""

import io
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

HIDDEN: Final = "[hidden]"

# A traceback longer than this is shown with its middle left out: recursion makes huge ones.
MAX_TEXT: Final = 16_384

# A shorter text is no secret that this server accepts. Replacing it would make the log unreadable:
# every "a" of a traceback, because a client tried the password "a".
_MIN_HIDDEN: Final = 6

_NAMED: Final = (
    r"((?:password|passwd|pwd|secret|token|csrf|cookie|authorization)\w{0,40}"
    r"(?:['\"]\s?:|\s?=|:)\s?)(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&)}\]]+)"
)

# What is a secret by its own shape, or by the name before it. `input_value` is how pydantic quotes
# the input it refuses. Each pattern takes linear time, because a client may have written the text.
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
    """What the log says about a request: its id, the template of its path, the user's id."""

    __slots__ = ("hidden", "id", "route", "user_id")

    def __init__(self, id: str) -> None:
        self.id = id
        self.route: str | None = None
        self.user_id: int | None = None
        self.hidden: tuple[str, ...] = ()


_request: ContextVar[Request | None] = ContextVar("request", default=None)


def enter(request: Request) -> Token[Request | None]:
    """Make *request* the present request: records of this greenlet carry its id until `leave`."""
    return _request.set(request)


def leave(token: Token[Request | None]) -> None:
    _request.reset(token)


def request_id() -> str | None:
    request = _request.get()
    return request.id if request is not None else None


def note_user(user_id: int) -> None:
    """Say whose the present request is."""
    request = _request.get()
    if request is not None:
        request.user_id = user_id


def note_route(template: str) -> None:
    """Say which route answers the present request, as ``/api/orders/<id:order_id>``."""
    request = _request.get()
    if request is not None:
        request.route = template


def hide(secret: str) -> None:
    """Keep *secret*, which came with the present request, out of the records of that request."""
    request = _request.get()
    if request is not None and len(secret) >= _MIN_HIDDEN:
        request.hidden += (secret,)


def fields(**values: Any) -> dict[str, Any]:
    """For ``log.info("…", extra=fields(status=200))``: members of the record's JSON object."""
    return {"fields": values}


def redact(text: str, known: Iterable[str] = ()) -> str:
    """*text* without the *known* secrets and without text that looks like one."""
    for secret in known:
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


# Made once: json.dumps makes one for each call.
_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON in ASCII. *secrets* are never shown."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = tuple(secret for secret in secrets if len(secret) >= _MIN_HIDDEN)

    def format(self, record: logging.LogRecord) -> str:
        # DEL is the one control character that JSON leaves as it is.
        return _encode(self._members(record)).replace("\x7f", "\\u007f")

    def _members(self, record: logging.LogRecord) -> dict[str, Any]:
        request = _request.get()
        known = self._secrets + (request.hidden if request is not None else ())
        extra = getattr(record, "fields", None)
        shown: dict[str, Any] = {
            "time": _rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            # Records with fields are our own, and their messages are constants.
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
        return shown


# SGR sequences of ECMA-48 by level: yellow, red, bold red; the last ends a colour.
_COLOURS: Final = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}
_NO_COLOUR: Final = "\x1b[0m"


class TerminalFormatter(JsonFormatter):
    """Formats a record for a person: local time, level, message, fields; tracebacks indented.

    Only lines of a traceback begin with a space, so a text in one cannot pass for another record.
    """

    def __init__(self, secrets: Iterable[str] = (), *, colour: bool = False) -> None:
        super().__init__(secrets)
        self._colours = _COLOURS if colour else {}

    def format(self, record: logging.LogRecord) -> str:
        shown = self._members(record)
        blocks = [shown.pop(name, "") for name in ("traceback", "stack")]
        words = [shown.pop("message")]
        del shown["time"], shown["level"], shown["logger"]
        words += [f"{name}={value}" for name, value in shown.items() if value is not None]
        level = f"{record.levelname:<8}"
        if record.levelname in self._colours:
            level = f"{self._colours[record.levelname]}{level}{_NO_COLOUR}"
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        lines = [f"{moment} {level} {_printable(' '.join(words))}"]
        lines += [f"    {_printable(line)}" for line in "\n".join(blocks).split("\n") if line]
        return "\n".join(lines)


def _printable(text: str) -> str:
    """*text* with every character escaped that a terminal does not show as itself."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _text(text: str, known: Iterable[str]) -> str:
    text = redact(text, known)
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - MAX_TEXT} characters left out …]\n{text[-half:]}"


_second: tuple[int, str] = (-1, "")


def _rfc3339(moment: float) -> str:
    """*moment* with milliseconds. Formatting the date is most of a short record's cost: cached."""
    global _second  # noqa: PLW0603 (a cache of one)
    second = int(moment)
    if _second[0] != second:
        _second = (second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    return f"{_second[1]}.{int(moment % 1 * 1000):03d}Z"


class Stderr(io.TextIOBase):
    """Takes the place of ``sys.stderr``: each line that is written becomes a record.

    Eventlet prints exceptions that no greenlet caught, and libraries print warnings.
    """

    def __init__(self, inner: TextIO) -> None:
        self.inner = inner
        self._begun = ""  # of a line
        self._busy = False

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        # `logging` prints here when it cannot write a record: that must not become a record again.
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
    """Log to standard error from *level* on: records, warnings, prints, uncaught exceptions.

    NO_COLOR in the environment (no-color.org) keeps a terminal's lines without colours.
    """
    if sys.stderr is None:  # closed before the start
        return
    stderr = sys.stderr.inner if isinstance(sys.stderr, Stderr) else sys.stderr
    handler = logging.StreamHandler(stderr)
    if stderr.isatty():
        handler.setFormatter(TerminalFormatter(secrets, colour=not os.environ.get("NO_COLOR")))
    else:
        handler.setFormatter(JsonFormatter(secrets))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # Thread, process and caller are not shown; finding them is a third of the cost of a record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # the documented switch for callers
    # At INFO it names the database's kind and each migration, at every start.
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
