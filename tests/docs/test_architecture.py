"""docs/architecture.md shows the layers as they are, and the pages name files that are there."""

import re
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

from docs.layers import modules
from tests.support.servers import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_picture_of_the_layers_is_drawn_from_the_imports() -> None:
    drawn = subprocess.run(
        [sys.executable, ROOT / "docs" / "layers.py"], check=True, capture_output=True, text=True
    ).stdout
    assert f"```mermaid\n{drawn}```\n" in PAGE, "put there what `python docs/layers.py` prints"


def test_what_the_page_names_is_in_the_code() -> None:
    by_stem = defaultdict(list)
    for path in modules():
        by_stem[path.stem].append(path)
    named = re.findall(r"`([a-z_]+)\.([A-Za-z_]+)(?:\.\w+)?(?:\(\))?`", PAGE)
    named = [(stem, name) for stem, name in named if name not in {"py", "md", "js"}]
    assert len(named) >= 10
    for stem, name in named:
        dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in by_stem[stem]]
        assert any(hasattr(import_module(module), name) for module in dotted), f"{stem}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if re.search(r"^Superseded", text, re.MULTILINE):
        return  # it tells how things were
    for name in re.findall(r"`([\w/]+\.py)`", text):
        found = (ROOT / name).is_file() or any(path.match(name) for path in modules())
        assert found, f"{page.name} names {name}"
