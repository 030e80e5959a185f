"""Starting: what is printed, and why a server or a command cannot start, in words."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import wsgi
from ordertrack import interpreter
from tests.support.databases import JWT_SECRET, Postgres
from tests.support.servers import ROOT, Server, environment

SERVER = ("wsgi.py",)
COMMAND = ("-m", "flask", "--app", "wsgi", "users", "list")

NOBODY_THERE = "host=127.0.0.1 port=1 user=me password=very-secret dbname=orders"


@pytest.mark.safety("unsafe-settings")
@pytest.mark.parametrize("arguments", [SERVER, COMMAND], ids=["server", "command line"])
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"DB_DSN": NOBODY_THERE}, "JWT_SECRET must be set"),
        ({"DB_DSN": NOBODY_THERE, "JWT_SECRET": JWT_SECRET}, "DB_DSN names a database that cannot"),
        ({"PORT": "http"}, "PORT must be a whole number"),
    ],
    ids=["no secret", "no database", "no number"],
)
def test_the_setting_is_named_without_a_traceback(
    arguments: tuple[str, ...], settings: dict[str, str], told: str
) -> None:
    ran = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PORT": "0", **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert told in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "very-secret" not in ran.stderr
    assert ran.stdout == ""


def test_a_start_that_fails_is_a_critical_record_of_the_server() -> None:
    ran = subprocess.run(
        [sys.executable, *SERVER],
        check=False,
        cwd=ROOT,
        env=environment(NOBODY_THERE),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    record = json.loads(ran.stderr.splitlines()[-1])
    assert record["level"] == "CRITICAL"
    assert record["logger"] == "ordertrack"
    assert record["message"].startswith("OrderTrack does not start: DB_DSN names a database")


def test_a_python_that_could_be_faster_is_told_once(server: Server) -> None:
    told = [json.loads(line) for line in server.log.splitlines() if interpreter.ADVICE in line]
    assert [record["level"] for record in told] == ["WARNING"] * interpreter.is_unoptimised()


@pytest.mark.parametrize("unoptimised", [True, False])
def test_only_a_python_known_to_be_unoptimised_is_warned_of(
    unoptimised: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(interpreter, "is_unoptimised", lambda: unoptimised)
    wsgi.advise_on_python()
    assert caplog.messages == [interpreter.ADVICE] * unoptimised


class Terminal:
    """A server whose standard output and standard error are a terminal."""

    def __init__(self, dsn: str, **settings: str) -> None:
        self._screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *SERVER],
            cwd=ROOT,
            env=environment(dsn, **settings),
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)
        self.text = ""

    def read_until(self, text: str, seconds: float = 60) -> None:
        """Read what is printed until it contains *text*."""
        end = time.monotonic() + seconds
        while text not in self.text:
            ready, _, _ = select.select([self._screen], [], [], max(0, end - time.monotonic()))
            assert ready, self.text
            self.text += os.read(self._screen, 65_536).decode().replace("\r\n", "\n")

    def read_for(self, seconds: float) -> None:
        """Read what is printed for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._screen], [], [], left)[0]:
                self.text += os.read(self._screen, 65_536).decode().replace("\r\n", "\n")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._screen)


@pytest.fixture
def terminal(postgres: Postgres) -> Iterator[Terminal]:
    """A server that starts for the first time, on an empty database."""
    dsn = postgres.create()
    started = Terminal(dsn)
    yield started
    started.close()
    postgres.drop(dsn)


LOG_LINE = r"\d\d:\d\d:\d\d (INFO|(\x1b\[\S+)?(WARNING|ERROR|CRITICAL)) +\S.*"


def test_on_a_terminal_the_log_is_readable_and_the_address_is_printed_last(
    terminal: Terminal,
) -> None:
    terminal.read_until("flask --app wsgi demo\n")
    terminal.read_for(1.5)  # what the relay and the housekeeper say of their first turn
    *log, address, data, admin, demo = terminal.text.splitlines()
    assert log
    assert [line for line in log if not re.fullmatch(LOG_LINE, line)] == []
    assert address.startswith("OrderTrack serves on http://")
    assert [line.split()[0] for line in (data, admin, demo)] == ["data", "admin", "demo"]

    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.read_until("Stopped\n")
    last = terminal.text.splitlines()[-1]
    assert re.fullmatch(LOG_LINE, last), last
    assert terminal.process.wait(30) == 0


@pytest.mark.parametrize(("settings", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_levels_on_a_terminal_are_coloured_unless_no_color_is_set(
    settings: dict[str, str], coloured: bool
) -> None:
    terminal = Terminal(NOBODY_THERE, **settings)
    try:
        terminal.read_until("names a database that cannot be used")
        assert ("\x1b[1;31mCRITICAL\x1b[0m" in terminal.text) is coloured
        assert ("\x1b" in terminal.text) is coloured
        assert "very-secret" not in terminal.text
    finally:
        terminal.close()
