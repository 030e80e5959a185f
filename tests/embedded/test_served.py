"""The server on its embedded PostgreSQL, with nothing set but DATA_DIR."""

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import running_server
from tests.support.waiting import eventually


@pytest.fixture
def data_dir() -> Iterator[Path]:
    # Not tmp_path: pytest closes its folders to others, and for root another user runs PostgreSQL.
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-test-"))
    yield folder
    shutil.rmtree(folder)


def test_a_killed_postgresql_is_restarted_without_losing_events(data_dir: Path) -> None:
    with running_server("", JWT_SECRET="", DATA_DIR=str(data_dir)) as server:
        written = {"name": "Chandra", "email": "chandra@example.org", "password": "a long password"}
        assert server.api.post("/api/register", json=written).status_code == 201
        postmaster = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])

        os.kill(postmaster, signal.SIGKILL)

        credentials = {"email": written["email"], "password": written["password"]}
        eventually(lambda: server.api.get("/readyz").status_code == 503)
        eventually(lambda: server.api.get("/readyz").status_code == 200, 60)
        assert server.api.post("/api/login", json=credentials).status_code == 200
        assert server.terminate() == 0


def test_a_second_start_keeps_the_data_and_the_sessions(data_dir: Path) -> None:
    settings = {"JWT_SECRET": "", "DATA_DIR": str(data_dir)}
    with running_server("", **settings) as first:
        written = {"name": "Chandra", "email": "chandra@example.org", "password": "a long password"}
        first.api.post("/api/register", json=written)
        credentials = {"email": written["email"], "password": written["password"]}
        token = first.api.post("/api/login", json=credentials).json()["access_token"]
        assert re.search(rf"data +{re.escape(str(data_dir))} \(embedded", first.log)
        assert first.terminate() == 0

    with running_server("", **settings) as second:
        answer = second.api.get("/api/me", headers={"Authorization": f"Bearer {token}"})
        assert answer.json()["email"] == written["email"]
        assert second.terminate() == 0
