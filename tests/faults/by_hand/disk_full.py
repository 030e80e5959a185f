"""The database's disk fills up: 503 and reads work, and all is well when there is space again.

    sudo python -m tests.faults.by_hand.disk_full

Needs root, for a small tmpfs. Fills the disk beside the tables, so that the next file that grows
cannot; PostgreSQL refuses what it cannot write (53100), or ends when it is its own log that cannot
grow, and recovers when there is space.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from ordertrack import embedded
from tests.faults.cluster import Cluster
from tests.support.servers import running_server
from tests.support.waiting import eventually

DISK = "200m"


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-disk-"))
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], check=True)
    try:
        folder.chmod(0o755)
        with embedded.start(folder) as running:
            return scenario(Cluster(running), folder)
    finally:
        subprocess.run(["/bin/umount", "-l", folder], check=True)
        folder.rmdir()


def scenario(cluster: Cluster, folder: Path) -> int:
    with running_server(cluster.dsn) as server:
        admin = server.people.admin()
        order = admin.order()
        ballast = folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(65_536))
            except OSError:
                print(f"full: {os.fstat(file.fileno()).st_size / 1e6:.0f} MB of ballast")
        answers: Counter[str] = Counter()
        reads: Counter[int] = Counter()
        for number in range(3000):
            text = f"{number} " + "x" * 1900
            answer = admin.api.patch(f"/api/orders/{order['id']}", json={"description": text})
            answers[f"{answer.status_code} {answer.code or ''}"] += 1
            if answer.status_code == 503:
                reads[admin.api.get(f"/api/orders/{order['id']}").status_code] += 1
                if answers["503 unavailable"] >= 50:
                    break
        print(f"writes: {dict(answers)}; reads meanwhile: {dict(reads)}")
        ballast.unlink()
        cluster.ensure_running()
        eventually(lambda: server.api.get("/readyz").status_code == 200, 10)
        admin.edit(order, "there is space again")
        trail = admin.history(order)
        dense = [event["version"] for event in trail] == list(range(1, len(trail) + 1))
        acknowledged = answers["200 "]
        print(f"{acknowledged} acknowledged, {len(trail) - 2} in the log, dense: {dense}")
        good = (
            dense and set(answers) <= {"200 ", "503 unavailable"} and len(trail) - 2 >= acknowledged
        )
        return 0 if good and answers["503 unavailable"] else 1


if __name__ == "__main__":
    sys.exit(main())
