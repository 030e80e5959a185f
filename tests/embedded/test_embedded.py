"""The embedded PostgreSQL: made once, shared, stopped by the last, back after anything dies."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import psutil
import psycopg2
import pytest

from ordertrack import embedded
from ordertrack.embedded import EmbeddedError
from tests.support.missing import needs_root, not_as_root
from tests.support.waiting import eventually

DEADLINE = 30

BUSY = """
    SELECT count(*) FROM pg_stat_activity
    WHERE state = 'active' AND query LIKE '%END LOOP%' AND pid <> pg_backend_pid()
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not tmp_path: pytest closes its folders to others, and for root another user runs PostgreSQL.
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-test-"))
    yield folder
    for process in postmasters(folder):
        process.terminate()
        process.wait(DEADLINE)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A data directory with a stopped cluster, to copy: making one takes most of a second."""
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-test-"))
    embedded.start(folder).stop()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def stopped(data_dir: Path, made: Path) -> Path:
    """A data directory of the test's own, with a cluster that does not run."""
    for part in made.iterdir():
        command = ["/bin/cp", "-a", str(part), str(data_dir)]  # keeps owners, which shutil does not
        subprocess.run(command, check=True)
    return data_dir


def postmasters(folder: Path) -> list[psutil.Process]:
    clusters = {str(path) for path in folder.iterdir() if path.name.startswith("postgres")}
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"]
        and Path(process.info["cmdline"][0]).name == "postgres"
        and clusters & set(process.info["cmdline"])
    ]


def query(dsn: str, sql: str) -> object:
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        row = cursor.fetchone() if cursor.description else None
        connection.commit()
        return row[0] if row else None


class Holder:
    """Another process that has the embedded database running, as a server has."""

    PROGRAM = """
import sys
from pathlib import Path
if sys.argv[2] == "patched":
    import eventlet
    eventlet.monkey_patch()
from ordertrack import embedded
postgres = embedded.start(Path(sys.argv[1]))
print(postgres.dsn, flush=True)
sys.stdin.read()
postgres.stop()
"""

    def __init__(self, data_dir: Path, *, patched: bool = False) -> None:
        flag = "patched" if patched else "plain"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", self.PROGRAM, str(data_dir), flag],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def dsn(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)


@pytest.fixture
def hold(data_dir: Path) -> Iterator[Callable[..., Holder]]:
    holders: list[Holder] = []

    def begin(*, patched: bool = False) -> Holder:
        holders.append(Holder(data_dir, patched=patched))
        return holders[-1]

    yield begin
    for each in holders:
        each.kill()


# Starting and stopping ----------------------------------------------------------------------------


def test_a_first_start_makes_a_durable_database_that_listens_on_no_network(data_dir: Path) -> None:
    with embedded.start(data_dir) as postgres:
        assert query(postgres.dsn, "SELECT current_database() || ' ' || current_user") == (
            "ordertrack ordertrack"
        )
        assert query(postgres.dsn, "SELECT lower('ÄÉ') || (E'a' < 'B')::text") == "äéfalse"
        for setting, wanted in {
            "listen_addresses": "",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "max_connections": str(embedded.MAX_CONNECTIONS),
            "server_encoding": "UTF8",
            "timezone": "UTC",
        }.items():
            assert query(postgres.dsn, f"SHOW {setting}") == wanted, setting
    assert not postmasters(data_dir)


def test_the_role_of_the_application_is_no_superuser(stopped: Path) -> None:
    with embedded.start(stopped) as postgres:
        is_superuser = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
        assert query(postgres.dsn, is_superuser) is False
        assert query(postgres.superuser_dsn, is_superuser) is True
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            query(postgres.dsn, "SET session_replication_role = replica")


def test_only_the_owner_gets_to_the_socket_and_the_data(stopped: Path) -> None:
    with embedded.start(stopped):
        assert (stopped / "postgres").stat().st_mode & 0o777 == 0o700


def test_a_second_start_keeps_the_data(stopped: Path) -> None:
    with embedded.start(stopped) as postgres:
        query(postgres.dsn, "CREATE TABLE kept (n int)")
    with embedded.start(stopped) as postgres:
        assert query(postgres.dsn, "SELECT count(*) FROM kept") == 0


