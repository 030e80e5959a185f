"""The stock JavaScript client (npm's socket.io-client) in a Node process: client.mjs."""

import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.waiting import eventually

HERE = Path(__file__).parent
DEADLINE = 20


class JavaScriptClient:
    """One client; `seen` has what it printed, in order: events with their data, acks as "ack"."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            ["node", "client.mjs", url, json.dumps(options)],  # noqa: S607
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._acks: queue.Queue[Any] = queue.Queue()
        self.seen: list[tuple[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "ack" in said:
                self.seen.append(("ack", said["ack"]))
                self._acks.put(said["ack"])
            else:
                self.seen.append((said["on"], said.get("data")))

    def of(self, event: str) -> list[Any]:
        return [data for name, data in list(self.seen) if name == event]

    def wait_for(self, event: str) -> Any:
        return eventually(lambda: self.of(event))[0]

    def send(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def emit(self, event: str, *arguments: Any) -> None:
        self.send({"emit": event, "arguments": arguments})

    def ack(self) -> Any:
        """The next acknowledgement."""
        return self._acks.get(timeout=DEADLINE)

    def call(self, event: str, *arguments: Any) -> Any:
        self.emit(event, *arguments)
        return self.ack()

    def transport(self) -> Any:
        self.send({})
        return self.ack()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@contextmanager
def javascript_client(url: str, **options: Any) -> Iterator[JavaScriptClient]:
    """`options` are those of the client, which does not reconnect unless they say so."""
    client = JavaScriptClient(url, options)
    try:
        yield client
    finally:
        client.close()
