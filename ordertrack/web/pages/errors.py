"""Refusals and faults as pages, in the words of somebody who wants to go on."""

from typing import Final
from urllib.parse import quote, urlsplit

from flask import Response, request
from werkzeug.exceptions import HTTPException

from ordertrack import auth, problems
from ordertrack.errors import DomainError, InvalidToken, TokenExpired
from ordertrack.web.pages.rendering import go_to, render, safe_path

# Status → heading and what to do next. What happened is the error's own detail.
_PAGES: Final[dict[int, tuple[str, str]]] = {
    400: ("That request was not understood", "Go back, reload the page and try again."),
    403: (
        "You do not have access to this page",
        "If you need it, ask an admin for the role.",
    ),
    404: (
        "There is nothing here",
        "The address may be mistyped, or the order is gone or not yours.",
    ),
    405: ("That cannot be done at this address", "Go back and use the buttons of the page."),
    409: ("Somebody was quicker", "Go back and reload the page to see how things stand."),
    412: ("Somebody was quicker", "Go back and reload the page to see how things stand."),
    413: ("That is too long", "Shorten the text and send it again."),
    422: ("Something has to be corrected", "Go back and check what you entered."),
    429: ("Slow down a little", "Wait a moment, then try again."),
    500: ("Something broke on our side", "It has been noted. Try again in a moment."),
    503: ("We cannot reach the orders right now", "Nothing is lost. Try again in a moment."),
}
_CSRF: Final = ("That form is out of date", "Go back, reload the page and send it again.")


def error_page(error: DomainError) -> Response:
    """*error* as HTML; the way to sign in for those who are not."""
    if isinstance(error, InvalidToken | TokenExpired):
        return _to_sign_in()
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
        request_id=error.extra.get("request_id"),  # for the one who is asked what broke
        may_retry=status in (429, 500, 503) and request.method == "GET",
        has_session=auth.has_cookies(),
    )
    for name, value in problems.headers(error):
        if name in ("Allow", "Retry-After"):
            response.headers[name] = value
    return response


def _to_sign_in() -> Response:
    """To the sign-in page and, after it, back to where the visitor was.

    What a refused form said is shown there: its page may have been open for days, or another tab
    has signed out, and nobody should have to write it again.
    """
    if request.method == "GET":
        wanted = request.full_path.removesuffix("?")
    else:
        wanted = urlsplit(request.referrer or "").path
    following = safe_path(wanted)
    had_session = auth.has_cookies()
    written = _written()
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


def _written() -> str:
    """The text in the form of the present request. Another site's forms never get this far."""
    try:
        form = request.form
    except HTTPException:  # too large to be read
        return ""
    return (form.get("description") or form.get("note") or "").strip()
