"""Runs a command with a temporary PostgreSQL: python scripts/_with_postgres.py BINARIES COMMAND…

BINARIES is the folder with initdb and pg_ctl. The server listens on a Unix socket in a temporary
folder. TEST_DB_DSN tells the command where; the command's exit code is also this program's.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


def main(binaries: str, *command: str) -> int:
    # PostgreSQL does not run as root. The operating system's package creates the user `postgres`.
    owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())

    folder = Path(tempfile.mkdtemp(prefix="ordertrack-postgres-"))
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    cluster = folder / "cluster"

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [f"{binaries}/{program}", "--pgdata", str(cluster), *arguments],
            check=True,
            cwd=folder,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            user=owner.pw_uid if os.geteuid() == 0 else None,
            group=owner.pw_gid if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
            stdout=subprocess.DEVNULL,
        )

    # Without fsync: the data is temporary, and the tests do not see the difference.
    options = f"-c listen_addresses= -c max_connections=200 -c fsync=off -k {folder}"
    # Ctrl-C in a terminal reaches the command as well: it ends, and then this program cleans up.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8",
            "--locale=C.UTF-8", "--no-sync")  # fmt: skip
        run("pg_ctl", "start", "--wait", "--log", str(folder / "log"), "--options", options)
        try:
            dsn = f"host={folder} port=5432 user=postgres dbname=postgres"
            environ = os.environ | {"TEST_DB_DSN": dsn}
            return subprocess.run(command, check=False, env=environ).returncode
        finally:
            run("pg_ctl", "stop", "--wait", "--mode=immediate")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
