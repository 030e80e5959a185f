"""Real server processes: ``python wsgi.py`` on a free port."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import plain_flask
from tests.support.databases import JWT_SECRET
from tests.support.http import Api, OverTheWire
from tests.support.people import People
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]

# What a server's process runs.
SCRIPT = "tests/web/plain_server.py" if plain_flask.wanted() else "wsgi.py"

START_TIMEOUT = 60
STOP_TIMEOUT = 30


@dataclass
class Server:
    """A running server.

    url        http://127.0.0.1:PORT
    dsn        its database
    people     makes users of that database with requests to this server
    api        requests without a token
    """

    url: str
    port: int
    process: subprocess.Popen[bytes]
    dsn: str
    env: dict[str, str]
    log_file: Path
    transport: OverTheWire = field(repr=False)
    people: People = field(repr=False)
    api: Api = field(repr=False)

    @property
    def ws_url(self) -> str:
        return self.url.replace("http://", "ws://", 1)

    @property
    def log(self) -> str:
        """Its output so far, of standard output and standard error."""
        return self.log_file.read_text(errors="replace")

    def terminate(self) -> int:
        """SIGTERM, and wait; the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """kill -9, and wait; the exit code."""
        return self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(STOP_TIMEOUT)
        self.transport.close()
        return code


def environment(dsn: str, **changes: str) -> dict[str, str]:
    """A server's environment, without the variables of this shell that are not listed here."""
    kept = {
        name: value
        for name in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "COVERAGE_PROCESS_START")
        if (value := os.environ.get(name)) is not None
    }
    settings = {"DB_DSN": dsn, "JWT_SECRET": JWT_SECRET, "HOST": "127.0.0.1", "PORT": "0"}
    return {**kept, **settings, **changes}


def refusal(dsn: str, *command: str) -> str:
    """The error output of Python with *command*, which must refuse to work on the database."""
    refused = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment(dsn),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert "serves on" not in refused.stdout
    assert "Traceback" not in refused.stderr
    return refused.stderr


def refusal_to_start(dsn: str) -> str:
    """The error output of a server that does not start on the database."""
    return refusal(dsn, "wsgi.py")


@contextlib.contextmanager
def running_server(dsn: str, *, script: str = SCRIPT, **changes: str) -> Iterator[Server]:
    """A server on *dsn*, ready to serve; *changes* are further settings, in capitals.

    *script* is what Python runs, from the root of the repository.
    It is killed at the end if it still runs. Fails, showing its log, when it does not start.
    """
    env = environment(dsn, **changes)
    with TemporaryDirectory(prefix="ordertrack-test-") as folder:
        log_file = Path(folder, "log")
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, script],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            port = _port(process, log_file)
            url = f"http://127.0.0.1:{port}"
            transport = OverTheWire(url)
            server = Server(
                url,
                port,
                process,
                dsn,
                env,
                log_file,
                transport,
                People(dsn, transport),
                Api(transport),
            )
            _await_readiness(server)
            yield server
            transport.close()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(STOP_TIMEOUT)


def _await_readiness(server: Server) -> None:
    try:
        eventually(lambda: server.api.get("/readyz").status_code == 200)
    except AssertionError as error:
        error.add_note(server.log)
        raise


def _port(process: subprocess.Popen[bytes], log_file: Path) -> int:
    def announced() -> re.Match[str] | None:
        text = log_file.read_text(errors="replace")
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{text}")
        return re.search(r"serves on http://\S+?:(\d+)\s", text)

    found = eventually(announced, START_TIMEOUT, every=0.02)
    assert found is not None
    return int(found[1])
