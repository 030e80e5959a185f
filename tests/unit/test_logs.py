"""The log: JSON lines, readable lines on a terminal, and no secret in either."""

import io
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ordertrack import logs
from ordertrack.logs import HIDDEN, JsonFormatter, TerminalFormatter, redact

JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI3In0.c2lnbmF0dXJlLW9mLTMyLWJ5dGVzLXBsdXM"
PASSWORD = "correct horse battery staple"


class Sink:
    """A logger with our formatter, and what it wrote."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.stream = io.StringIO()
        self.log = logging.Logger("ordertrack.test")  # noqa: LOG001 (of its own)
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(formatter)
        self.log.addHandler(handler)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    def record(self) -> dict[str, object]:
        """The one record that was written."""
        [line] = self.text.splitlines()
        found: dict[str, object] = json.loads(line)
        return found


@pytest.fixture
def sink() -> Sink:
    return Sink(JsonFormatter(["the-secret-of-this-server"]))


@pytest.fixture
def terminal() -> Sink:
    return Sink(TerminalFormatter(["the-secret-of-this-server"]))


@pytest.fixture
def request_in_hand() -> Iterator[logs.Request]:
    request = logs.Request("req-1")
    token = logs.enter(request)
    yield request
    logs.leave(token)


def test_a_record_is_one_json_object_with_time_level_logger_and_message(sink: Sink) -> None:
    before = time.time()
    sink.log.warning("%d connections", 3)
    record = sink.record()
    assert record["level"] == "WARNING"
    assert record["logger"] == "ordertrack.test"
    assert record["message"] == "3 connections"
    assert "request_id" not in record
    moment = str(record["time"])
    assert moment.endswith("Z")
    assert moment[:19] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before))


def test_fields_and_the_request_id_become_members(
    sink: Sink, request_in_hand: logs.Request
) -> None:
    sink.log.info("request", extra=logs.fields(status=200, user_id=None))
    record = sink.record()
    assert record["request_id"] == "req-1"
    assert record["status"] == 200
    assert record["user_id"] is None


def test_records_after_a_request_have_no_request_id(sink: Sink) -> None:
    logs.leave(logs.enter(logs.Request("req-2")))
    sink.log.info("later")
    assert "request_id" not in sink.record()
    assert logs.request_id() is None


@pytest.mark.safety("log-lines")
@pytest.mark.parametrize(
    "nasty",
    ['"}\r\n{"level":"ERROR', "\x1b[2J\x1b]0;owned\x07", "\u2028\u2029\x85", "\x00\x7f\x9b31m"],
)
def test_control_characters_cannot_forge_a_line_or_reach_a_terminal(sink: Sink, nasty: str) -> None:
    sink.log.error("said %s", nasty)
    sink.log.info("request", extra=logs.fields(path=nasty))
    assert all(32 <= ord(character) < 127 for character in sink.text.replace("\n", ""))
    first, second = (json.loads(line) for line in sink.text.split("\n")[:2])
    assert first["message"] == f"said {nasty}"
    assert second["path"] == nasty


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"bad token {JWT}", JWT),
        (f"Authorization: Bearer {JWT}", JWT),
        ("authorization: bearer not-even-a-jwt", "not-even-a-jwt"),
        ("Sec-WebSocket-Protocol: ordertrack.v1, bearer.opaque-token", "opaque-token"),
        ("Authorization: Basic ZGV3aTpzZWNyZXQ=", "ZGV3aTpzZWNyZXQ="),
        ("Cookie: theme=dark; session=s3cr3t-s3ss10n", "s3cr3t-s3ss10n"),
        ("Set-Cookie: access_token_cookie=abcdef; HttpOnly", "abcdef"),
        ("GET /login?next=/&password=hunter22&x=1", "hunter22"),
        ("{'email': 'd@example.org', 'password': 'hunter 22'}", "hunter 22"),
        ('{"refresh_token": "abcdef123", "a": 1}', "abcdef123"),
        ("csrf_token=0123456789abcdef", "0123456789abcdef"),
        ("connection to host=db user=o password=pw4db failed", "pw4db"),
        ("postgresql://ordertrack:pw4db@db/ordertrack", "pw4db"),
        ("hash $argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA", "c2FsdA$aGFzaA"),
        (f"[type=string_type, input_value='{PASSWORD}', input_type=str]", PASSWORD),
        ("JWT_SECRET=the-secret-of-this-server", "the-secret-of-this-server"),
        ("key the-secret-of-this-server used", "the-secret-of-this-server"),
    ],
)
def test_secrets_are_hidden_in_messages_and_in_tracebacks(
    sink: Sink, text: str, secret: str
) -> None:
    try:
        try:
            raise ValueError(text)
        except ValueError as error:
            raise RuntimeError(f"while handling {text}") from error
    except RuntimeError:
        sink.log.exception("failed: %s", text)
    assert secret not in sink.text
    assert HIDDEN in str(sink.record()["message"])
    assert HIDDEN in str(sink.record()["traceback"])


def test_a_secret_of_the_request_is_hidden_in_every_record(
    sink: Sink, request_in_hand: logs.Request
) -> None:
    logs.hide(PASSWORD)
    try:
        raise ValueError(f"cannot hash {PASSWORD}")
    except ValueError:
        sink.log.exception("unexpected error")
    assert PASSWORD not in sink.text
    assert "cannot hash [hidden]" in str(sink.record()["traceback"])


def test_short_secrets_are_not_hidden(sink: Sink, request_in_hand: logs.Request) -> None:
    logs.hide("a")
    sink.log.info("a banana")
    assert sink.record()["message"] == "a banana"


def test_ordinary_text_is_left_alone() -> None:
    text = "the relay lost the database: server closed the connection (10.0.0.7:5432), turn 7"
    assert redact(text) == text


def test_an_exception_is_one_record_with_its_traceback_inside(sink: Sink) -> None:
    try:
        raise KeyError("gone")
    except KeyError:
        sink.log.exception("unexpected error")
    traceback = str(sink.record()["traceback"])
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert "KeyError: 'gone'" in traceback


def test_a_very_long_record_is_cut_in_the_middle(sink: Sink) -> None:
    sink.log.error("begin %s end", "x " * 100_000)
    message = str(sink.record()["message"])
    assert message.startswith("begin")
    assert message.endswith("end")
    assert len(message) < logs.MAX_TEXT + 100


def test_values_that_json_cannot_express_are_shown_as_text(sink: Sink) -> None:
    sink.log.info("request", extra=logs.fields(path=object, note={1, 2}))
    assert "class" in str(sink.record()["path"])


# --- on a terminal -----------------------------------------------------------------------------


def test_on_a_terminal_a_record_is_a_line_with_time_level_message_and_fields(
    terminal: Sink, request_in_hand: logs.Request
) -> None:
    terminal.log.warning("request", extra=logs.fields(path="/api/orders", status=0, user_id=None))
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d WARNING  request request_id=req-1 path=/api/orders status=0\n",
        terminal.text,
    )


def test_on_a_terminal_a_traceback_is_indented_below_its_line(terminal: Sink) -> None:
    try:
        raise KeyError("gone\n12:00:00 INFO     forged")
    except KeyError:
        terminal.log.exception("unexpected error")
    first, *rest = terminal.text.splitlines()
    assert first.endswith("ERROR    unexpected error")
    assert rest[0] == "    Traceback (most recent call last):"
    assert "KeyError: " in rest[-1]
    assert all(line.startswith("    ") for line in rest)


@pytest.mark.safety("log-lines")
@pytest.mark.parametrize(
    "nasty",
    [
        "a\r\n12:00:00 INFO     forged",
        "\x1b[2J\x1b]0;owned\x07",
        "\u2028\u2029\x85",
        "\x00\x7f\x9b31m",
        "\u202edesrever",
        "\ud800",
    ],
)
def test_control_characters_are_escaped_on_a_terminal(terminal: Sink, nasty: str) -> None:
    try:
        raise ValueError(nasty)
    except ValueError:
        terminal.log.exception("said %s", nasty, extra=logs.fields(path=nasty))
    lines = terminal.text.split("\n")
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line and not line.startswith("    ")] == lines[:1]


def test_secrets_are_hidden_on_a_terminal(terminal: Sink, request_in_hand: logs.Request) -> None:
    logs.hide(PASSWORD)
    try:
        raise ValueError(f"cannot hash {PASSWORD} with the-secret-of-this-server")
    except ValueError:
        terminal.log.exception("failed: Bearer %s", JWT)
    for secret in (PASSWORD, JWT, "the-secret-of-this-server"):
        assert secret not in terminal.text
    assert HIDDEN in terminal.text


def test_text_in_other_alphabets_is_readable_on_a_terminal(terminal: Sink) -> None:
    terminal.log.info("die Größe von 注文")
    assert terminal.text.endswith("die Größe von 注文\n")


def test_levels_are_coloured_only_when_asked_and_only_from_warnings_on() -> None:
    coloured = Sink(TerminalFormatter(colour=True))
    coloured.log.info("quiet")
    coloured.log.warning("loud")
    quiet, loud = coloured.text.splitlines()
    assert "\x1b" not in quiet
    assert re.search(r" \x1b\[33mWARNING \x1b\[0m loud$", loud)


# --- all that is written to standard error -----------------------------------------------------


def test_uncaught_exceptions_and_warnings_become_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    kept = root.handlers
    root.handlers = []  # `set_up` closes what it replaces: not pytest's
    try:
        logs.set_up("INFO")
        try:
            raise OSError("no space")
        except OSError as error:
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        logging.captureWarnings(capture=False)
        root.handlers = kept
    [line] = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["level"] == "CRITICAL"
    assert "OSError: no space" in record["traceback"]


def test_a_server_without_standard_error_starts_and_logs_nothing() -> None:
    start = "from ordertrack import logs; logs.set_up('INFO'); logs.logging.error('unseen')"
    ran = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", start],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


_LOOP = """
import warnings
warnings.simplefilter("ignore")
import eventlet
eventlet.monkey_patch()
import sys
from ordertrack import logs
logs.set_up("INFO")
def fail():
    raise ValueError("password=hunter22")
eventlet.spawn_n(fail)
eventlet.sleep(0.01)
print("begun", end=" ", file=sys.stderr)
print("and ended", file=sys.stderr)
sys.exit("does not start")
"""


def test_prints_to_standard_error_become_records() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _LOOP], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    messages = [json.loads(line)["message"] for line in ran.stderr.splitlines()]
    assert "ValueError: password=[hidden]" in messages
    assert messages[-2:] == ["begun and ended", "does not start"]
    assert "hunter22" not in ran.stderr