def test_stopping_twice_is_stopping_once(stopped: Path) -> None:
    postgres = embedded.start(stopped)
    postgres.stop()
    postgres.stop()
    assert not postmasters(stopped)


def test_a_folder_may_have_any_sensible_name(data_dir: Path, stopped: Path) -> None:
    odd = data_dir / "it's Zoë’s (folder)"
    odd.mkdir()
    data_dir.chmod(0o711)
    (stopped / "postgres").rename(odd / "postgres")
    with embedded.start(odd) as postgres:
        assert query(postgres.dsn, "SELECT 1") == 1
        assert len(postmasters(odd)) == 1


def test_settings_of_another_server_in_the_environment_do_not_lead_astray(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGDATA"):
        monkeypatch.setenv(name, "5999")
    with embedded.start(stopped) as postgres:
        assert query(postgres.dsn, "SELECT 1") == 1


# Sharing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched by eventlet"])
def test_processes_share_one_postgresql_and_the_last_one_stops_it(
    stopped: Path, hold: Callable[..., Holder], patched: bool
) -> None:
    first, second = hold(patched=patched), hold(patched=patched)
    assert first.dsn() == second.dsn()
    [postmaster] = postmasters(stopped)
    first.end()
    assert postmaster.is_running()
    second.end()
    assert not postmasters(stopped)


def test_many_first_starts_at_once_make_one_cluster(
    data_dir: Path, hold: Callable[..., Holder]
) -> None:
    holders = [hold() for _ in range(3)]
    assert len({each.dsn() for each in holders}) == 1
    assert len(postmasters(data_dir)) == 1
    with ThreadPoolExecutor() as pool:
        list(pool.map(Holder.end, holders))
    assert not postmasters(data_dir)


# Whatever dies ------------------------------------------------------------------------------------


def test_a_killed_server_leaves_postgresql_to_the_next_one_who_stops_it(
    stopped: Path, hold: Callable[..., Holder]
) -> None:
    first = hold()
    first.dsn()
    [postmaster] = postmasters(stopped)
    first.kill()
    assert postmaster.is_running()
    second = hold()
    second.dsn()
    assert postmasters(stopped) == [postmaster]
    second.end()
    assert not postmasters(stopped)


def test_what_was_committed_survives_a_kill_of_all_of_postgresql(stopped: Path) -> None:
    postgres = embedded.start(stopped)
    query(postgres.dsn, "CREATE TABLE kept AS SELECT 7 AS n")
    kill_all(stopped)
    with embedded.start(stopped) as again:
        assert query(again.dsn, "SELECT n FROM kept") == 7
        postgres.stop()


def test_a_running_server_brings_a_killed_postgresql_back(stopped: Path) -> None:
    with embedded.start(stopped) as postgres:
        kill_all(stopped)
        postgres.ensure_running()
        assert query(postgres.dsn, "SELECT 1") == 1


def test_a_killed_postmaster_whose_backends_linger_comes_back(stopped: Path) -> None:
    with embedded.start(stopped) as postgres:
        [postmaster] = postmasters(stopped)
        with ThreadPoolExecutor() as pool:
            endless = "SET statement_timeout = '1s'; DO 'BEGIN LOOP END LOOP; END'"
            lingers = pool.submit(query, postgres.dsn, endless)
            eventually(lambda: query(postgres.superuser_dsn, BUSY))
            postmaster.kill()
            postmaster.wait(DEADLINE)
            postgres.ensure_running()
            assert isinstance(lingers.exception(), psycopg2.Error)
        assert query(postgres.dsn, "SELECT 1") == 1


def kill_all(folder: Path) -> None:
    [postmaster] = postmasters(folder)
    family = [postmaster, *postmaster.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):  # it saw the postmaster end, and went by itself
            process.kill()
    psutil.wait_procs(family, DEADLINE)


@pytest.mark.parametrize("state", [psutil.STATUS_SLEEPING, psutil.STATUS_ZOMBIE])
def test_a_stranger_with_the_process_id_of_a_dead_postgresql_is_no_obstacle(
    stopped: Path, state: str
) -> None:
    postgres = embedded.start(stopped)
    pid_file = stopped / "postgres" / "postmaster.pid"
    kill_all(stopped)
    lines = pid_file.read_text().splitlines()
    owner = (stopped / "postgres").stat().st_uid
    seconds = "1000" if state == psutil.STATUS_SLEEPING else "0"
    user = owner if os.geteuid() == 0 else None
    with subprocess.Popen(["/bin/sleep", seconds], user=user) as stranger:
        eventually(lambda: psutil.Process(stranger.pid).status() == state)
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        postgres.ensure_running()
        assert query(postgres.dsn, "SELECT 1") == 1
        stranger.kill()
    postgres.stop()


def test_a_first_start_that_was_killed_half_way_is_begun_anew(data_dir: Path) -> None:
    half = data_dir / "postgres.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    with embedded.start(data_dir) as postgres:
        assert query(postgres.dsn, "SELECT 1") == 1
    assert not half.exists()


def test_a_server_that_is_stopped_while_another_starts_leaves_it_a_running_database(
    stopped: Path, hold: Callable[..., Holder]
) -> None:
    for _ in range(3):
        first = hold()
        first.dsn()
        second = hold()
        first.end()
        assert query(second.dsn(), "SELECT 1") == 1
        second.end()


# Errors say what to do ----------------------------------------------------------------------------


def start_fails(data_dir: Path) -> str:
    with pytest.raises(EmbeddedError) as failure:
        embedded.start(data_dir)
    return str(failure.value)


def test_data_of_another_release_is_left_alone_and_the_reason_told(stopped: Path) -> None:
    (stopped / "postgres" / "PG_VERSION").write_text("12\n")
    told = start_fails(stopped)
    assert "initialized by PostgreSQL version 12" in told
    assert "DB_DSN" in told


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    assert "too long" in start_fails(long)
    assert not long.exists()


def test_a_file_in_the_place_of_the_data_directory_is_named(data_dir: Path) -> None:
    file = data_dir / "file"
    file.write_text("")
    assert str(file) in start_fails(file)


@not_as_root
def test_a_folder_that_one_may_not_write_is_named(data_dir: Path) -> None:
    data_dir.chmod(0o500)
    told = start_fails(data_dir / "inside")
    assert str(data_dir) in told
    assert "DATA_DIR" in told
    data_dir.chmod(0o700)


@needs_root
def test_root_is_told_when_the_user_of_postgresql_cannot_get_there(data_dir: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    told = start_fails(closed / "data")
    assert str(closed) in told
    assert "DATA_DIR" in told
    assert closed.stat().st_mode & 0o777 == 0o700, "root's folders stay as closed as they were"


@needs_root
def test_root_runs_an_existing_cluster_as_its_owner(stopped: Path) -> None:
    subprocess.run(["/bin/chown", "-R", "nobody:nogroup", str(stopped / "postgres")], check=True)
    with embedded.start(stopped) as postgres:
        assert query(postgres.dsn, "SELECT 1") == 1
        assert {process.username() for process in postmasters(stopped)} == {"nobody"}


# The secret ---------------------------------------------------------------------------------------


def test_a_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    secret = embedded.load_or_create_secret(tmp_path)
    assert len(secret) >= 64
    assert embedded.load_or_create_secret(tmp_path) == secret
    assert [(file.name, file.stat().st_mode & 0o777) for file in tmp_path.iterdir()] == [
        ("jwt_secret", 0o600)
    ]


def test_processes_that_make_a_secret_at_once_agree_on_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ordertrack import embedded;"
        "sys.stdin.readline(); print(embedded.load_or_create_secret(Path(sys.argv[1])))"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert len({racer.communicate("go\n", timeout=DEADLINE)[0] for racer in racers}) == 1


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    embedded.load_or_create_secret(tmp_path)
    (tmp_path / "jwt_secret").chmod(0o640)
    with pytest.raises(EmbeddedError, match="chmod 600"):
        embedded.load_or_create_secret(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 64])
def test_a_damaged_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jwt_secret"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(EmbeddedError, match="jwt_secret"):
        embedded.load_or_create_secret(tmp_path)


def test_secrets_differ(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert embedded.load_or_create_secret(tmp_path / "a") != embedded.load_or_create_secret(
        tmp_path / "b"
    )
