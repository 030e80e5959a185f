"""docs/protocol.md agrees with the code: every error code, route, limit, example, the lifecycle."""

import json
import re
import subprocess
import sys

from flask import Flask

from docs.layers import modules
from ordertrack import errors, problems
from ordertrack.schemas import MAX_SUBSCRIPTIONS
from ordertrack.server.websocket import CONTROL_COST
from ordertrack.server.websocket import DEFAULT_LIMITS as LIMITS
from ordertrack.services.orders import REPLAY_LIMIT, Budget, Reset
from tests.support.people import People
from tests.support.servers import ROOT

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_the_picture_of_the_lifecycle_is_drawn_from_its_table() -> None:
    drawn = subprocess.run(
        [sys.executable, ROOT / "docs" / "lifecycle.py"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert f"```mermaid\n{drawn}```\n" in PROTOCOL


def test_every_code_is_in_the_table_with_its_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", PROTOCOL, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    assert {(code, int(status)) for code, status in rows} == {
        (code, problems.STATUS[code].value) for code in codes()
    }
    assert codes() == problems.STATUS.keys(), "a code that nothing raises"


def codes() -> set[str]:
    """The codes of all errors."""
    classes, found = [errors.DomainError], set()
    while classes:
        one = classes.pop()
        classes += one.__subclasses__()
        found.add(one.code)
    return found


def test_problems_are_encoded_in_one_module() -> None:
    """So the errors' classes have every code that a client can get."""
    for path in modules():
        if path.name != "problems.py":
            text = path.read_text(encoding="utf-8")
            assert '"code":' not in text, f"{path.relative_to(ROOT)} encodes a problem itself"


def test_the_tables_of_routes_are_the_routes(app: Flask) -> None:
    rows = re.findall(r"^\| ([A-Z]+(?: or [A-Z]+)*) `(/api/[^`?]*)` \|", PROTOCOL, re.MULTILINE)
    described = {(method, path) for methods, path in rows for method in methods.split(" or ")}
    routes = {
        (method, re.sub(r"<[^>]+>", ":id", rule.rule))
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/api/")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert described == routes


def test_the_endpoints_for_operators_are_described(app: Flask) -> None:
    asked = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("health.")}
    assert asked
    for path in asked:
        assert f"`{path}`" in PROTOCOL, path


def test_responses_look_like_the_examples(people: People) -> None:
    examples = re.findall(r"^```json\n(.*?)^```$", PROTOCOL, re.DOTALL | re.MULTILINE)
    order, event, problem = (json.loads(example) for example in examples)
    customer, driver = people.customer(), people.driver()
    placed = customer.order(order["description"])
    assert driver.move(placed, "Processing").keys() == order.keys()
    assert driver.read(placed)["next_statuses"] == order["next_statuses"]
    assert customer.history(placed)[-1].keys() == event.keys()
    driver.move(placed, "Shipped")
    refused = customer.api.put(f"/api/orders/{placed['id']}/status", json={"status": "Cancelled"})
    assert refused.json() == problem


def test_the_limits_are_those_of_the_code() -> None:
    for text in (
        f"{LIMITS.max_message_bytes // 1024} KiB; more closes with 1009",
        f"{LIMITS.message_burst} at once, {LIMITS.messages_per_second:.0f} a second",
        f"more than {LIMITS.max_queue_bytes // 1_000_000} MB waited for this client",
        f"for {LIMITS.max_queue_seconds:.0f} s it read less than",
        f"less than {LIMITS.min_bytes_per_second // 1024} KiB a second",
        f"{1 / CONTROL_COST:.0f} pings, pongs or fragments count as one".replace("10", "Ten", 1),
        f"holds up to {Budget().events} events and {Budget().bytes // 1000} KB of them",
        *(f"| `{reason}` |" for reason in Reset),
        f"up to {MAX_SUBSCRIPTIONS}, each once",
        f"If more than {REPLAY_LIMIT} were missed",
    ):
        assert text in " ".join(PROTOCOL.split()), text
