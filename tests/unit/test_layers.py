"""Imports point down the layers of docs/layers.py, and no module knows more than its layer may."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from docs.layers import APART, PACKAGE, RANK, imported, modules, top

ROOT = PACKAGE.parent
MODULES = modules()
each_module = pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE))
)

# What else a layer must not import, wherever the layers' order would let it.
FORBIDDEN = {
    "services": {"flask", "socketio", "engineio", "eventlet"},
    "eventlog": {"flask", "socketio", "engineio", "eventlet"},
    "log_tail": {"flask", "socketio", "engineio", "eventlet"},
    "models": {"flask", "socketio", "engineio", "eventlet"},
    "sio": {"ordertrack.lifecycle", "ordertrack.policy", "ordertrack.extensions"},
    "server": {
        "flask",
        "socketio",
        "engineio",
        "ordertrack.lifecycle",
        "ordertrack.policy",
        "ordertrack.extensions",
    },
    "problems": {"flask", "werkzeug"},
    "lifecycle": {"flask", "socketio", "engineio", "eventlet"},
    "policy": {"flask", "socketio", "engineio", "eventlet"},
    "errors": {"flask", "socketio", "engineio", "eventlet"},
}


def test_every_module_has_a_layer_and_every_layer_its_modules() -> None:
    assert {top(path) for path in MODULES} == RANK.keys()


@each_module
def test_imports_are_absolute(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level
    ]


@each_module
def test_imports_point_down(path: Path) -> None:
    own = top(path)
    for name in imported(path):
        if name.startswith("ordertrack."):
            other = name.split(".")[1]
            assert RANK[own] <= RANK[other], name
            assert {own, other} != set(APART), name


@each_module
def test_a_layer_does_not_know_what_it_must_not(path: Path) -> None:
    forbidden = FORBIDDEN.get(top(path), set())
    for name in imported(path):
        parts = name.split(".")
        assert not forbidden & {parts[0], ".".join(parts[:2])}, name


def test_there_is_no_import_cycle() -> None:
    files = {_dotted(path): path for path in MODULES}
    needs = {
        module: {_module_of(name, files) for name in imported(path, types=False)} - {module, None}
        for module, path in files.items()
    }
    TopologicalSorter(needs).prepare()  # raises CycleError, which names the cycle


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _module_of(name: str, files: dict[str, Path]) -> str | None:
    """The longest part of an imported name that is a module of the package."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def test_eventlet_is_imported_only_by_the_files_that_the_decision_names() -> None:
    importing = {
        str(path.relative_to(ROOT))
        for path in [*MODULES, ROOT / "wsgi.py"]
        if any(name.split(".")[0] == "eventlet" for name in imported(path))
    }
    decision = (ROOT / "docs" / "adr" / "005-eventlet-and-its-retirement.md").read_text()
    assert importing == set(re.findall(r"^\| `([\w/]+\.py)` \|", decision, re.MULTILINE))
