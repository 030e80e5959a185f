"""Defines the JSON of requests and answers: request models, and presenters of orders and events.

An order and an event are presented here alone, so that REST, Socket.IO and raw sockets send the
same.
"""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from ordertrack.errors import MalformedRequest, ValidationFailed
from ordertrack.eventlog import Event
from ordertrack.lifecycle import Status
from ordertrack.policy import Role
from ordertrack.services.accounts import Account
from ordertrack.services.order_rows import OrderView
from ordertrack.services.orders import CaughtUp, History
from ordertrack.services.sessions import OpenSession

MAX_ID = 2**63 - 1  # PostgreSQL's bigint
MAX_VERSION = 2**31 - 1  # and its integer
MAX_SUBSCRIPTIONS = 200  # orders in one subscribe call

# --- requests ----------------------------------------------------------------------------------


def _storable(value: str) -> str:
    # PostgreSQL's text cannot hold NUL, and a lone surrogate (JSON may escape one, as \ud800) is no
    # character.
    if "\x00" in value:
        raise ValueError("must not contain the NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode text") from None
    return value


def _address(value: str) -> str:
    # Deliberately loose: only a delivered mail proves an address. RFC 5321 limits it to 254.
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", value) or not value.isprintable():
        raise ValueError("must be an e-mail address such as name@example.org")
    return value


def _id_from_text(value: Any) -> Any:
    """Ids may be decimal strings or numbers."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
        return int(value)
    return value


def _line(longest: int) -> Any:
    return StringConstraints(strip_whitespace=True, min_length=1, max_length=longest)


Id = Annotated[int, BeforeValidator(_id_from_text), Field(ge=1, le=MAX_ID)]
Version = Annotated[int, Field(ge=0, le=MAX_VERSION)]
Name = Annotated[str, _line(100), AfterValidator(_storable)]
Email = Annotated[str, _line(254), AfterValidator(_storable), AfterValidator(_address)]
# NIST SP 800-63B: at least 8 characters of any kind. The upper limit bounds the work of hashing.
Password = Annotated[
    str, StringConstraints(min_length=8, max_length=1024), AfterValidator(_storable)
]
AnyPassword = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Description = Annotated[str, _line(2000), AfterValidator(_storable)]
Note = Annotated[str, _line(500), AfterValidator(_storable)]


class RequestModel(BaseModel):
    """A request body or a form. Unknown fields are refused, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Registration(RequestModel):
    name: Name
    email: Email
    password: Password


class Credentials(RequestModel):
    # Stripped, as at the registration.
    email: Annotated[
        str, StringConstraints(strip_whitespace=True, max_length=254), AfterValidator(_storable)
    ]
    password: AnyPassword


class PasswordChange(RequestModel):
    current_password: AnyPassword
    new_password: Password


class PasswordReset(RequestModel):
    token: Annotated[str, StringConstraints(max_length=1000)]
    password: Password


class OrderDescription(RequestModel):
    description: Description


class StatusChange(RequestModel):
    status: Annotated[Status, Field(strict=False)]
    note: Note | None = None


class DriverAssignment(RequestModel):
    driver_id: Id | None


class UserChange(RequestModel):
    role: Annotated[Role, Field(strict=False)] | None = None
    active: bool | None = None


class Subscription(RequestModel):
    """One order to watch, and the last version of it that the client has seen."""

    order_id: Id
    after: Version | None = None


class Subscriptions(RequestModel):
    orders: Annotated[list[Subscription], Field(min_length=1, max_length=MAX_SUBSCRIPTIONS)]


class Unsubscription(Subscription):
    """An order to watch no longer; clients may send the same object as to watch it."""


class TokenRenewal(RequestModel):
    token: str


Model = TypeVar("Model", bound=BaseModel)


def parse_json(body: bytes, model: type[Model]) -> Model:
    """Read *body* as *model*. Raises `MalformedRequest` (not JSON) or `ValidationFailed`."""
    try:
        text = body.decode("utf-8")
        value = _decode(text)
    except UnicodeDecodeError as error:
        raise MalformedRequest("The body is not valid UTF-8.") from error
    except RecursionError as error:
        raise MalformedRequest("The body is nested too deeply.") from error
    except ValueError as error:
        raise MalformedRequest(f"The body is not valid JSON: {error}.") from error
    return parse(value, model)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # RFC 8259 leaves the meaning of repeated names open, so two readers may see two requests.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


