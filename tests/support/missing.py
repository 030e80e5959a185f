"""Skips tests for want of a program, naming what to install; in CI they fail instead."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

# These depend on who runs the tests, not on what is installed: one of the two always skips, and CI
# runs both (.ci/run).
NEEDS_ROOT = "is about what root has to mind"
NOT_AS_ROOT = "root may do everything"
# A container may forbid this.
NO_NAMESPACES = "no namespaces can be made in here"
# The embedded PostgreSQL never has it; the operating system's has, and runs the same tests.
NO_TRIGRAMS = "this PostgreSQL has no pg_trgm"
NOT_MISSING = frozenset({NEEDS_ROOT, NOT_AS_ROOT, NO_NAMESPACES, NO_TRIGRAMS})

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason=NEEDS_ROOT)
not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason=NOT_AS_ROOT)

NODE_HINT = "apt install nodejs npm"

TESTS = Path(__file__).resolve().parents[1]
NODE_MODULES = TESTS / "node_modules"


def in_ci() -> bool:
    return bool(os.environ.get("CI"))


def cannot(what: str, install: str) -> NoReturn:
    """Skip the running test for want of *what*; in CI, where nothing may be missing, fail it."""
    reason = f"{what}: {install}"
    if in_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program(name: str, install: str) -> str:
    """The path of a program that the test needs."""
    found = shutil.which(name)
    # Debian keeps servers in /usr/sbin, which is not on an ordinary user's PATH.
    found = found or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        cannot(f"no {name}", install)
    return found


@cache
def _npm_problem() -> str | None:
    """Run ``npm ci`` in tests/; what went wrong, if anything."""
    command = ["npm", "ci", "--no-audit", "--no-fund"]
    ran = subprocess.run(command, cwd=TESTS, check=False, capture_output=True, text=True)
    if ran.returncode == 0:
        return None
    shutil.rmtree(NODE_MODULES, ignore_errors=True)  # no half of it for the next run
    lines = ran.stderr.strip().splitlines() or ["npm printed no reason"]
    return lines[0]


def node() -> str:
    """The path of Node, with the packages of tests/package.json installed."""
    found = program("node", NODE_HINT)
    if not NODE_MODULES.exists():
        program("npm", NODE_HINT)
        problem = _npm_problem()
        if problem is not None:
            cannot("no packages in tests/node_modules", f"npm ci --prefix tests ({problem})")
    return found


@cache
def playwright_problem() -> str | None:
    """Why Playwright's driver, a Node of its own, does not start; None when it does."""
    command = [sys.executable, "-m", "playwright", "--version"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    if ran.returncode == 0:
        return None
    lines = ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"]
    return lines[-1].rpartition("driver/node: ")[2]
