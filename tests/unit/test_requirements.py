"""The lock files: complete, safe to publish, and never below a floor."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

FILES = ["requirements", "requirements-dev"]


def wanted(name: str) -> list[Requirement]:
    lines = (ROOT / f"{name}.in").read_text(encoding="utf-8").splitlines()
    bare = (re.sub(r"(^|\s+)#.*", "", line) for line in lines)
    return [Requirement(line) for line in bare if line and not line.startswith("-r ")]


def locked(name: str) -> dict[str, str]:
    """Each pinned package's version, and all of its hashes checked to be there."""
    text = (ROOT / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    pins: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#") or line.lstrip().startswith("#"):
            continue
        pin = re.match(r"([a-z0-9-]+)==(\S+)(?: ; .*?)?\s+--hash=sha256:[0-9a-f]{64}", line)
        assert pin, f"no pin with a hash: {line}"
        pins[pin[1]] = pin[2]
    return pins


@pytest.mark.parametrize("name", FILES)
def test_every_floor_is_kept(name: str) -> None:
    pins = locked(name)
    assert wanted(name)
    for requirement in wanted(name):
        assert requirement.specifier.contains(pins[requirement.name]), str(requirement)


def test_the_tests_run_on_what_is_deployed() -> None:
    assert locked("requirements").items() <= locked("requirements-dev").items()


@pytest.mark.parametrize("name", FILES)
def test_a_lock_file_names_no_registry_and_no_folder(name: str) -> None:
    text = (ROOT / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|--index|--find-links| @ |/home/|/tmp/", text)
