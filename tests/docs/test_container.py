"""The Containerfile copies every file that a server needs; checked without a container engine."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.http import Api, OverTheWire
from tests.support.servers import ROOT, environment
from tests.support.waiting import eventually

CONTAINERFILE = (ROOT / "Containerfile").read_text(encoding="utf-8")
COPIED = re.findall(r"^COPY (\S+) \S+$", CONTAINERFILE, re.MULTILINE)


def test_what_is_copied_is_enough_to_serve(
    fresh_database: Callable[[], str], tmp_path: Path
) -> None:
    for name in COPIED:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, tmp_path / name)
    server = subprocess.Popen(
        [sys.executable, "wsgi.py"],
        cwd=tmp_path,
        env=environment(fresh_database(), PYTHONDONTWRITEBYTECODE="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        announced = re.search(r"http://localhost:\d+", server.stdout.readline())
        assert announced is not None
        transport = OverTheWire(announced[0])
        eventually(lambda: Api(transport).get("/readyz").status_code == 200)
        assert Api(transport).get("/login").status_code == 200  # with its templates
        transport.close()
    finally:
        server.kill()
        server.communicate()


def test_what_is_copied_is_what_may_be_sent_to_the_engine() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert re.findall(r"^!(\S+)$", ignored, re.MULTILINE) == COPIED
