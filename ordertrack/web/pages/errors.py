"""Shows errors as HTML pages: what happened, and what the visitor can do next."""

from typing import Final
from urllib.parse import quote, urlsplit

from flask import Response, request
from werkzeug.exceptions import HTTPException

from ordertrack import auth, problems
from ordertrack.errors import DomainError, InvalidToken, TokenExpired
from ordertrack.web.pages.rendering import go_to, render, safe_path

_CHANGED: Final = (
    "The order has changed in the meantime",
    "Go back and reload the page to see it.",
)

# Status → heading, and what to do next. The error's own detail says what happened.
_PAGES: Final[dict[int, tuple[str, str]]] = {
    400: ("That request was not understood", "Go back, reload the page and try again."),
    403: ("You do not have access to this page", "If you need it, ask an admin for the role."),
    404: (
        "There is nothing here",
        "The address may be mistyped, or you are not allowed to see the order.",
    ),
    405: ("You cannot do that at this address", "Go back and use the buttons of the page."),
    409: _CHANGED,
    412: _CHANGED,
    413: ("That is too long", "Shorten the text and send it again."),
    422: ("Something has to be corrected", "Go back and check what you entered."),
    429: ("Slow down a little", "Wait a moment, then try again."),
    500: ("Something broke on our side", "It has been noted. Try again in a moment."),
    503: ("We cannot reach the orders right now", "Nothing is lost. Try again in a moment."),
}
_CSRF: Final = ("That form is out of date", "Go back, reload the page and send it again.")


def error_page(error: DomainError) -> Response:
    """*error* as HTML. Without a valid session it is a redirect to the sign-in page."""
    if isinstance(error, InvalidToken | TokenExpired):
        return _to_log_in()
    status = problems.STATUS[error.code].value
    heading, advice = _CSRF if error.code == "csrf_failed" else _PAGES.get(status, _PAGES[400])
    response = render(
        "error.html",
        status,
        heading=heading,
        advice=advice,
        detail=error.detail,
        number=status,
        code=error.code,
        request_id=error.extra.get("request_id"),  # leads to the traceback in the log
        may_retry=status in (429, 500, 503) and request.method == "GET",
        has_session=auth.has_cookies(),
    )
    for name, value in problems.headers(error):
        if name in ("Allow", "Retry-After"):
            response.headers[name] = value
    return response


def _to_log_in() -> Response:
    """Redirect to the sign-in page, and from there back to this one.

    Text from a refused form is shown there, to be copied: the form may have been open for days, or
    another tab has signed out.
    """
    if request.method == "GET":
        wanted = request.full_path.removesuffix("?")
    else:
        wanted = urlsplit(request.referrer or "").path
    following = safe_path(wanted)
    had_session = auth.has_cookies()
    written = _written_text()
    if written:
        response = render(
            "login.html", 401, email="", error=None, following=following, written=written
        )
        auth.clear_cookies(response)
        return response
    address = "/login" if following == "/" else f"/login?next={quote(following)}"
    response = go_to(address, "session_ended" if had_session else None)
    if had_session:
        auth.clear_cookies(response)
    return response


def _written_text() -> str:
    """The text that the request's form contains. Forms of other sites are refused before."""
    try:
        form = request.form
    except HTTPException:  # too large to be read
        return ""
    return (form.get("description") or form.get("note") or "").strip()
