"""`OrderStream`: subscribe, resume, close gaps, renew, fall back to polling.

The structure and the names are those of static/js/order-stream.js; a change belongs in both. All
methods with an underscore run on the stream's own thread, as do all callbacks.
"""

import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import requests

from ordertrack_client.connection import Connection
from ordertrack_client.cursor import OrderCursor
from ordertrack_client.loop import Loop, Timer
from ordertrack_client.protocol import Event, History, Order, Problem, ProblemError

log = logging.getLogger(__name__)

State = Literal["connecting", "live", "reconnecting", "polling", "offline", "signed_out", "closed"]

OnEvent = Callable[[Event], None]
OnReset = Callable[[Order], None]
OnError = Callable[[Problem], None]
OnResume = Callable[[bool], None]
OnState = Callable[[State, Problem | None], None]
Stop = Callable[[], None]

BATCH = 200  # orders in one subscribe call; the server takes no more
REFUSALS = 3  # fresh credentials refused in a row, after which the stream is signed out
ABOUT_CREDENTIALS = ("invalid_token", "token_expired")

_MOST_ID = 2**63 - 1

T = TypeVar("T")


class _Subscription:
    """What is to be subscribed to. `asked` and `joined`: the connection for which they are true."""

    def __init__(self) -> None:
        self.asked: Connection | None = None
        self.joined: Connection | None = None
        self.attempts = 0
        self.alone = False  # asked for by itself: a batch with it was refused as a whole

    @property
    def request(self) -> dict[str, Any]:
        raise NotImplementedError

    def accept(self, answer: Any) -> bool:
        """Take the server's answer; False when it brought no progress."""
        raise NotImplementedError

    def refuse(self, problem: Problem) -> bool:
        """Take the server's refusal; False when it is final."""
        raise NotImplementedError


class _Watch(_Subscription):
    def __init__(
        self,
        id: str,
        after: int | None,
        on_event: OnEvent,
        on_reset: OnReset | None,
        on_error: OnError | None,
        hand_on: Callable[["_Watch", list[Event]], None],
    ) -> None:
        super().__init__()
        self.id = id
        self.cursor = OrderCursor(after)
        self.on_event = on_event
        self.on_reset = on_reset
        self.on_error = on_error
        self.is_watched = True
        self._hand_on = hand_on

    @property
    def request(self) -> dict[str, Any]:
        if self.cursor.seen is None:
            return {"order_id": self.id}
        return {"order_id": self.id, "after": self.cursor.seen}

    def accept(self, answer: Any) -> bool:
        before = self.cursor.seen
        if before is not None and answer.get("reset_reason") == "answer_full":
            # The orders before it filled the answer. Being behind, it is asked for again.
            self.cursor.take((), answer["version"])
            return True
        order, events = self.cursor.answer(
            answer["order"], answer["version"], answer["events"], reset=answer.get("reset", False)
        )
        if order is not None:
            _tell(self.on_reset, order)
        self._hand_on(self, events)
        return not self.cursor.behind or self.cursor.seen != before

    def refuse(self, problem: Problem) -> bool:
        # A version that the order has not reached: its database was restored from a backup.
        if problem.get("code") != "validation_failed" or self.cursor.seen is None:
            return False
        self.cursor.restart()
        return True


class _Listener:
    def __init__(
        self, on_event: OnEvent, on_resume: OnResume | None, on_error: OnError | None
    ) -> None:
        self.on_event = on_event
        self.on_resume = on_resume
        self.on_error = on_error
        self.begun = False


class _Feed(_Subscription):
    def __init__(self) -> None:
        super().__init__()
        self.alone = True
        self.listeners: list[_Listener] = []
        self._seen: dict[str, int] = {}

    @property
    def request(self) -> dict[str, Any]:
        return {"feed": "orders"}

    def hand_on(self, event: Event) -> None:
        """Pass on each event once. After a gap the listeners are told to read the list again."""
        if not self.listeners:
            return
        seen = self._seen.get(event["order_id"])
        if seen is not None and event["version"] <= seen:
            return
        self._seen[event["order_id"]] = event["version"]
        for listener in list(self.listeners):
            _tell(listener.on_event, event)
        if seen is not None and event["version"] > seen + 1:
            self.resume()

    def resume(self) -> None:
        for listener in list(self.listeners):
            first, listener.begun = not listener.begun, True
            _tell(listener.on_resume, first)

    def accept(self, answer: Any) -> bool:
        self._seen.clear()
        self.resume()
        return True

    def refuse(self, problem: Problem) -> bool:
        return False


