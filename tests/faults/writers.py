"""Writers that change orders over REST and record requests and answers: one thread each."""

import random
import threading
import time
from collections import deque
from typing import Any
from uuid import uuid4

import requests

from tests.faults.history import Outcome, Write

TIMEOUT = 15.0

# The steps that a writer tries from each status: the lifecycle's, and some that are refused.
NEXT = {
    "Pending": ("Processing", "Processing", "Cancelled"),
    "Processing": ("Shipped",),
    "Shipped": ("Completed",),
    "Completed": ("Shipped",),
    "Cancelled": ("Processing",),
}


class Orders:
    """The orders of a run and the last status of each that a writer saw. Thread-safe."""

    def __init__(self, alive: int) -> None:
        self.all: list[str] = []
        self._recent: deque[str] = deque(maxlen=alive)
        self._status: dict[str, str] = {}

    def add(self, order_id: str) -> None:
        self._status[order_id] = "Pending"
        self._recent.append(order_id)
        self.all.append(order_id)

    def pick(self, chance: random.Random) -> str | None:
        recent = list(self._recent)
        return chance.choice(recent) if recent else None

    def status(self, order_id: str) -> str:
        return self._status[order_id]

    def note(self, order: dict[str, Any]) -> None:
        self._status[order["id"]] = order["status"]


class Writer(threading.Thread):
    """Places, edits and moves orders, as an admin, until it is stopped.

    Without an answer, or after a 503, the outcome is open: the writer repeats the request with the
    same key or the same body, as clients are told to do. An edit is not idempotent, so it is not
    repeated, and its outcome stays unknown.
    """

    def __init__(
        self, name: str, urls: list[str], token: str, orders: Orders, seed: int, pause: float
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._urls = urls
        self._orders = orders
        self._chance = random.Random(seed)
        self._pause = pause
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {token}"
        self._stopping = threading.Event()
        self.writes: list[Write] = []
        self.faults: list[str] = []
        self.slowest = 0.0
        self.unavailable = 0

    @property
    def acknowledged(self) -> int:
        return sum(write.outcome is Outcome.ACKNOWLEDGED for write in list(self.writes))

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        with self._session:
            self._work()

    def _work(self) -> None:
        while not self._stopping.wait(self._chance.uniform(0, 2 * self._pause)):
            order_id = self._orders.pick(self._chance)
            choice = self._chance.random()
            if order_id is None or choice < 0.1:
                self._create()
            elif choice < 0.4:
                self._move(order_id)
            else:
                self._edit(order_id)

    def _create(self) -> None:
        write = Write(f"order {uuid4()}", time.monotonic())
        self._carry_out(
            write,
            "POST",
            "/api/orders",
            {"description": write.mark},
            headers={"Idempotency-Key": write.mark.replace(" ", "-")},
        )
        if write.outcome is Outcome.ACKNOWLEDGED and write.order_id is not None:
            self._orders.add(write.order_id)

    def _move(self, order_id: str) -> None:
        target = self._chance.choice(NEXT[self._orders.status(order_id)])
        write = Write(f"move {uuid4()}", time.monotonic(), order_id, target)
        body = {"status": target, "note": write.mark}
        self._carry_out(write, "PUT", f"/api/orders/{order_id}/status", body)

    def _edit(self, order_id: str) -> None:
        write = Write(f"edit {uuid4()}", time.monotonic(), order_id)
        body = {"description": write.mark}
        self._carry_out(write, "PATCH", f"/api/orders/{order_id}", body, attempts=1)

    def _carry_out(
        self,
        write: Write,
        method: str,
        path: str,
        body: Any,
        *,
        headers: dict[str, str] | None = None,
        attempts: int = 20,
    ) -> None:
        self.writes.append(write)
        in_doubt = False
        for _ in range(attempts):
            began = time.monotonic()
            try:
                answer = self._session.request(
                    method,
                    self._chance.choice(self._urls) + path,
                    json=body,
                    headers=headers,
                    timeout=TIMEOUT,
                )
                # An answer that was cut off in its headers looks complete, and has no body.
                shown = answer.json()
            except requests.RequestException:
                in_doubt = True
                self._stopping.wait(0.1)
                continue
            self.slowest = max(self.slowest, time.monotonic() - began)
            if answer.status_code == 503:
                self._check_unavailable(answer, shown)
                in_doubt = True
                self._stopping.wait(0.1)
                continue
            write.answered = time.monotonic()
            if answer.status_code in (200, 201):
                write.outcome = Outcome.ACKNOWLEDGED
                write.order_id = shown["id"]
                # The order that a key made is shown as it is now, whichever call made it.
                write.version = shown["version"]
                if method != "POST":
                    self._orders.note(shown)
            elif answer.status_code == 409:
                write.outcome = Outcome.UNKNOWN if in_doubt else Outcome.REFUSED
                if "current" in shown:
                    self._orders.note({"id": write.order_id, "status": shown["current"]})
            else:
                self.faults.append(f"{method} {path}: {answer.status_code} {answer.text}")
            return

    def _check_unavailable(self, answer: requests.Response, shown: Any) -> None:
        self.unavailable += 1
        if "Retry-After" not in answer.headers or shown["code"] != "unavailable":
            self.faults.append(f"503 as {answer.headers} {shown}")
