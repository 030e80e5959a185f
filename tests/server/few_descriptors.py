"""Runs wsgi.py with a limit of FEW_DESCRIPTORS on open files, as under `ulimit -n`.

FEW_PER_ADDRESS is the number of waiting connections that one address may have.
"""

# ruff: noqa: E402 (patched before everything else, as wsgi.py does it)
import sys
from pathlib import Path

import eventlet

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ordertrack import eventlet_hub

eventlet_hub.install()
eventlet.monkey_patch()

import os
import resource
import runpy

from ordertrack.server import waiting_connections

waiting_connections.MAX_PER_ADDRESS = int(
    os.environ.get("FEW_PER_ADDRESS", waiting_connections.MAX_PER_ADDRESS)
)
few = int(os.environ["FEW_DESCRIPTORS"])
resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))
runpy.run_path(str(ROOT / "wsgi.py"), run_name="__main__")