class OrderStream:
    """Watches orders live over one connection; clients/README.md lists its guarantees.

    url            the server's, such as ``https://orders.example.org``
    token          answers an access token; called for each attempt and each poll, on any thread.
                   None as answer: there is none, which ends the stream as "signed_out"
    on_renew       called when the credentials were refused, on any thread: get new ones, and answer
                   whether there are. Without it `token` is asked once more for another token
    on_state       called with each new state, and a problem when it is "signed_out"
    history, order how to poll: ``history(order_id, after)`` and ``order(order_id)``. By default GET
                   /api/orders/…. They raise `ProblemError` when they are refused
    poll_interval  seconds between two rounds of polling
    poll_after     seconds without a live connection after which polling begins
    ack_timeout, connect_timeout   seconds to wait for an answer, for a connection
    max_delay      seconds: the longest pause between two attempts to connect
    session        for requests with a proxy, certificates …; also used for the handshake
    transports     of Socket.IO; the order changes after each failure

    All callbacks run one at a time on a thread of the stream's own. One that blocks delays the
    others; what one raises is logged.
    """

    def __init__(
        self,
        url: str,
        token: Callable[[], str | None],
        *,
        on_renew: Callable[[Problem], bool] | None = None,
        on_state: OnState | None = None,
        history: Callable[[str, int], History] | None = None,
        order: Callable[[str], Order] | None = None,
        poll_interval: float = 3.0,
        poll_after: float = 3.0,
        ack_timeout: float = 10.0,
        connect_timeout: float = 5.0,
        max_delay: float = 1.5,
        session: requests.Session | None = None,
        transports: Sequence[str] = ("websocket", "polling"),
    ) -> None:
        self.on_state = on_state
        self._url = url.rstrip("/")
        self._token = token
        self._on_renew = on_renew
        self._history = history or self._get_history
        self._order = order or self._get_order
        self._poll_interval = poll_interval
        self._poll_after = poll_after
        self._ack_timeout = ack_timeout
        self._connect_timeout = connect_timeout
        self._max_delay = max_delay
        self._session = session
        # Of polling, which has one thread at a time.
        self._http = session or requests.Session()
        self._transports = list(transports)

        self._state: State = "connecting"
        self._watches: dict[str, _Watch] = {}
        self._watches_lock = threading.Lock()
        self._feed = _Feed()

        self._connection: Connection | None = None
        self._turn = 0  # counts connection attempts; what belongs to an older one is ignored
        self._timer: Timer | None = None  # to the next attempt, or until the present is given up
        self._turned_round = False  # the last transport is tried first
        self._failures = 0
        self._silences = 0  # requests in a row that were not answered
        self._refusals = 0
        self._used_token: str | None = None
        self._problem: Problem | None = None  # why the server ended the session
        self._patience: Timer | None = None  # until polling begins, or its next round
        self._polling: object | None = None
        self._pumping = False

        self._loop = Loop("ordertrack-stream")
        self._loop.post(self._wait_for_polling)
        self._loop.post(self._connect)
        self._loop.start()

    # --- for callers, on any thread ---------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    def watch(
        self,
        order_id: str | int,
        after: int | None,
        on_event: OnEvent,
        on_reset: OnReset | None = None,
        on_error: OnError | None = None,
    ) -> Stop:
        """Watch one order from the version *after* on; None: from its present state.

        on_event(event)    the next event: versions ascend by one
        on_reset(order)    the state to start from: *after* was None, or too much was missed
        on_error(problem)  the order cannot be watched (any more): there is none, or not for us

        Answers a function that stops watching. An order is watched once at a time: raises
        `ValueError` when it is already, or when *order_id* is no id.
        """
        wanted = str(order_id)
        if not wanted.isascii() or not wanted.isdigit() or not 1 <= int(wanted) <= _MOST_ID:
            raise ValueError(f"not an order id: {wanted}")
        watch = _Watch(str(int(wanted)), after, on_event, on_reset, on_error, self._hand_on)
        with self._watches_lock:
            if watch.id in self._watches:
                raise ValueError(f"order {watch.id} is being watched already")
            self._watches[watch.id] = watch
        self._loop.post(self._pump)

        def stop() -> None:
            if self._forget(watch):
                self._loop.post(partial(self._leave, watch))

        return stop

    def feed(
        self,
        on_event: OnEvent,
        on_resume: OnResume | None = None,
        on_error: OnError | None = None,
    ) -> Stop:
        """Watch all orders that the caller may see. Events come while connected, each once.

        on_resume(first)   the feed (re)starts here, and events may have been missed before: read
                           the list anew. Also called for every round of polling. *first*: whether
                           it is the first time

        Answers a function that ends it.
        """
        listener = _Listener(on_event, on_resume, on_error)
        self._loop.post(partial(self._listen, listener))
        return lambda: self._loop.post(partial(self._unlisten, listener))

    def reconnect(self) -> None:
        """Try to connect now: after a new login, or because the network is known to be back."""
        self._loop.post(self._reconnect)

    def close(self) -> None:
        """Stop everything, for good. No callback runs after it, unless it is called from one."""
        self._loop.post(self._end_all)
        self._loop.stop(timeout=5.0)

    def __enter__(self) -> "OrderStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- called by connections, on their threads --------------------------------------------------

    def on_connected(self, connection: Connection) -> None:
        self._loop.post(partial(self._if_present, connection, self._connected))

    def on_lost(self, connection: Connection, problem: Any) -> None:
        self._loop.post(partial(self._if_present, connection, partial(self._failed, problem)))

    def on_message(self, connection: Connection, name: str, data: Any) -> None:
        handle = self._update if name == "order_update" else self._signed_out_by_server
        self._loop.post(partial(self._if_present, connection, partial(handle, data)))

    def _if_present(self, connection: Connection, task: Callable[[], None]) -> None:
        if connection is self._connection:
            task()

    # --- the connection ---------------------------------------------------------------------------
    # Each attempt has a connection of its own, so that nothing of an older one can be mistaken for
    # the present one's. The library's own reconnecting is off: it ends when the server disconnects.

    def _reconnect(self) -> None:
        if self._state == "closed":
            return
        self._failures = 0
        self._refusals = 0
        self._say("reconnecting")
        self._wait_for_polling()
        self._connect()

    def _connect(self) -> None:
        self._drop()
        transports = self._transports[:: -1 if self._turned_round else 1]
        connection = Connection(
            self,
            self._url,
            transports=transports,
            timeout=self._connect_timeout,
            session=self._session,
        )
        self._connection = connection
        self._timer = self._loop.later(2 * self._connect_timeout, self._failed)

        def open_() -> None:
            try:
                token = self._token()
            except Exception:  # the caller's; whether there is one is not known
                log.warning("no access token could be had", exc_info=True)
                self.on_lost(connection, None)
                return
            if token is None:
                problem = Problem(code="invalid_token", detail="There is no access token.")
                self._loop.post(
                    partial(self._if_present, connection, partial(self._signed_out, problem))
                )
                return
            connection.token = token
            connection.open({"token": token})

        threading.Thread(target=open_, name="ordertrack-connect", daemon=True).start()

    def _drop(self) -> None:
        self._turn += 1
        _cancel(self._timer)
        connection, self._connection = self._connection, None
        for subscription in [self._feed, *self._watched()]:
            subscription.asked = subscription.joined = None
        if connection is not None:
            self._used_token = connection.token
            connection.drop()

    def _connected(self) -> None:
        assert self._connection is not None
        _cancel(self._timer)
        self._connection.is_up = True
        self._silences = 0
        self._refusals = 0
        self._problem = None
        self._pump()
        self._settle()

    def _failed(self, problem: Problem | None = None) -> None:
        """The connection is lost, or could not be made."""
        connection = self._connection
        if connection is not None and connection.is_up:
            # Reconnect with the transport that worked.
            self._turned_round = connection.transport == self._transports[-1]
        elif problem is None:
            # Where a proxy swallows WebSockets, always trying them first would take too long.
            self._turned_round = not self._turned_round
        self._drop()
        self._down()
        if problem is not None and _is_about_credentials(problem):
            self._renew(problem)
            return
        pause = self._pause(self._failures, problem)
        self._failures += 1
        self._timer = self._loop.later(pause, self._connect)

    def _pause(self, attempts: int, problem: Problem | None) -> float:
        """Half to all of a time that doubles: the clients of a lost server return one by one."""
        most: float = min(self._max_delay, 0.2 * 2 ** min(attempts, 20))
        asked: float = min((problem or {}).get("retry_after", 0), 30)
        return max(asked, most / 2) + random.random() * (most / 2)  # noqa: S311 (no secret)

    def _renew(self, problem: Problem) -> None:
        turn, refused = self._turn, self._used_token

        def renew() -> None:
            renewed: bool | None
            try:
                if self._on_renew is not None:
                    renewed = self._on_renew(problem)
                else:
                    renewed = self._token() not in (None, refused)
            except Exception:  # the caller's; whether it would have worked is unknown
                log.warning("the credentials could not be renewed", exc_info=True)
                renewed = None
            self._loop.post(partial(self._renewed, turn, problem, renewed))

        if self._refusals < REFUSALS:
            threading.Thread(target=renew, name="ordertrack-renew", daemon=True).start()
        else:
            self._signed_out(problem)

    def _renewed(self, turn: int, problem: Problem, renewed: bool | None) -> None:
        if turn != self._turn:
            return
        if renewed is None:
            self._failed()
        elif renewed:
            self._refusals += 1
            self._connect()
        else:
            self._signed_out(problem)

    def _signed_out_by_server(self, problem: Problem) -> None:
        # The token may have been renewed meanwhile, or only a role has changed: try again.
        self._problem = problem
        self._failed()

    def _signed_out(self, problem: Problem) -> None:
        self._drop()
        self._stop_polling()
        self._say("signed_out", self._problem or problem)

    def _end_all(self) -> None:
        self._drop()
        self._stop_polling()
        for watch in self._watched():
            self._forget(watch)
        self._feed.listeners.clear()
        self._say("closed")

    # --- subscriptions ----------------------------------------------------------------------------

    def _watched(self) -> list[_Watch]:
        with self._watches_lock:
            return list(self._watches.values())

    def _pump(self) -> None:
        """Subscribe to what is not joined or has a gap: soon, so that many calls make one batch."""
        if not self._pumping:
            self._pumping = True
            self._loop.post(self._subscribe)

    def _subscribe(self) -> None:
        self._pumping = False
        connection = self._connection
        if connection is None or not connection.is_up:
            return
        due: list[_Subscription] = []
        if self._feed.listeners and self._feed.joined is None and self._feed.asked is None:
            due.append(self._feed)
        due += [
            watch
            for watch in self._watched()
            if watch.asked is None and (watch.joined is None or watch.cursor.behind)
        ]
        for one in due:
            if one.alone:
                self._ask(connection, [one])
        together = [one for one in due if not one.alone]
        for batch in _batches(together):
            self._ask(connection, batch)

    def _ask(self, connection: Connection, batch: list[_Subscription]) -> None:
        if connection is not self._connection:
            return
        for one in batch:
            one.asked = connection
        requests = [one.request for one in batch]
        request = requests[0] if len(requests) == 1 else {"orders": requests}
        timer = self._loop.later(
            self._ack_timeout, partial(self._answered, connection, batch, None)
        )

        def answered(ack: Any = None) -> None:
            if timer.task is not None:
                timer.cancel()
                self._answered(connection, batch, ack)

        def on_ack(ack: Any = None) -> None:
            self._loop.post(partial(answered, ack))

        connection.emit("subscribe", request, on_ack)

    def _answered(self, connection: Connection, batch: list[_Subscription], ack: Any) -> None:
        if connection is not self._connection:
            return
        self._silences = self._silences + 1 if ack is None else 0
        if self._silences > 1:
            self._failed()  # the connection looks alive, and is dead
            return
        ack = ack or {}
        together = len(batch) > 1
        answers = ack["results"] if together and ack.get("ok") else [ack] * len(batch)
        again: list[_Subscription] = []
        retry_after = 0
        for one, answer in zip(batch, answers, strict=True):
            one.asked = None
            if isinstance(one, _Watch) and not one.is_watched:
                continue  # stopped meanwhile
            problem: Problem | None = answer.get("error")
            if answer.get("ok"):
                one.joined = connection
                if one.accept(answer):
                    one.attempts = 0
                else:
                    again.append(one)
            elif _is_about_credentials(problem):
                self._failed()  # a new connection shows why, by the usual rules
                return
            elif problem is None or _is_temporary(problem):
                again.append(one)
                retry_after = max(retry_after, (problem or {}).get("retry_after", 0))
            elif together and not ack.get("ok"):
                one.alone = True
            elif not one.refuse(problem):
                self._end(one, problem)
        if again:
            self._ask_later(connection, again, Problem(retry_after=retry_after))
        self._pump()
        self._settle()

    def _ask_later(
        self, connection: Connection, batch: Iterable[_Subscription], problem: Problem
    ) -> None:
        pause = self._pause(max(one.attempts for one in batch), problem)
        for one in batch:
            one.attempts += 1
            one.asked = connection  # so that it is not asked for twice

        def ask_again() -> None:
            if connection is self._connection:
                for one in batch:
                    one.asked = None
                self._pump()

        self._loop.later(pause, ask_again)

    def _end(self, subscription: _Subscription, problem: Problem) -> None:
        """The server refuses the subscription."""
        if isinstance(subscription, _Watch):
            if self._forget(subscription):
                _tell(subscription.on_error, problem)
        else:
            listeners, self._feed.listeners = self._feed.listeners, []
            for listener in listeners:
                _tell(listener.on_error, problem)

    def _forget(self, watch: _Watch) -> bool:
        with self._watches_lock:
            if not watch.is_watched:
                return False
            watch.is_watched = False
            return self._watches.pop(watch.id, None) is watch

    def _leave(self, subscription: _Subscription) -> None:
        connection = self._connection
        was_asked = (subscription.joined or subscription.asked) is not None
        subscription.asked = subscription.joined = None
        if connection is not None and connection.is_up and was_asked:
            request = subscription.request
            request.pop("after", None)
            connection.emit("unsubscribe", request)
        self._settle()

    def _listen(self, listener: _Listener) -> None:
        self._feed.listeners.append(listener)
        if self._feed.joined is not None:
            listener.begun = True
            _tell(listener.on_resume, True)
        self._pump()

    def _unlisten(self, listener: _Listener) -> None:
        with contextlib.suppress(ValueError):
            self._feed.listeners.remove(listener)
            if not self._feed.listeners:
                self._leave(self._feed)

    # --- events -----------------------------------------------------------------------------------

    def _update(self, event: Event) -> None:
        watch = self._watches.get(str(event["order_id"]))
        if watch is not None:
            self._hand_on(watch, watch.cursor.take([event]))
            if watch.cursor.behind:
                self._pump()
        self._feed.hand_on(event)

    def _hand_on(self, watch: _Watch, events: list[Event]) -> None:
        """The feed gets them too: events in an acknowledgement are not sent again."""
        for event in events:
            if watch.is_watched:
                _tell(watch.on_event, event)
            self._feed.hand_on(event)

    # --- the state --------------------------------------------------------------------------------

    def _say(self, state: State, problem: Problem | None = None) -> None:
        if state != self._state:
            self._state = state
            if self.on_state is not None:
                _tell(lambda new: self.on_state and self.on_state(new, problem), state)

    def _settle(self) -> None:
        """Live means connected and subscribed to everything that is watched."""
        if self._connection is None or not self._connection.is_up:
            return
        is_live = self._state == "live"
        wanted: list[_Subscription] = [*self._watched()]
        if self._feed.listeners:
            wanted.append(self._feed)
        # A subscription that was just added does not end "live", unless it fails.
        if any(one.attempts > 0 if is_live else one.joined is None for one in wanted):
            if is_live:
                self._down()
            return
        self._failures = 0
        self._stop_polling()
        self._say("live")

    def _down(self) -> None:
        if self._state in ("live", "signed_out"):
            self._say("reconnecting")
        self._wait_for_polling()

    # --- polling ----------------------------------------------------------------------------------

    def _wait_for_polling(self) -> None:
        if self._polling is None and self._patience is None:
            self._patience = self._loop.later(self._poll_after, self._start_polling)

    def _start_polling(self) -> None:
        self._polling = object()
        self._poll(self._polling)

    def _stop_polling(self) -> None:
        _cancel(self._patience)
        self._patience = None
        self._polling = None

    def _poll(self, polling: object) -> None:
        """One round of polling, on its own thread; the stream's thread applies its results."""
        watches = self._watched()

        def run() -> None:
            state: State = "polling"
            problem: Problem | None = None
            try:
                if not watches:
                    self._get("/api/me")  # does the server answer?
                for watch in watches:
                    if polling is not self._polling:
                        return
                    self._catch_up(watch)
            except ProblemError as error:
                state, problem = "reconnecting", error.problem
            except Exception:  # whatever failed, the server was not reached
                state = "offline"
                log.debug("polling failed", exc_info=True)
            self._loop.post(partial(self._polled, polling, state, problem))

        threading.Thread(target=run, name="ordertrack-poll", daemon=True).start()

    def _polled(self, polling: object, state: State, problem: Problem | None) -> None:
        if polling is not self._polling:
            return
        if _is_about_credentials(problem):
            self._stop_polling()
            self._failed(problem)
            return
        if state == "polling":
            self._feed.resume()
        self._say(state)
        self._patience = self._loop.later(self._poll_interval, partial(self._poll, polling))

    def _catch_up(self, watch: _Watch) -> None:
        """Read what *watch* missed; on the polling thread."""
        try:
            seen = watch.cursor.seen
            if seen is None:
                order = self._order(watch.id)
                answer = {"order": order, "version": order["version"], "events": []}
                self._loop.post(partial(self._if_watched, watch, partial(watch.accept, answer)))
                return
            more = True
            while more and watch.is_watched:
                page = self._history(watch.id, seen)
                self._loop.post(
                    partial(self._if_watched, watch, partial(self._turn_page, watch, page))
                )
                more = page["has_more"] and bool(page["events"])
                if more:
                    seen = page["events"][-1]["version"]
        except ProblemError as error:
            if error.problem.get("status") not in (403, 404):
                raise
            self._loop.post(partial(self._end, watch, error.problem))

    def _if_watched(self, watch: _Watch, task: Callable[[], object]) -> None:
        if watch.is_watched:
            task()

    def _turn_page(self, watch: _Watch, page: History) -> None:
        self._hand_on(watch, watch.cursor.take(page["events"], page["version"]))

    def _get_history(self, order_id: str, after: int) -> History:
        page: History = self._get(f"/api/orders/{order_id}/history?after={after}")
        return page

    def _get_order(self, order_id: str) -> Order:
        order: Order = self._get(f"/api/orders/{order_id}")
        return order

    def _get(self, path: str) -> Any:
        response = self._http.get(
            self._url + path,
            headers={"Authorization": f"Bearer {self._token()}"},
            timeout=self._connect_timeout,
        )
        if response.ok:
            return response.json()
        try:
            problem = response.json()
        except ValueError:
            problem = {"status": response.status_code, "title": response.reason, "code": "unknown"}
        raise ProblemError(problem)


def _batches(subscriptions: list[_Subscription]) -> list[list[_Subscription]]:
    return [subscriptions[start : start + BATCH] for start in range(0, len(subscriptions), BATCH)]


def _is_about_credentials(problem: Problem | None) -> bool:
    return problem is not None and problem.get("code") in ABOUT_CREDENTIALS


def _is_temporary(problem: Problem) -> bool:
    status = problem.get("status", 500)
    return status >= 500 or status == 429


def _cancel(timer: Timer | None) -> None:
    if timer is not None:
        timer.cancel()


def _tell(callback: Callable[[T], object] | None, argument: T) -> None:
    """Call back. An exception in a callback must not stop the stream."""
    try:
        if callback is not None:
            callback(argument)
    except Exception:
        log.exception("a callback of the stream's user failed")
