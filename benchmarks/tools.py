"""What must be built or installed before anything can run: kept in a cache, made at first use."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
_LOADGEN = HERE / "loadgen"


class MissingTool(Exception):
    """Something that only the system can provide is not there. Its text says what."""


def cache() -> Path:
    """BENCH_CACHE, or a folder in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BENCH_CACHE") or Path(home) / "ordertrack-benchmarks")


def load_generator() -> Path:
    return _compiled("load", sorted(_LOADGEN.glob("*.c")))


def c_limit() -> Path:
    return _compiled("climit", [PEERS / "climit" / "climit.c", _LOADGEN / "json.c"])


def node_peer() -> Path:
    """The folder of the Node peer with its packages installed."""
    if not shutil.which("node") or not shutil.which("npm"):
        raise MissingTool("the Node peer needs node (20 or later) and npm")
    source = PEERS / "node"

    def install(folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        _run("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error", cwd=folder)

    return _made("node", [source / "package-lock.json", source / "server.js"], install)


def python_peer(name: str) -> Path:
    """The Python of that peer's own environment."""
    requirements = PEERS / name / "requirements.txt"

    def install(folder: Path) -> None:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(folder / "bin/pip"), "install", "-q", "--no-deps", "-r", str(requirements))

    return _made(name, [requirements], install) / "bin/python"


def _compiled(name: str, sources: list[Path]) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise MissingTool("a C compiler (gcc) is needed for the load generator")
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", f"-I{_LOADGEN}"]

    def compile_into(folder: Path) -> None:
        folder.mkdir()
        _run(compiler, *flags, "-o", str(folder / name), *map(str, sources))

    return _made(name, sources + sorted(_LOADGEN.glob("*.h")), compile_into) / name


def _made(name: str, inputs: list[Path], make: Callable[[Path], None]) -> Path:
    """A folder that `make(folder)` filled, made anew when one of the inputs has changed."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:12]
    folder = cache() / f"{name}-{digest}"
    done = folder.with_name(folder.name + ".done")
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        make(folder)
        done.touch()
    return folder


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingTool(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
