"""One PostgreSQL per data directory, also where the processes of others cannot be seen."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ordertrack import embedded
from tests.embedded.test_embedded import (
    DEADLINE,
    Holder,
    data_dir,
    made,
    postmasters,
    query,
    stopped,
)
from tests.support.missing import NO_NAMESPACES, needs_root, program
from tests.support.waiting import eventually

__all__ = ["data_dir", "made", "stopped"]  # fixtures

ELSEWHERE = ["unshare", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]


pytestmark = needs_root


@contextmanager
def in_another_container(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the embedded database, with process ids of its own."""
    program("unshare", "apt install util-linux")
    tried = subprocess.run([*ELSEWHERE, "true"], check=False, capture_output=True)
    if tried.returncode:
        pytest.skip(NO_NAMESPACES)
    process = subprocess.Popen(
        [*ELSEWHERE, sys.executable, "-W", "ignore", "-c", Holder.PROGRAM, str(folder), "plain"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip()
        yield process
    finally:
        if process.poll() is None:
            process.communicate(timeout=DEADLINE)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What each look at whether PostgreSQL lives has found."""
    found: list[bool] = []
    look = embedded._Cluster._postmaster_lives

    def noted(cluster: embedded._Cluster) -> bool:
        found.append(look(cluster))
        return found[-1]

    monkeypatch.setattr(embedded._Cluster, "_postmaster_lives", noted)
    return found


def test_a_postgresql_in_another_container_is_waited_for_and_none_started_beside(
    stopped: Path, looks: list[bool]
) -> None:
    with in_another_container(stopped), ThreadPoolExecutor() as pool:
        [postmaster] = postmasters(stopped)
        postmaster.suspend()  # as one that recovers, or stands in a long queue for the disk
        try:
            starting = pool.submit(embedded.start, stopped)
            eventually(lambda: len(looks) >= 2 or starting.done())
            assert postmasters(stopped) == [postmaster]
        finally:
            postmaster.resume()
        with starting.result(DEADLINE) as postgres:
            assert query(postgres.dsn, "SELECT 1") == 1
            assert postmasters(stopped) == [postmaster]
    assert set(looks) == {True}


def test_the_last_one_to_leave_signals_nobody_who_only_has_the_id(stopped: Path) -> None:
    postgres = embedded.start(stopped)
    pid_file = stopped / "postgres" / "postmaster.pid"
    owner = (stopped / "postgres").stat().st_uid
    with subprocess.Popen(["/bin/sleep", "1000"], user=owner) as stranger:
        lines = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        postgres.stop()
        assert stranger.poll() is None
        stranger.kill()
    assert len(postmasters(stopped)) == 1
