"""What the JSON views share: bodies, ids, query parameters, preconditions, answers."""

import re
from datetime import UTC, datetime
from typing import Any, TypeVar

from flask import Response, request
from pydantic import BaseModel
from werkzeug.routing import BaseConverter

from ordertrack.config import Settings
from ordertrack.errors import (
    UnsupportedMediaType,
    ValidationFailed,
    VersionMismatch,
)
from ordertrack.extensions import state
from ordertrack.schemas import MAX_ID, parse_json, to_json

AnyForm = TypeVar("AnyForm", bound=BaseModel)

MAX_PAGE = 100


class IdConverter(BaseConverter):
    """A decimal id. One that PostgreSQL's bigint cannot hold becomes 0, which no row has."""

    regex = "[0-9]{1,19}"

    def to_python(self, value: str) -> int:
        number = int(value)
        return number if number <= MAX_ID else 0


def settings() -> Settings:
    return state().settings


def body(form: type[AnyForm]) -> AnyForm:
    """The request's JSON body as *form*."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the body as application/json.")
    return parse_json(request.get_data(), form)


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, content_type="application/json")


def known_arguments(*names: str) -> None:
    """Refuse query parameters that this address does not know: a typo must not widen a list."""
    for name in request.args:
        if name not in names:
            raise ValidationFailed.at(f"/{name}", "is not a known parameter")
        if "\x00" in request.args[name]:
            raise ValidationFailed.at(f"/{name}", "must not contain the NUL character")


def integer(name: str, default: int | None = None, *, low: int = 0, high: int = MAX_ID) -> Any:
    """A whole number among the query parameters. Raises `ValidationFailed` outside low … high."""
    raw = request.args.get(name)
    if raw is None:
        return default
    if not re.fullmatch(r"[0-9]{1,19}", raw) or not low <= int(raw) <= high:
        raise ValidationFailed.at(f"/{name}", f"must be a whole number from {low} to {high}")
    return int(raw)


def moment(name: str) -> datetime | None:
    """A date or an RFC 3339 time among the query parameters; UTC where it names no zone."""
    raw = request.args.get(name)
    if not raw:
        return None
    try:
        found = datetime.fromisoformat(raw)
    except ValueError:
        raise ValidationFailed.at(f"/{name}", "must be a date such as 2025-07-28") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def if_match() -> int | None:
    """The version that ``If-Match`` demands; None when the header is absent or ``*``."""
    raw = request.headers.get("If-Match", "").strip()
    if raw in ("", "*"):
        return None
    match = re.fullmatch(r'"([0-9]{1,9})"', raw)
    if match is None:
        # RFC 9110, 13.1.1: an entity tag that is not ours cannot match.
        raise VersionMismatch('If-Match does not name a version; use the ETag, as in "3".')
    return int(match[1])