# Made once: json.loads makes one for each call that has options.
_decode = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique).decode


def parse(value: Any, model: type[Model]) -> Model:
    """Read an already decoded value as *model*. Raises `ValidationFailed`, naming each field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ValidationFailed(
            "The request is not of the required form.",
            [
                {"pointer": _pointer(entry["loc"]), "message": _message(entry)}
                for entry in error.errors(include_url=False, include_input=False)
            ],
        ) from error


def _pointer(location: tuple[int | str, ...]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def _message(entry: Any) -> str:
    if entry["type"] == "extra_forbidden":
        return "is not a known field"
    if entry["type"] == "model_type":  # pydantic's own text names our class
        return "must be an object"
    message: str = entry["msg"]
    return message.removeprefix("Value error, ")


# --- cursors -----------------------------------------------------------------------------------


def encode_cursor(order_id: int) -> str:
    """The opaque cursor of the page after this order, newest first."""
    return urlsafe_b64encode(b"o%d" % order_id).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """The order's id. Raises `ValidationFailed` for anything that `encode_cursor` did not make."""
    try:
        match = re.fullmatch(
            rb"o([0-9]{1,19})", urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        )
    except ValueError:
        match = None
    if match is None or int(match[1]) > MAX_ID:
        raise ValidationFailed.at("/cursor", "is not a cursor of this server; start without one")
    return int(match[1])


# --- answers -----------------------------------------------------------------------------------


def present_time(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds. *moment* is in UTC: all connections are set to it."""
    return moment.isoformat(timespec="milliseconds")[:23] + "Z"


def present_account(account: Account) -> dict[str, Any]:
    return {
        "id": str(account.id),
        "name": account.name,
        "email": account.email,
        "role": account.role.value,
        "active": account.active,
        "created_at": present_time(account.created_at),
    }


def present_session(session: OpenSession) -> dict[str, Any]:
    return {
        "id": str(session.id),
        "user_agent": session.user_agent,
        "created_at": present_time(session.created_at),
        "expires_at": present_time(session.expires_at),
        "is_current": session.is_current,
    }


def _person(id: int | None, name: str | None) -> dict[str, Any] | None:
    return None if id is None else {"id": str(id), "name": name}


def present_order(order: OrderView) -> dict[str, Any]:
    return {
        "id": str(order.id),
        "description": order.description,
        "status": order.status.value,
        "version": order.version,
        "customer": _person(order.customer_id, order.customer_name),
        "driver": _person(order.driver_id, order.driver_name),
        "created_at": present_time(order.created_at),
        "updated_at": present_time(order.updated_at),
        "next_statuses": [status.value for status in order.next_statuses],
    }


def present_event(event: Event) -> dict[str, Any]:
    """An event, the same everywhere. ``changes`` is there when more than the status changed."""
    shown: dict[str, Any] = {
        "order_id": str(event.order_id),
        "version": event.version,
        "type": event.type,
        "status": event.status,
        "previous_status": event.previous_status,
        "actor": {"id": str(event.actor_id), "name": event.actor_name, "role": event.actor_role},
        "note": event.note,
        "updated_at": present_time(event.created_at),
    }
    if event.changes is not None:
        shown["changes"] = event.changes
    return shown


def present_history(history: History) -> dict[str, Any]:
    return {
        "events": [present_event(event) for event in history.events],
        "version": history.version,
        "has_more": history.has_more,
    }


def present_catch_up(caught_up: CaughtUp) -> dict[str, Any]:
    """The acknowledgement of a subscription."""
    shown: dict[str, Any] = {
        "ok": True,
        "order": present_order(caught_up.order),
        "version": caught_up.version,
        "events": [present_event(event) for event in caught_up.events],
    }
    if caught_up.reset:
        shown["reset"] = True
        shown["reset_reason"] = caught_up.reset.value
    return shown


# Made once: json.dumps makes one for each call.
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def to_json(value: Any) -> str:
    """Compact JSON text, UTF-8 characters as they are."""
    return _encode(value)
