"""docs/safety.md matches the tests: each row names the files whose tests carry its marker."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.servers import ROOT

PAGE = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
TABLES = re.findall(r"^\| `([a-z-]+)` \| .* \| ([^|]+) \|$", PAGE, re.MULTILINE)
ROWS = dict(TABLES)


def test_every_row_is_there_once() -> None:
    assert len(TABLES) == len(ROWS) == PAGE.count("\n| `")
    assert len(ROWS) >= 49


def marked() -> dict[str, set[str]]:
    """The test files of each row, read from the sources, whichever tests are selected."""
    found = defaultdict(set)
    for path in (ROOT / "tests").glob("*/test_*.py"):
        for row in _markers(path):
            found[row].add(path.relative_to(ROOT).as_posix())
    return found


def _markers(path: Path) -> list[str]:
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.safety"
    ]
    rows = [argument for call in calls for argument in call.args]
    assert all(isinstance(row, ast.Constant) for row in rows), f"{path}: name rows literally"
    return [row.value for row in rows if isinstance(row, ast.Constant)]


def test_every_marker_names_a_row() -> None:
    assert set(marked()) <= set(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_what_shows_it(row: str) -> None:
    shown = ROWS[row]
    files = marked()[row]
    wanted = ", ".join(f"[{_short(file)}](../{file})" for file in sorted(files))
    if shown.startswith(("open: ", "by hand: ")):
        assert not files, f"it is shown now: replace {shown!r} by {wanted!r}"
    else:
        assert files, f"no test carries pytest.mark.safety({row!r}) any more"
        assert shown == wanted, f"the cell must say {wanted!r}"


def _short(file: str) -> str:
    return file.removeprefix("tests/").removesuffix(".py").replace("/test_", "/")


@pytest.mark.parametrize("row", [row for row in ROWS if ROWS[row].startswith("by hand: ")])
def test_what_is_run_by_hand_is_part_of_the_long_run(row: str) -> None:
    scripts = re.findall(r"\(\.\./([^)]+)\)", ROWS[row])
    long_run = (ROOT / "scripts" / "test-long").read_text(encoding="utf-8")
    assert scripts
    for script in scripts:
        module = script.removesuffix(".py").replace("/", ".")
        assert module in long_run, f"scripts/test-long does not run {script}"
