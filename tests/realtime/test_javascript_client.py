"""The stock JavaScript client (npm's socket.io-client) watches orders of the real server."""

import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import missing
from tests.support.people import Person, id_of
from tests.support.servers import Server
from tests.support.waiting import eventually

HERE = Path(__file__).parent

DEADLINE = 20


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    missing.node()


@pytest.fixture
def owner(server: Server) -> Person:
    return server.people.customer()


class JavaScriptWatcher:
    """A Node process with one client; what it says is kept in ``seen``, by event."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._acks: queue.Queue[Any] = queue.Queue()
        self.seen: list[tuple[str, Any]] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "ack" in said:
                self._acks.put(said["ack"])
            else:
                self.seen.append((said["on"], said["data"]))

    def of(self, event: str) -> list[Any]:
        return [data for name, data in list(self.seen) if name == event]

    def wait_for(self, event: str) -> Any:
        return eventually(lambda: self.of(event))[0]

    def call(self, event: str, data: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"emit": event, "data": data}) + "\n")
        self._process.stdin.flush()
        return self._acks.get(timeout=DEADLINE)

    def versions(self, order: Any) -> list[int]:
        updates = self.of("order_update")
        return [event["version"] for event in updates if event["order_id"] == id_of(order)]


@contextmanager
def watching(
    server: Server, token: str | None, *transports: str, connected: bool = True
) -> Iterator[JavaScriptWatcher]:
    options: dict[str, Any] = {"auth": {"token": token}}
    if transports:
        options["transports"] = transports
    process = subprocess.Popen(
        ["node", "watcher.mjs", server.url, json.dumps(options)],  # noqa: S607
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    watcher = JavaScriptWatcher(process)
    try:
        if connected:
            eventually(lambda: watcher.of("connect") == [None])
        yield watcher
    finally:
        process.kill()
        process.wait(DEADLINE)
        watcher.reader.join(DEADLINE)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def test_a_refusal_is_a_connect_error_whose_data_is_the_problem(server: Server) -> None:
    with watching(server, "forged", connected=False) as watcher:
        error = watcher.wait_for("connect_error")
    assert error["message"] == error["data"]["detail"]
    assert (error["data"]["status"], error["data"]["code"]) == (401, "invalid_token")


@pytest.mark.parametrize(
    "transports", [("websocket",), ("polling",), ()], ids=["websocket", "polling", "upgrading"]
)
def test_it_hears_the_events_of_the_history(
    server: Server, owner: Person, transports: tuple[str, ...]
) -> None:
    driver = server.people.driver()
    order = owner.order()
    driver.move(order, "Processing")
    with watching(server, owner.token, *transports) as watcher:
        answer = watcher.call("subscribe", {"order_id": order["id"], "after": 1})
        assert answer["ok"] is True
        assert answer["version"] == 2
        assert answer["events"] == owner.history(order, after=1)
        assert answer["order"] == owner.read(order)
        driver.move(order, "Shipped", note="Grüße 🚚")
        if not transports:
            assert watcher.wait_for("upgrade") == "websocket"
        driver.move(order, "Completed")
        eventually(lambda: watcher.versions(order) == [3, 4])
        assert watcher.of("order_update") == owner.history(order, after=2)


def test_many_orders_a_feed_and_leaving(server: Server, owner: Person) -> None:
    first, second, later = owner.order(), owner.order(), None
    with watching(server, owner.token, "websocket") as watcher:
        wanted = [{"order_id": first["id"], "after": 0}, {"order_id": int(second["id"])}]
        answer = watcher.call("subscribe", {"orders": [*wanted, {"order_id": str(2**62)}]})
        assert [result["ok"] for result in answer["results"]] == [True, True, False]
        assert answer["results"][0]["events"] == owner.history(first)
        assert answer["results"][2]["error"]["code"] == "not_found"
        assert watcher.call("subscribe", {"feed": "orders"}) == {"ok": True}
        later = owner.order()
        owner.edit(first, "changed")
        eventually(lambda: watcher.versions(first) == [2])
        assert watcher.versions(later) == [1]
        assert watcher.call("unsubscribe", {"feed": "orders"}) == {"ok": True}
        assert watcher.call("unsubscribe", {"order_id": first["id"]}) == {"ok": True}
        owner.edit(first, "changed again")
        owner.edit(later, "changed")
        owner.edit(second, "changed")
        eventually(lambda: watcher.versions(second) == [2])
        assert (watcher.versions(first), watcher.versions(later)) == ([2], [1])


def test_a_token_is_renewed_in_place(server: Server, owner: Person) -> None:
    again = owner.signed_in_again()
    with watching(server, owner.token, "websocket") as watcher:
        assert watcher.call("authenticate", {"token": again.token}) == {"ok": True}
        refused = watcher.call("authenticate", {"token": server.people.admin().token})
        assert refused["error"]["code"] == "invalid_token"
        assert watcher.call("subscribe", {"order_id": again.order()["id"]})["ok"] is True


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_signing_out_tells_it_why_and_not_to_come_back(
    server: Server, owner: Person, transport: str
) -> None:
    with watching(server, owner.token, transport) as watcher:
        watcher.call("subscribe", {"order_id": owner.order()["id"]})
        owner.api.post("/api/logout")
        # The reason that keeps the stock client from coming back by itself.
        assert watcher.wait_for("disconnect") == "io server disconnect"
        assert [problem["code"] for problem in watcher.of("signed_out")] == ["invalid_token"]
