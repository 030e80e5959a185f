"""`sh scripts/serve` on a machine with a shell and a Python, in a checkout without packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PYTHON = Path(sys.base_prefix) / "bin" / "python3"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The real scripts beside a server that only tells how it was called."""
    folder = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "ordertrack").mkdir()
    shutil.copy(ROOT / "ordertrack" / "interpreter.py", folder / "ordertrack")
    (folder / "requirements.txt").write_text("# nothing\n")
    (folder / "wsgi.py").write_text("import sys; print(sys.prefix, sys.argv[1:])\n")
    return folder


@pytest.fixture
def only(tmp_path: Path) -> Path:
    """A folder for PATH with what a shell script may count on, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("cmp", "cp", "dirname", "sh"):
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def serve(
    checkout: Path, path: Path, *arguments: str, python: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(checkout / "scripts" / "serve"), *arguments],
        check=False,
        cwd="/",
        env={"PATH": str(path), "HOME": str(checkout), "PYTHON": python},
        capture_output=True,
        text=True,
    )


def provide(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_first_start_installs_and_the_second_does_not(checkout: Path, only: Path) -> None:
    provide(only, "python3", f'exec "{PYTHON}" "$@"')

    first = serve(checkout, only, "an argument")
    assert first.stdout == f"{checkout / '.venv'} ['an argument']\n", first.stderr
    assert "Installing requirements.txt" in first.stderr

    second = serve(checkout, only)
    assert second.stdout == f"{checkout / '.venv'} []\n"
    assert second.stderr == ""

    (checkout / "requirements.txt").write_text("# changed\n")
    assert "Installing requirements.txt" in serve(checkout, only).stderr
    assert serve(checkout, only).stderr == ""


def test_an_installation_that_failed_is_told_and_tried_again(checkout: Path, only: Path) -> None:
    environment = checkout / ".venv" / "bin"
    environment.mkdir(parents=True)
    provide(environment, "python", 'case "$2" in pip) exit 1;; esac; echo started')
    for _ in range(2):
        failed = serve(checkout, only)
        assert failed.returncode == 1
        assert failed.stdout == ""
        assert "could not be installed" in failed.stderr


def test_a_machine_without_python_is_told_what_is_needed(checkout: Path, only: Path) -> None:
    provide(only, "python3.13", "echo 'pyenv: command not found' >&2; exit 127")
    failed = serve(checkout, only)
    assert failed.returncode == 1
    assert "Python 3.11 or later" in failed.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_without_venv_is_told_the_package_to_install(checkout: Path, only: Path) -> None:
    """As Debian's, when python3-venv is not there."""
    provide(only, "python3", f'case "$2" in *venv*) exit 1;; esac; exec "{PYTHON}" "$@"')
    failed = serve(checkout, only)
    assert failed.returncode == 1
    assert "python3-venv" in failed.stderr


def test_a_chosen_python_goes_first(checkout: Path, only: Path) -> None:
    provide(only, "python3", "exit 1")
    provide(only, "mine", f'case "$2" in venv) exit 1;; esac; exec "{PYTHON}" "$@"')
    assert "Making .venv" in serve(checkout, only, python="mine").stderr


def test_the_scripts_can_be_run_directly() -> None:
    for script in ("serve", "test", "test-bare", "test-long", "screenshots"):
        assert os.access(ROOT / "scripts" / script, os.X_OK), script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def provide_builds(folder: Path, **optimised: bool) -> None:
    """Commands that pass for a Python, optimised or not, and say which one makes an environment."""
    for name, is_optimised in optimised.items():
        known = "exit 0" if is_optimised else "exit 1"
        provide(
            folder,
            name.replace("_", "."),
            f'case "$*" in *interpreter.py) {known};; *"-m venv"*) echo "by $0" >&2; exit 1;; esac',
        )


@pytest.mark.parametrize(
    ("builds", "chosen", "expected"),
    [
        ({"python3_13": False, "python3_11": True, "python3": True}, "", "python3.11"),
        ({"python3_13": False, "python3_11": False}, "", "python3.13"),
        ({"python3_13": True, "python3_11": True}, "", "python3.13"),
        ({"python3_13": True, "python3_11": False}, "python3.11", "python3.11"),
    ],
)
def test_an_optimised_python_goes_before_others_that_were_not_chosen(
    checkout: Path, only: Path, builds: dict[str, bool], chosen: str, expected: str
) -> None:
    provide_builds(only, **builds)
    assert f"by {only / expected}\n" in serve(checkout, only, python=chosen).stderr
