"""Encodes an error as an RFC 9457 problem object: the one encoder for HTTP, sockets and pages.

It knows neither Flask nor the application, so that the HTTP server and the WebSocket handshake
refuse in the same form as a view. `ordertrack.web.error_handlers` makes Flask responses of errors.
"""

import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from ordertrack import errors, logs

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "application/problem+json"

STATUS: Final[dict[str, HTTPStatus]] = {
    "invalid_token": HTTPStatus.UNAUTHORIZED,
    "token_expired": HTTPStatus.UNAUTHORIZED,
    "invalid_credentials": HTTPStatus.UNAUTHORIZED,
    "csrf_failed": HTTPStatus.FORBIDDEN,
    "forbidden": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "invalid_transition": HTTPStatus.CONFLICT,
    "conflict": HTTPStatus.CONFLICT,
    "email_taken": HTTPStatus.CONFLICT,
    "version_mismatch": HTTPStatus.PRECONDITION_FAILED,
    "validation_failed": HTTPStatus.UNPROCESSABLE_ENTITY,
    "idempotency_key_reused": HTTPStatus.UNPROCESSABLE_ENTITY,
    "malformed_request": HTTPStatus.BAD_REQUEST,
    "payload_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "upgrade_required": HTTPStatus.UPGRADE_REQUIRED,
    "too_many_requests": HTTPStatus.TOO_MANY_REQUESTS,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}


def problem(error: errors.DomainError, status: HTTPStatus | None = None) -> dict[str, Any]:
    """The problem object of *error*.

    *status* replaces the one of the error's code. Only the HTTP parser needs that: its refusals
    (414, 431, 501, 505 …) share the code ``malformed_request``.
    """
    status = status or STATUS[error.code]
    return {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": error.detail,
        "code": error.code,
        **error.extra,
    }


def encode(error: errors.DomainError, status: HTTPStatus | None = None) -> bytes:
    """The problem object of *error* as JSON, for a body with `CONTENT_TYPE`."""
    text = json.dumps(problem(error, status), separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def headers(error: errors.DomainError) -> list[tuple[str, str]]:
    """The HTTP headers of *error*'s answer, without ``Content-Length``."""
    found = [("Content-Type", CONTENT_TYPE), *error.headers]
    if STATUS[error.code] == HTTPStatus.UNAUTHORIZED:
        found.append(("WWW-Authenticate", "Bearer"))  # RFC 9110, 11.6.1: required with 401
    if "retry_after" in error.extra:
        found.append(("Retry-After", str(error.extra["retry_after"])))
    if error.code == "version_mismatch" and "current" in error.extra:
        found.append(("ETag", f'"{error.extra["current"]}"'))
    return found


def refuse(error: errors.DomainError, start_response: Callable[..., Any]) -> list[bytes]:
    """Answer a WSGI request with *error*: for a handshake, which no Flask view answers."""
    status, body = STATUS[error.code], encode(error)
    start_response(
        f"{status.value} {status.phrase}",
        [*headers(error), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")],
    )
    return [body]


def from_exception(error: Exception) -> errors.DomainError:
    """What the caller may know of *error*: itself, or that something unexpected happened.

    An unexpected exception is logged with its traceback, under the request's id.
    """
    if isinstance(error, errors.DomainError):
        return error
    log.error("unexpected error", exc_info=error)
    reference = logs.request_id()
    detail = "Something went wrong on our side. It has been logged."
    if reference is None:
        return errors.DomainError(detail)
    return errors.DomainError(detail, request_id=reference)
