"""wsgi.py with fault injection: the fault tests start it instead of wsgi.py.

It adds three addresses, and the environment's MIGRATIONS names another folder of migrations.
Nothing else differs:

    POST /fault/heartbeat      the longest times for which the loop was blocked since the last call
    POST /fault/query?sql=…    runs a query on a connection of the pool
    POST /fault/arm?point=…    from now on the process is killed (kill -9), or fails, at this point:
        before-hint            a change is committed, and the relay is not yet woken
        before-push            the relay has read an event, and has not delivered it
        relay                  the relay raises an unexpected exception
"""

# ruff: noqa: E402 (patched before everything else, as wsgi.py does it)
import sys
from pathlib import Path

import eventlet

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ordertrack import eventlet_hub

eventlet_hub.install()
eventlet.monkey_patch()

import json
import os
import runpy
import signal
import time
from typing import Any

from flask import Flask, Response, request
from sqlalchemy import text

from ordertrack import app as application
from ordertrack import auth
from ordertrack.db import transaction
from ordertrack.realtime.hub import Hub
from ordertrack.realtime.relay import Relay

BEAT = 0.005

armed: set[str] = set()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


wake, publish = Relay.wake, Hub.publish


def faulty_wake(self: Relay) -> None:
    if "before-hint" in armed:
        die()
    wake(self)


def faulty_publish(self: Hub, event: Any) -> None:
    if "before-push" in armed:
        die()
    if "relay" in armed:
        raise RuntimeError("a defect made on purpose")
    publish(self, event)


class Heartbeat:
    """A greenlet that wakes every few milliseconds, and records how late it is.

    waited    the longest delay by the clock, in seconds, whichever process had the processor
    worked    the longest time that this thread itself computed without yielding
    """

    def __init__(self) -> None:
        self.waited = self.worked = 0.0

    def beat(self) -> None:
        while True:
            began, used = time.monotonic(), time.thread_time()
            eventlet.sleep(BEAT)
            self.waited = max(self.waited, time.monotonic() - began - BEAT)
            self.worked = max(self.worked, time.thread_time() - used)


create_app = application.create_app
init_migrations = application.migrate.init_app


def other_migrations(app: Flask, database: Any, directory: str) -> None:
    init_migrations(app, database, directory=os.environ.get("MIGRATIONS", directory))


def faulty_app(*arguments: Any) -> Flask:
    app = create_app(*arguments)
    heartbeat = Heartbeat()
    eventlet.spawn(heartbeat.beat)

    @app.post("/fault/heartbeat")
    @auth.public
    def longest_block() -> Response:
        shown = {"waited": heartbeat.waited, "worked": heartbeat.worked}
        heartbeat.waited = heartbeat.worked = 0.0
        return Response(json.dumps(shown), content_type="application/json")

    @app.post("/fault/query")
    @auth.public
    def query() -> Response:
        with transaction() as t:
            t.execute(text(request.args["sql"]))
        return Response(status=204)

    @app.post("/fault/arm")
    @auth.public
    def arm() -> Response:
        point = request.args["point"]
        response = Response(status=204)
        response.call_on_close(lambda: armed.add(point))  # once this request is answered
        return response

    return app


Relay.wake, Hub.publish = faulty_wake, faulty_publish  # type: ignore[method-assign]
application.create_app = faulty_app  # type: ignore[assignment]
application.migrate.init_app = other_migrations

if __name__ == "__main__":
    runpy.run_path(str(ROOT / "wsgi.py"), run_name="__main__")
