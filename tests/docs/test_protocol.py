"""docs/protocol.md speaks of what the server has: every code, every route, the lifecycle."""

import re
import subprocess
import sys

from flask import Flask

from ordertrack import problems
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
    assert {code: int(status) for code, status in rows} == {
        code: status.value for code, status in problems.STATUS.items()
    }


def test_every_route_of_the_api_is_described(app: Flask) -> None:
    described = set(re.findall(r"(/(?:api|healthz|readyz|metrics)[\w/:]*)", PROTOCOL))
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<[^>]+>", ":id", rule.rule)
        if path.startswith("/api/") or rule.endpoint.startswith("ops."):
            assert path in described, rule
