"""Mutation tests: put each listed defect into a copy of the checkout, and expect a failing test.

    python -m tests.mutations                # all; survivors are listed, exit status 1 if any
    python -m tests.mutations 'policy*' …    # those whose names match
    python -m tests.mutations --list

First, the named tests run once without a defect: a test that fails anyway proves nothing. A text
that is not found exactly once, and tests that do not start, are errors, not passes.
"""

import argparse
import fnmatch
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.mutations.defects import DEFECTS, Defect
from tests.support.databases import running_postgres
from tests.support.servers import ROOT

# A run of some test files takes a minute at most; a defect may make each test of them wait.
LIMIT = 900

# All that are named, without a defect, each job its share.
BASELINE_LIMIT = 1800

NOTICED, SURVIVED, ERROR = "noticed", "SURVIVED", "ERROR"


@contextmanager
def copied() -> Iterator[Path]:
    """The checkout, what is not committed included, without what Git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-mutations-"))
    try:
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        for installed in (ROOT / ".venv", ROOT / "tests" / "node_modules"):
            if installed.exists():
                (folder / installed.relative_to(ROOT)).symlink_to(installed)
        yield folder
    finally:
        shutil.rmtree(folder)


def run_tests(
    folder: Path, tests: list[str], dsn: str, *options: str, limit: float = LIMIT
) -> tuple[int | None, str]:
    """pytest's exit status, None when it did not end, and what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests]
    environ = {**os.environ, "TEST_DB_DSN": dsn, "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile("w+") as output:
        # A session of its own, so that what a defect leaves running can be ended with it.
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
            os.killpg(process.pid, 9)
            process.wait()
        output.seek(0)
        return status, output.read()


def judge(defect: Defect, folder: Path, dsn: str) -> tuple[str, str]:
    file = folder / defect.file
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if text.count(defect.old) != 1:
        return ERROR, f"its text stands {text.count(defect.old)} times in {defect.file}"
    file.write_text(text.replace(defect.old, defect.new), encoding="utf-8")
    try:
        status, output = run_tests(folder, defect.tests, dsn, "-x")
    finally:
        file.write_text(text, encoding="utf-8")
    if status == 0:
        return SURVIVED, f"{defect.file}, by {' '.join(defect.tests)}"
    if status == 1:
        found = [
            line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR tests/"))
        ]
        return NOTICED, found[0].split(" - ")[0] if found else ""
    return ERROR, f"pytest ended with {status}: {output[-1500:]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations")
    parser.add_argument("names", nargs="*", help="patterns such as 'fanout*'; without: all")
    parser.add_argument("--list", action="store_true", help="show the names and do nothing")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    parser.add_argument("--no-baseline", action="store_true", help="trust that the tests pass")
    given = parser.parse_args()
    wanted = [
        defect
        for defect in DEFECTS
        if not given.names or any(fnmatch.fnmatch(defect.name, name) for name in given.names)
    ]
    if given.list or not wanted:
        print("\n".join(defect.name for defect in wanted) or "no defect has such a name")
        return 0 if wanted else 2
    # So that what was started is stopped, and the copies removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        dsn = stack.enter_context(running_postgres()).dsn
        folders: queue.Queue[Path] = queue.Queue()
        for _ in range(given.jobs):
            folders.put(stack.enter_context(copied()))
        if not given.no_baseline and not _passes_without(wanted, folders, dsn):
            return 1

        def one(defect: Defect) -> str:
            folder = folders.get()
            began = time.monotonic()
            try:
                result, detail = judge(defect, folder, dsn)
            finally:
                folders.put(folder)
            took = time.monotonic() - began
            print(f"{result:9} {defect.name:42} {took:4.0f} s  {detail}", flush=True)
            return result

        with ThreadPoolExecutor(given.jobs) as pool:
            results = list(pool.map(one, wanted))
    summary = {kind: results.count(kind) for kind in (NOTICED, SURVIVED, ERROR)}
    print(", ".join(f"{number} {kind}" for kind, number in summary.items()))
    for defect, result in zip(wanted, results, strict=True):
        if result != NOTICED:
            print(f"{result}: {defect.name}")
    return 0 if summary[NOTICED] == len(wanted) else 1


def _passes_without(wanted: list[Defect], folders: "queue.Queue[Path]", dsn: str) -> bool:
    tests = {test for defect in wanted for test in defect.tests}
    # Tests of a file that is there as a whole need not run twice.
    needed = sorted(t for t in tests if "::" not in t or t.partition("::")[0] not in tests)
    jobs = folders.qsize()
    shares = [share for n in range(jobs) if (share := needed[n::jobs])]

    def passes(share: list[str]) -> bool:
        folder = folders.get()
        try:
            status, output = run_tests(folder, share, dsn, "--tb=short", limit=BASELINE_LIMIT)
        finally:
            folders.put(folder)
        if status != 0:
            print(f"Without any defect the tests fail:\n{output[-4000:]}", flush=True)
        return status == 0

    with ThreadPoolExecutor(jobs) as pool:
        return all(list(pool.map(passes, shares)))


if __name__ == "__main__":
    sys.exit(main())
