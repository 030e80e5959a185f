"""What the machine has, where things run on it, and what processes use of it (Linux)."""

import contextlib
import os
import platform
import resource
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

_CORES = sorted(os.sched_getaffinity(0))

# The server under test has one core to itself; the database, the load generator and we ourselves
# share another. On a machine with one core they share it, and the report says so.
SERVER_CORE = _CORES[0]
LOAD_CORE = _CORES[1 % len(_CORES)]

_TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def pinned(cores: Iterable[int]) -> Iterator[None]:
    """Keep this thread, and processes that it starts meanwhile for good, on those cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def all_cores() -> list[int]:
    return _CORES


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that these processes have used so far, all their threads, to the nanosecond."""
    nanoseconds = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def pss_bytes(pids: Iterable[int]) -> int:
    """Their memory, what they share with others counted in proportion (proportional set size)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def busy_seconds(core: int) -> float:
    """How long that core has worked since boot, whoever it worked for."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / _TICKS
    raise LookupError(f"no core {core} in /proc/stat")


def file_limit() -> int:
    """How many files, and so connections, a process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def load_average() -> float:
    return os.getloadavg()[0]


_INTERPRETER = Path(__file__).resolve().parent.parent / "ordertrack" / "interpreter.py"


def python_build(interpreter: str) -> str:
    """Its version, and whether it was built with what makes it 15–30 % faster."""
    say = "import platform; print(platform.python_version(), platform.python_compiler())"
    done = subprocess.run([interpreter, "-c", say], capture_output=True, text=True, check=True)
    is_unoptimised = subprocess.run([interpreter, _INTERPRETER], check=False).returncode
    build = "compiled without PGO and LTO" if is_unoptimised else "an optimised build"
    return f"Python {done.stdout.strip()}, {build}"


def describe() -> str:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(_CORES)} cores ({model}), {memory:.0f} GiB, Linux {platform.release()}"
