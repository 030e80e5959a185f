"""What all pages use: rendering with compression, notices after a redirect, reading forms."""

import gzip
import secrets
from datetime import datetime
from functools import cache
from io import BytesIO
from typing import Any, Final
from urllib.parse import urlsplit

from flask import Flask, Response, render_template, request
from markupsafe import Markup

from ordertrack import auth
from ordertrack.errors import ValidationFailed
from ordertrack.lifecycle import TERMINAL, Status
from ordertrack.policy import Actor, Role
from ordertrack.schemas import MAX_VERSION, present_time

# Texts that the next page shows once after a form. {0}, {1}: numbers, and words of our own.
NOTICES: Final[dict[str, str]] = {
    "placed": "Your order is placed. You can change it until we start on it.",
    "edited": "The description is changed.",
    "moved": "Order #{0} is {1} now.",
    "assigned": "Order #{0} has a driver.",
    "unassigned": "Order #{0} has no driver now.",
    "deleted": "Order #{0} is deleted.",
    "refused": "Order #{0} was not changed: it has changed in the meantime. It is {1} now.",
    "denied": "Order #{0} was not changed: you are not allowed to do that.",
    "changed": "{0} {1}.",
    "none_chosen": "No order was selected.",
    "saved": "Saved.",
    "signed_out": "You are signed out.",
    "session_ended": "Your session has ended. Sign in to go on.",
    "password_changed": "Your password is changed. Your other sessions have ended.",
    "password_set": "Your new password is set. Sign in with it.",
    "session_closed": "That session has ended.",
    "registered": "Welcome! Place your first order below.",
}
_WARNINGS: Final = frozenset({"refused", "denied", "none_chosen", "session_ended"})
_COOKIE: Final = "notice"

# The names of roles on pages.
ROLES: Final[dict[str, str]] = {Role.USER: "Customer", Role.DRIVER: "Driver", Role.ADMIN: "Admin"}

# Fields that every form may have beside its own.
_COMMON: Final = ("csrf_token", "back")

# Below this, gzip's own bytes and time are not worth it.
_WORTH_COMPRESSING: Final = 1024


def init_app(app: Flask) -> None:
    env = app.jinja_env
    env.trim_blocks = env.lstrip_blocks = True
    env.globals.update(
        moment=moment,
        entry_templates=cache(lambda: Markup(env.get_template("history_entries.html").render())),  # noqa: S704
        STATUSES=tuple(Status),
        TERMINAL=TERMINAL,
        ROLES=ROLES,
    )


def render(
    template: str, status: int = 200, *, viewer: Actor | None = None, **context: Any
) -> Response:
    """The page, compressed if the browser accepts it. *viewer*: the signed-in user."""
    notice = _notice()
    csrf = auth.csrf_token() if viewer is not None else ""
    html = render_template(template, viewer=viewer, notice=notice, csrf=csrf, **context)
    response = _compressed(html.encode(), status)
    if notice is not None and status < 400:
        response.delete_cookie(_COOKIE)
    return response


def _compressed(body: bytes, status: int) -> Response:
    response = Response(body, status, content_type="text/html; charset=utf-8")
    response.headers["Vary"] = "Accept-Encoding, Cookie"
    if len(body) < _WORTH_COMPRESSING or request.accept_encodings["gzip"] <= 0:
        return response
    packed = BytesIO()
    # A page holds a secret (the CSRF token) beside text of other users. A name of random length in
    # gzip's header hides by how much a guess has shortened it (BREACH; Django does the same).
    name = "a" * secrets.randbelow(100)
    with gzip.GzipFile(filename=name, mode="wb", compresslevel=3, fileobj=packed, mtime=0) as file:
        file.write(body)
    response.data = packed.getvalue()
    response.headers["Content-Encoding"] = "gzip"
    return response


_MONTHS: Final = tuple("- Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())  # noqa: SIM905


def moment(when: datetime) -> Markup:
    """A time element, in UTC until js/times.js shows it in the reader's zone."""
    iso = present_time(when)
    # Only digits and our own words, so nothing to escape; a page has dozens of them.
    return Markup(  # noqa: S704
        f'<time datetime="{iso}" title="{iso[:10]} {iso[11:19]} UTC">'
        f"{when.day} {_MONTHS[when.month]} {when.year}, {iso[11:16]} UTC</time>"
    )


# --- notices -----------------------------------------------------------------------------------


def go_to(url: str, notice: str | None = None, *arguments: object) -> Response:
    """Redirect after a form; the next page shows *notice*, a key of `NOTICES`, once."""
    response = Response(status=303, headers={"Location": url})
    if notice is not None:
        value = "~".join([notice, *map(str, arguments)])
        response.set_cookie(_COOKIE, value, max_age=60, httponly=True, samesite="Lax")
    return response


def _notice() -> dict[str, str] | None:
    key, *arguments = request.cookies.get(_COOKIE, "").split("~")
    text = NOTICES.get(key)
    if text is None:
        return None
    try:
        shown = text.format(*(argument[:40] for argument in arguments))
    except IndexError:  # not a cookie that we set
        return None
    return {"text": shown, "kind": "warning" if key in _WARNINGS else "done"}


# --- forms -------------------------------------------------------------------------------------


def safe_path(raw: str | None, default: str = "/") -> str:
    """*raw* when it is a path of this server, to go on to after a form; else *default*."""
    if not raw or len(raw) > 2000 or not raw.startswith("/") or not raw.isprintable():
        return default
    # Browsers read a backslash as a slash, and two slashes begin another host.
    if raw[1:2] in ("/", "\\") or urlsplit(raw).netloc:
        return default
    return raw


def back(default: str) -> str:
    """The path of the page that the form was on, as the form says."""
    return safe_path(request.form.get("back"), default)


def fields(*apart: str) -> dict[str, str]:
    """The form's own fields, without those that every form has and those named in *apart*.

    Line ends are LF, as in JSON requests; browsers send CRLF.
    """
    return {
        name: value.replace("\r\n", "\n")
        for name, value in request.form.items()
        if name not in _COMMON and name not in apart
    }


def version() -> int | None:
    """The version of the order that the form's page has shown."""
    raw = request.form.get("version", "")
    if not raw:
        return None
    if not (raw.isascii() and raw.isdigit() and int(raw) <= MAX_VERSION):
        raise ValidationFailed.at("/version", "must be the version that the page showed")
    return int(raw)


def messages(error: ValidationFailed) -> dict[str, str]:
    """The message for each field of a form, by the field's name."""
    return {
        entry["pointer"].lstrip("/"): _plain(entry["message"]) for entry in error.extra["errors"]
    }


def _plain(message: str) -> str:
    if message == "String should have at least 1 character":
        return "Must not be empty."
    said = message.replace("String should", "Must")
    return f"{said[:1].upper()}{said[1:]}."
