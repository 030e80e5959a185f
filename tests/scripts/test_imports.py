"""A test run imports only what its tests need."""

import subprocess
import sys

from tests.support.servers import ROOT

COLLECT_UNIT_TESTS = """
import sys
import pytest
assert pytest.main(["--collect-only", "-q", "tests/unit"]) == 0
sys.exit("Playwright was imported" if "playwright" in sys.modules else 0)
"""


def test_unit_tests_do_not_import_playwright() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", COLLECT_UNIT_TESTS],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
