"""What a machine lacks leaves tests out, is said once, and fails in CI: hooks of tests/conftest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT

CONFTEST = "from tests.conftest import pytest_runtest_makereport, pytest_terminal_summary\n"

TESTS = """
import pytest
from tests.support import missing

@pytest.mark.parametrize("number", range(3))
def test_wants_a_program(number):
    missing.program("no-such-program", "apt install it")

@pytest.fixture
def browser():
    missing.cannot("no browser", "apt install one")

def test_wants_a_fixture(browser):
    pass

@pytest.mark.skipif(True, reason=missing.NEEDS_ROOT)
def test_is_about_root():
    pass

def test_skips_itself():
    pytest.skip("whatever it thought")

def test_runs():
    pass
"""


def run(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TEST_SKIPPED")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", f"--rootdir={folder}", *arguments],
        check=False,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("workers", ["0", "2"])
def test_each_reason_is_said_once_with_its_number(tmp_path: Path, workers: str) -> None:
    ran = run(tmp_path, "-n", workers)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = ran.stdout.split("not run on this machine", 1)[1].splitlines()[1:5]
    assert sorted(line.strip() for line in told) == [
        "1 tests: is about what root has to mind",
        "1 tests: no browser: apt install one",
        "1 tests: whatever it thought",
        "3 tests: no no-such-program: apt install it",
    ]


def test_several_runs_collect_what_they_left_out(tmp_path: Path) -> None:
    file = tmp_path / "skipped"
    for _ in range(2):
        ran = run(tmp_path, "-n", "2", TEST_SKIPPED=str(file))
        assert "not run on this machine" not in ran.stdout
    assert file.read_text().count("no no-such-program: apt install it\n") == 2 * 3


def test_in_ci_a_skip_fails_whoever_asked_for_it(tmp_path: Path) -> None:
    ran = run(tmp_path, CI="true")
    assert ran.returncode == 1
    assert "1 passed, 1 skipped" in ran.stdout  # what is about root alone
    assert "4 failed" in ran.stdout
    assert "1 error" in ran.stdout
    assert "no browser: apt install one" in ran.stdout
    assert "whatever it thought" in ran.stdout
