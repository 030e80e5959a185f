"""The application on plain Flask, without what `ordertrack.web.lean_flask` leaves out.

With TEST_FLASK=plain in the environment all tests use it, and their servers start
tests/web/plain_server.py instead of wsgi.py: ``TEST_FLASK=plain sh scripts/test tests/web``.
"""

import os
from collections.abc import Iterable
from typing import Any

from flask import Flask, Response

from ordertrack import app as application
from ordertrack.web import parsing


def response(text: str, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Response:
    return Response(text, status, [*headers], content_type="application/json")


# Parts of the application, and what is in their place.
PLAIN: tuple[tuple[Any, str, Any], ...] = (
    (application, "LeanFlask", Flask),
    (parsing, "JsonResponse", response),
)


def wanted() -> bool:
    return os.environ.get("TEST_FLASK") == "plain"


def use() -> None:
    """Let every application that is made from now on be one of plain Flask."""
    for module, name, plain in PLAIN:
        setattr(module, name, plain)
