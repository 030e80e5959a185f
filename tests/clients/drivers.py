"""Drives both client libraries through one interface, so that every scenario runs with each.

The arguments of a stream's callbacks are kept in lists: ``states`` and ``renewals`` of the stream,
and for each order (or "feed") its ``events``, ``resets``, ``errors`` and ``resumes``.
"""

import json
import subprocess
import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ordertrack_client import OrderStream

from tests.support.people import id_of
from tests.support.waiting import eventually

HERE = Path(__file__).parent

FEED = "feed"

# Short, so that tests are; what they wait for is an answer or an end, never the time itself.
TIMES = {
    "poll_interval": 0.1,
    "poll_after": 1.0,
    "ack_timeout": 2.0,
    "connect_timeout": 2.0,
    "max_delay": 0.4,
}


class Stream(ABC):
    """One client's stream for one person. *renewals*: the tokens that `onRenew` gets, in turn."""

    def __init__(self) -> None:
        self.states: list[str] = ["connecting"]
        self.problem: Any = None
        self.renewals: list[Any] = []
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.resets: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.errors: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.resumes: dict[str, list[bool]] = defaultdict(list)

    @property
    def state(self) -> str:
        return self.states[-1]

    def versions(self, order: Any) -> list[int]:
        """The versions of the events of *order*, in order of arrival."""
        return [event["version"] for event in self.events[id_of(order)]]

    def until(self, state: str, timeout: float = 20) -> None:
        eventually(lambda: self._is(state), timeout)

    def _is(self, state: str) -> bool:
        assert self.state == state, self.states
        return True

    def until_seen(self, order: Any, version: int, timeout: float = 20) -> None:
        """Wait for the event of *order* with *version*."""

        def came() -> bool:
            found = self.versions(order)
            assert found, f"no event yet; {self.states}"
            assert found[-1] >= version, f"{found[-1]} so far, not yet {version}; {self.states}"
            return True

        eventually(came, timeout)

    def _told(self, what: str, about: str | None, argument: Any) -> None:
        if what == "state":
            self.problem = argument.get("problem")
            self.states.append(argument["state"])
        elif what == "renew":
            self.renewals.append(argument)
        elif what == "resume":
            self.resumes[about or FEED].append(argument)
        else:
            kept = {"event": self.events, "reset": self.resets, "error": self.errors}[what]
            kept[about or FEED].append(argument)

    @abstractmethod
    def watch(self, order: Any, after: int | None) -> None: ...

    @abstractmethod
    def watch_feed(self) -> None: ...

    @abstractmethod
    def stop(self, order: Any) -> None: ...

    @abstractmethod
    def use_token(self, token: str) -> None: ...

    @abstractmethod
    def reconnect(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class PythonStream(Stream):
    """clients/python, in this process."""

    def __init__(
        self, url: str, token: str, renewals: list[str] | None = None, **options: Any
    ) -> None:
        super().__init__()
        self._token = token
        self._to_come = list(renewals or [])
        self._stops: dict[str, Callable[[], None]] = {}
        self.stream = OrderStream(
            url,
            lambda: self._token,
            on_renew=None if renewals is None else self._renew,
            on_state=lambda state, problem: self._told(
                "state", None, {"state": state, "problem": problem}
            ),
            **{**TIMES, **options},
        )

    def _renew(self, problem: Any) -> bool:
        self._told("renew", None, problem)
        if not self._to_come:
            return False
        self._token = self._to_come.pop(0)
        return True

    def watch(self, order: Any, after: int | None) -> None:
        id = id_of(order)  # noqa: A001
        self._stops[id] = self.stream.watch(
            id,
            after,
            lambda event: self._told("event", id, event),
            lambda state: self._told("reset", id, state),
            lambda problem: self._told("error", id, problem),
        )

    def watch_feed(self) -> None:
        self._stops[FEED] = self.stream.feed(
            lambda event: self._told("event", FEED, event),
            lambda first: self._told("resume", FEED, first),
            lambda problem: self._told("error", FEED, problem),
        )

    def stop(self, order: Any) -> None:
        self._stops.pop(id_of(order))()

    def use_token(self, token: str) -> None:
        self._token = token

    def reconnect(self) -> None:
        self.stream.reconnect()

    def close(self) -> None:
        self.stream.close()


class NodeStream(Stream):
    """static/js/order-stream.js, in its own Node process (stream_driver.js)."""

    def __init__(
        self, url: str, token: str, renewals: list[str] | None = None, **options: Any
    ) -> None:
        super().__init__()
        times = {name: 1000 * seconds for name, seconds in {**TIMES, **options}.items()}
        settings = {
            "url": url,
            "token": token,
            "renewals": renewals,
            **{_camel(name): value for name, value in times.items()},
        }
        self._process = subprocess.Popen(
            ["node", "stream_driver.js", json.dumps(settings)],  # noqa: S607
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            what, about, argument = json.loads(line)
            if what == "resume":
                argument = argument["first"]
            self._told(what, about, argument)

    def _tell(self, *command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def watch(self, order: Any, after: int | None) -> None:
        self._tell("watch", id_of(order), after)

    def watch_feed(self) -> None:
        self._tell("feed")

    def stop(self, order: Any) -> None:
        self._tell("stop", id_of(order))

    def use_token(self, token: str) -> None:
        self._tell("token", token)

    def reconnect(self) -> None:
        self._tell("reconnect")

    def close(self) -> None:
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # stream_driver.js closes its stream, and ends with it
        code = self._process.wait(20)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        assert code == 0, f"stream_driver.js ended with {code}"


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.title, others))
