"""wsgi.py on plain Flask: see tests/support/plain_flask.py."""

# ruff: noqa: E402 (patched before everything else, as wsgi.py does it)
import warnings

warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")

import eventlet

eventlet.monkey_patch()

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.support import plain_flask

if __name__ == "__main__":
    plain_flask.use()
    runpy.run_path(str(ROOT / "wsgi.py"), run_name="__main__")
