"""Answers every exception that reaches Flask: as an HTML page for browsers, else as a problem."""

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from ordertrack import errors, problems
from ordertrack.web.pages.errors import error_page


def init_app(app: Flask) -> None:
    """Handle all exceptions of *app*'s views, and Werkzeug's own (routing, body size …)."""

    @app.errorhandler(Exception)
    def handle(error: Exception) -> Response:
        if isinstance(error, HTTPException):
            if error.code is not None and error.code < 400:  # a redirect of the routing
                return Response(status=error.code, headers=error.get_headers())
            error = _from_werkzeug(error)
        shown = problems.from_exception(error)
        if _wants_html():
            return error_page(shown)
        body, status = problems.encode(shown), problems.STATUS[shown.code]
        return Response(body, status, problems.headers(shown))


def _from_werkzeug(error: HTTPException) -> Exception:
    """The `DomainError` that says the same; *error* itself if there is none: it is unexpected."""
    match error.code:
        case 404:
            return errors.NotFound("There is nothing at this address.")
        case 405:
            allowed = error.get_response().headers.get("Allow", "")
            return errors.MethodNotAllowed(
                "This address does not answer that method.", headers=[("Allow", allowed)]
            )
        case 413:
            return errors.PayloadTooLarge("The request body is too large.")
        case 415:
            return errors.UnsupportedMediaType("Send the body as application/json.")
        case 429:
            return errors.TooManyRequests("Too many requests. Slow down.", retry_after=1)
        case code if code is not None and 400 <= code < 500:
            return errors.MalformedRequest(error.description or "The request is malformed.")
    return error


def _wants_html() -> bool:
    if request.path.startswith(("/api/", "/ws/", "/socket.io")):
        return False
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
