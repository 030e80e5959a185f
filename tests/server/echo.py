"""Runs echo_app.py, a small application on the real server, as a process of its own."""

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Echo:
    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # noqa: S310
            return json.load(answer)

    def stats(self) -> Any:
        return self.get("/stats")

    def memory(self) -> int:
        """Resident bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")


def running(**settings: Any) -> AbstractContextManager[Echo]:
    """The application as a process. `settings` are those of echo_app.py."""
    return running_module("tests.server.echo_app", json.dumps(settings))


@contextlib.contextmanager
def running_module(name: str, *arguments: str) -> Iterator[Echo]:
    """A module that prints its port first, as a process."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", name, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        assert first.startswith("port "), f"the server did not start: {first!r}"
        yield Echo(int(first.split()[1]), process)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
