"""Imports point down the layers that the README shows; eventlet stays where ADR 5 puts it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ordertrack"

# From the top. Modules of one layer may import one another, but see APART.
LAYERS = (
    {"app", "cli", "embedded", "metrics"},
    {"web", "realtime"},
    {"auth", "schemas"},
    {"services"},
    {"eventlog", "models", "db"},
    {"sio"},
    {"server"},
    {
        "problems",
        "lifecycle",
        "policy",
        "errors",
        "config",
        "connector",
        "eventlet_support",
        "extensions",
        "histogram",
        "logs",
        "networks",
        "origins",
    },
)
APART = {"web", "realtime"}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem[0] != "_"
)


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(path: Path) -> str:
    """The module of the package to which a file belongs: ``realtime`` for realtime/relay.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_module_has_a_layer() -> None:
    assert {top(path) for path in MODULES} == RANK.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = top(path)
    for name in imported(path):
        if name.startswith("ordertrack."):
            other = name.split(".")[1]
            assert RANK[own] <= RANK[other], name
            assert not (other in APART and own in APART - {other}), name


@pytest.mark.parametrize(
    "layer", ["services", "eventlog", "models", "lifecycle", "policy", "errors"]
)
def test_what_decides_knows_neither_requests_nor_sockets(layer: str) -> None:
    for path in MODULES:
        if top(path) == layer:
            for name in imported(path):
                assert name.split(".")[0] not in {"flask", "socketio", "engineio", "eventlet"}, name


def test_eventlet_is_known_only_to_the_files_that_the_decision_names() -> None:
    knowing = {
        str(path.relative_to(ROOT))
        for path in [*MODULES, ROOT / "wsgi.py"]
        if any(name.split(".")[0] == "eventlet" for name in imported(path))
    }
    decision = (ROOT / "docs" / "adr" / "005-eventlet-and-its-retirement.md").read_text()
    assert knowing == set(re.findall(r"^\| `([\w/]+\.py)` \|", decision, re.MULTILINE))


def test_the_readme_shows_the_same_layers() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rule = re.search(r"from the layers below its own: (.*?)\. 2\.", readme)
    assert rule is not None
    shown = [re.findall(r"`(\w+)`", layer) for layer in rule[1].split("→")]
    shown[0].remove("wsgi")  # stands beside the package
    assert len(shown) == len(LAYERS)
    for names, layer in zip(shown, LAYERS, strict=True):
        assert layer.issuperset(names)
