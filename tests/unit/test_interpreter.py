"""Which Pythons are known to lack their optimisations; the records are those of real ones."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ordertrack.interpreter import is_unoptimised
from tests.support.servers import ROOT

PLAIN = "-Wsign-compare -DNDEBUG -g -fwrapv -O3 -Wall"


def recorded(config: str | None, **others: Any) -> dict[str, Any]:
    """What every build records, with these arguments of configure."""
    return {
        "CONFIG_ARGS": config,
        "PGO_PROF_GEN_FLAG": "-fprofile-generate",
        "PGO_PROF_USE_FLAG": "-fprofile-use -fprofile-correction",
        "PY_CFLAGS": PLAIN,
        "PY_CORE_CFLAGS": PLAIN,
        "PY_CORE_LDFLAGS": "",
        **others,
    }


@pytest.mark.parametrize(
    ("found", "prefix", "unoptimised"),
    [
        pytest.param(
            recorded("'--prefix=/home/me/.pyenv/versions/3.11.7' '--enable-shared'"),
            "/home/me/.pyenv/versions/3.11.7",
            True,
            id="pyenv",
        ),
        pytest.param(recorded("'--prefix=/usr/local'"), "/usr/local", True, id="by hand"),
        pytest.param(
            recorded("'--enable-shared' '--prefix=/usr' '--with-computed-gotos'"),
            "/usr",
            False,
            id="Debian, Ubuntu",
        ),
        pytest.param(
            recorded("'--prefix=/usr' '--with-lto' '--enable-optimizations'"),
            "/usr",
            False,
            id="Fedora",
        ),
        pytest.param(
            recorded("'--prefix=/home/me/.pyenv/versions/3.13.0' '--enable-optimizations'"),
            "/home/me/.pyenv/versions/3.13.0",
            False,
            id="pyenv, optimised",
        ),
        pytest.param(
            recorded("'--build=x86_64-linux-gnu' '--enable-optimizations' '--with-lto'"),
            "/usr/local",
            False,
            id="image of Docker",
        ),
        pytest.param(
            recorded("'-C' '--enable-framework' '--enable-optimizations' '--with-lto'"),
            "/Library/Frameworks/Python.framework/Versions/3.13",
            False,
            id="python.org, macOS",
        ),
        pytest.param(
            recorded("'--prefix=/install' '--with-lto=full'"),
            "/home/me/.local/share/uv/python/cpython-3.13",
            False,
            id="uv",
        ),
        pytest.param(
            recorded("'--prefix=/opt/me'", PY_CORE_CFLAGS=f"{PLAIN} -fprofile-use"),
            "/opt/me",
            False,
            id="flags of the compiler",
        ),
        pytest.param({}, r"C:\Python313", False, id="Windows"),
        pytest.param(recorded(None), "/opt/pypy", False, id="PyPy"),
    ],
)
def test_only_what_nobody_optimised_counts(
    found: dict[str, Any], prefix: str, unoptimised: bool
) -> None:
    assert is_unoptimised(found, prefix) is unoptimised


def test_condas_records_say_nothing_and_it_is_optimised(tmp_path: Path) -> None:
    found = recorded(f"'--prefix={tmp_path}'")
    assert is_unoptimised(found, str(tmp_path))
    (tmp_path / "conda-meta").mkdir()
    assert not is_unoptimised(found, str(tmp_path))


def test_run_as_a_script_it_needs_no_packages_and_fails_where_python_is_unoptimised() -> None:
    ran = subprocess.run(
        [sys.executable, "-S", "ordertrack/interpreter.py"],
        check=False,
        cwd=ROOT,
        capture_output=True,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (is_unoptimised(), b"", b"")
