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

# Debian's and Ubuntu's packages of Go libraries put their sources here.
_GO_PATH = "/usr/share/gocode"
_GO_PACKAGES = (
    "golang-go, golang-github-gin-gonic-gin-dev, golang-github-jackc-pgx-v4-dev,"
    " golang-github-gorilla-websocket-dev and golang-github-golang-jwt-jwt-dev (apt install)"
)


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

    inputs = [source / "package-lock.json", *sorted(source.glob("*.js"))]
    return _made("node", inputs, install)


def go_peer() -> Path:
    """The Go peer, compiled from the packages of the operating system, without a network."""
    if not shutil.which("go"):
        raise MissingTool(f"the Go peer needs {_GO_PACKAGES}")
    sources = sorted((PEERS / "go").glob("*.go"))

    def build(folder: Path) -> None:
        folder.mkdir()
        environment = {
            "GOPATH": _GO_PATH,
            "GO111MODULE": "off",
            "GOPROXY": "off",
            "GOCACHE": str(cache() / "go-build"),
        }
        try:
            _run("go", "build", "-o", str(folder / "go"), *map(str, sources), **environment)
        except MissingTool as missing:
            raise MissingTool(f"the Go peer needs {_GO_PACKAGES}; {missing}") from missing

    return _made("go", sources, build) / "go"


def python_peer(name: str) -> Path:
    """The Python of that peer's own environment."""
    requirements = PEERS / name / "requirements.txt"

    def install(folder: Path) -> None:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(folder / "bin/pip"), "install", "-q", "--no-deps", "-r", str(requirements))

    return _made(name, [requirements], install) / "bin/python"


def said(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


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


def _run(*command: str, cwd: Path | None = None, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MissingTool(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
