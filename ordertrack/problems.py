"""Errors to answers: RFC 9457 problem objects, the same for REST, pages and sockets."""

import logging
from http import HTTPStatus
from typing import Any, Final

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException

from ordertrack import errors, logs
from ordertrack.schemas import to_json

log = logging.getLogger(__name__)

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
    "too_many_requests": HTTPStatus.TOO_MANY_REQUESTS,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}


def problem(error: errors.DomainError) -> dict[str, Any]:
    """The problem object of *error*."""
    status = STATUS[error.code]
    return {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": error.detail,
        "code": error.code,
        **error.extra,
    }


def from_exception(error: Exception) -> errors.DomainError:
    """What the caller may know of *error*; what it may not is logged."""
    if isinstance(error, errors.DomainError):
        return error
    if isinstance(error, HTTPException):
        return _from_http(error)
    return _unexpected(error)


def _unexpected(error: Exception) -> errors.DomainError:
    log.error("unexpected error", exc_info=error)
    reference = logs.request_id()
    extra = {} if reference is None else {"request_id": reference}
    return errors.DomainError("Something went wrong on our side. It has been logged.", **extra)


def _from_http(error: HTTPException) -> errors.DomainError:
    """Werkzeug's own refusals (routing, body size, broken requests) in our vocabulary."""
    match error.code:
        case 404:
            return errors.NotFound("There is nothing at this address.")
        case 405:
            return errors.MethodNotAllowed("This address does not answer that method.")
        case 413:
            return errors.PayloadTooLarge("The request body is too large.")
        case 415:
            return errors.UnsupportedMediaType("Send the body as application/json.")
        case 429:
            return errors.TooManyRequests("Too many requests. Slow down.", retry_after=1)
        case code if code is not None and 400 <= code < 500:
            return errors.MalformedRequest(error.description or "The request is malformed.")
    return _unexpected(error)


def answer(error: errors.DomainError) -> Response:
    """*error* as an HTTP answer with a problem+json body."""
    body = problem(error)
    response = Response(
        to_json(body), status=body["status"], content_type="application/problem+json"
    )
    if body["status"] == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if "retry_after" in body:
        response.headers["Retry-After"] = str(body["retry_after"])
    if "current" in body and error.code == "version_mismatch":
        response.headers["ETag"] = f'"{body["current"]}"'
    return response


def init_app(app: Flask) -> None:
    """Every error that reaches Flask leaves as a problem; pages may show theirs as HTML."""

    @app.errorhandler(Exception)
    def handle(error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.code is not None and error.code < 400:
            return Response(status=error.code, headers=error.get_headers())
        translated = from_exception(error)
        page = current_app.extensions.get("ordertrack_error_page")
        if page is not None and _wants_html():
            shown: Response = page(translated)
        else:
            shown = answer(translated)
        if isinstance(error, HTTPException) and error.code == HTTPStatus.METHOD_NOT_ALLOWED:
            shown.headers["Allow"] = error.get_response().headers.get("Allow", "")
        return shown


def _wants_html() -> bool:
    if request.path.startswith(("/api/", "/ws/", "/socket.io")):
        return False
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
