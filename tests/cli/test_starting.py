"""What cannot start says why, in words: the command line and the server alike."""

import os
import subprocess
import sys

import pytest

from tests.support.databases import JWT_SECRET
from tests.support.servers import ROOT

SERVER = ("wsgi.py",)
COMMAND = ("-m", "flask", "--app", "wsgi", "users", "list")

NOBODY_THERE = "host=127.0.0.1 port=1 user=me password=very-secret dbname=orders"


@pytest.mark.safety("unsafe-settings")
@pytest.mark.parametrize("arguments", [SERVER, COMMAND], ids=["server", "command line"])
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"DB_DSN": NOBODY_THERE}, "JWT_SECRET must be set"),
        ({"DB_DSN": NOBODY_THERE, "JWT_SECRET": JWT_SECRET}, "DB_DSN names a database that cannot"),
        ({"PORT": "http"}, "PORT must be a whole number"),
    ],
    ids=["no secret", "no database", "no number"],
)
def test_the_setting_is_named_without_a_traceback(
    arguments: tuple[str, ...], settings: dict[str, str], told: str
) -> None:
    ran = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PORT": "0", **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert told in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "very-secret" not in ran.stderr
    assert ran.stdout == ""
