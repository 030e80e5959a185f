"""Parses what views read from a request (ids, JSON bodies, query parameters, If-Match), and makes
JSON responses.
"""

import re
from datetime import UTC, datetime
from typing import Any, TypeVar

from flask import Request, Response, request
from flask.globals import request_ctx
from pydantic import BaseModel
from werkzeug.routing import BaseConverter

from ordertrack.errors import UnsupportedMediaType, ValidationFailed, VersionMismatch
from ordertrack.schemas import MAX_ID, parse_json, to_json
from ordertrack.web.lean_flask import JsonResponse

AnyForm = TypeVar("AnyForm", bound=BaseModel)

MAX_PAGE = 100  # entries; of the largest ``limit`` that a list takes


class IdConverter(BaseConverter):
    """Converts a decimal id in a path. A number beyond bigint becomes 0, which no row has."""

    regex = "[0-9]{1,19}"

    def to_python(self, value: str) -> int:
        number = int(value)
        return number if number <= MAX_ID else 0


def json_body(form: type[AnyForm]) -> AnyForm:
    """The request's JSON body as *form*.

    Raises `UnsupportedMediaType`, `MalformedRequest`, `ValidationFailed`.
    """
    sent: Request = request_ctx.request  # once: each use of `request` looks it up again
    kind = sent.environ.get("CONTENT_TYPE")  # nearly always just that, without parameters
    if kind != "application/json" and sent.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as application/json.")
    return parse_json(sent.get_data(), form)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JsonResponse(to_json(value), status, headers.items() if headers else ())


def refuse_unknown_arguments(*names: str) -> None:
    """Raise `ValidationFailed` for another query parameter: a typo must not widen a list."""
    for name in request.args:
        if name not in names:
            raise ValidationFailed.at(f"/{name}", "is not a known parameter")
        if "\x00" in request.args[name]:
            raise ValidationFailed.at(f"/{name}", "must not contain the NUL character")


def integer_argument(
    name: str, default: int | None = None, *, low: int = 0, high: int = MAX_ID
) -> Any:
    """A query parameter as a whole number. Raises `ValidationFailed` outside *low* … *high*."""
    raw = request.args.get(name)
    if raw is None:
        return default
    if not re.fullmatch(r"[0-9]{1,19}", raw) or not low <= int(raw) <= high:
        raise ValidationFailed.at(f"/{name}", f"must be a whole number from {low} to {high}")
    return int(raw)


def time_argument(name: str) -> datetime | None:
    """A query parameter as a date or RFC 3339 time, UTC if it has no zone.

    Raises `ValidationFailed`.
    """
    raw = request.args.get(name)
    if not raw:
        return None
    try:
        found = datetime.fromisoformat(raw)
    except ValueError:
        raise ValidationFailed.at(f"/{name}", "must be a date such as 2025-07-28") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def if_match() -> int | None:
    """The version that ``If-Match`` names; None without the header, or for ``*``."""
    raw = request.environ.get("HTTP_IF_MATCH", "").strip()
    if raw in ("", "*"):
        return None
    match = re.fullmatch(r'"([0-9]{1,9})"', raw)
    if match is None:
        # RFC 9110, 13.1.1: an entity tag that is not ours cannot match.
        raise VersionMismatch('If-Match does not name a version; use the ETag, as in "3".')
    return int(match[1])
