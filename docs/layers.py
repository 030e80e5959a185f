"""Draws the layers of the package for docs/architecture.md: python docs/layers.py

The table says which layer a module belongs to, the arrows come from the imports in the source.
tests/unit/test_layers.py holds the imports to the table, and the page to what is drawn here.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "ordertrack"

# From the top: a module imports from its own layer and from those below it.
LAYERS = {
    "composition": ("app", "cli", "embedded", "metrics"),
    "edges": ("web", "realtime"),
    "translation": ("auth", "schemas"),
    "use cases": ("services",),
    "log and database": ("eventlog", "log_tail", "models", "db"),
    "Socket.IO": ("sio",),
    "HTTP and WebSocket": ("server",),
    "base": (
        "problems",
        "lifecycle",
        "policy",
        "errors",
        "config",
        "connector",
        "extensions",
        "eventlet_hub",
        "eventlet_support",
        "batching",
        "histogram",
        "interpreter",
        "logs",
        "networks",
        "origins",
    ),
}
# The two edges do not know each other, so each has a box of its own.
APART = LAYERS["edges"]
RANK = {name: rank for rank, names in enumerate(LAYERS.values()) for name in names}


def modules() -> list[Path]:
    """The source files of the package that belong to a layer."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path, *, types: bool = True) -> Iterator[str]:
    """The dotted names that a file imports; without ``types`` none that only type checkers read."""
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    for node in nodes:  # grows while it is walked
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif types or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes += ast.iter_child_nodes(node)


def top(path: Path) -> str:
    """The part of the package that a file belongs to: ``realtime`` for realtime/relay.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def mermaid() -> str:
    """The layers as a Mermaid flowchart, without the arrows that follow from others."""
    boxes = {layer: names for layer, names in LAYERS.items() if names is not APART}
    boxes |= {name: (name,) for name in APART}
    box = {name: title for title, names in boxes.items() for name in names}
    uses: dict[str, set[str]] = {title: set() for title in boxes}
    for path in modules():
        for name in imported(path):
            if name.startswith("ordertrack."):
                uses[box[top(path)]].add(box[name.split(".")[1]])
    for title, used in uses.items():
        used.discard(title)
    reached: dict[str, set[str]] = {}
    for title in TopologicalSorter(uses).static_order():
        reached[title] = uses[title].union(*(reached[other] for other in uses[title]))

    by_rank = sorted(boxes, key=lambda title: RANK[boxes[title][0]])
    lines = ["flowchart TD"]
    for title in by_rank:
        names = boxes[title]
        rows = [", ".join(names[at : at + 4]) for at in range(0, len(names), 4)]
        label = "<br>".join(rows if rows == [title] else [f"<b>{title}</b>", *rows])
        lines.append(f'    {_id(title)}["{label}"]')
    for title in by_rank:
        implied = set().union(*(reached[other] for other in uses[title]))
        lines += [
            f"    {_id(title)} --> {_id(other)}"
            for other in by_rank
            if other in uses[title] - implied
        ]
    return "\n".join(lines) + "\n"


def _id(title: str) -> str:
    return title.replace(" ", "_").replace(".", "")


if __name__ == "__main__":
    sys.stdout.write(mermaid())
