"""The account page (password, open sessions), and the form of a one-time link for a password."""

import re
from typing import Final

from flask import Blueprint, Response, request

from ordertrack import auth
from ordertrack.errors import ValidationFailed
from ordertrack.schemas import PasswordChange, PasswordReset, parse
from ordertrack.services import accounts, callers, passwords, sessions
from ordertrack.web.pages.rendering import fields, go_to, messages, render

blueprint = Blueprint("account", __name__)

# Part of a User-Agent header → the browser's name. The first match counts: a browser also carries
# the names of browsers that it descends from.
_BROWSERS: Final = (
    ("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox", "Firefox"), ("FxiOS", "Firefox"),
    ("SamsungBrowser", "Samsung Internet"), ("CriOS", "Chrome"), ("Chrome", "Chrome"),
    ("Safari", "Safari"),
)  # fmt: skip
_SYSTEMS: Final = (
    ("Android", "Android"), ("iPhone", "iPhone"), ("iPad", "iPad"), ("Windows", "Windows"),
    ("Mac OS X", "Mac"), ("CrOS", "ChromeOS"), ("Linux", "Linux"),
)  # fmt: skip


def client_name(user_agent: str) -> str:
    """Name a client for people: "Firefox on Linux", "python-requests", "Unknown client"."""
    browser = next((name for mark, name in _BROWSERS if mark in user_agent), None)
    system = next((name for mark, name in _SYSTEMS if mark in user_agent), None)
    if browser is not None:
        return f"{browser} on {system}" if system else browser
    product = re.match(r"[\w.-]{1,40}", user_agent)
    return product[0] if product else "Unknown client"


@blueprint.get("/account")
def show() -> Response:
    return _show()


def _show(status: int = 200, errors: dict[str, str] | None = None) -> Response:
    caller = auth.caller()
    return render(
        "account.html",
        status,
        viewer=callers.identify(caller),
        account=accounts.me(caller),
        sessions=sessions.list_open(caller),
        client_name=client_name,
        errors=errors or {},
    )


@blueprint.post("/account/password")
def change_password() -> Response:
    try:
        form = parse(fields(), PasswordChange)
        passwords.change(auth.caller(), form.current_password, form.new_password)
    except ValidationFailed as error:
        return _show(422, messages(error))
    return go_to("/account", "password_changed")


@blueprint.post("/account/sessions/<id:session_id>/end")
def end_session(session_id: int) -> Response:
    sessions.revoke(auth.caller(), session_id)
    return go_to("/account", "session_closed")


@blueprint.get("/reset")
@auth.public
def reset_form() -> Response:
    """The form of a one-time link. The token is in the query, which no log of ours shows."""
    return _reset_form(request.args.get("token", ""))


def _reset_form(token: str, status: int = 200, errors: dict[str, str] | None = None) -> Response:
    return render("reset.html", status, token=token, errors=errors or {})


@blueprint.post("/reset")
@auth.public
def reset() -> Response:
    auth.refuse_other_sites()
    values = fields()
    try:
        form = parse(values, PasswordReset)
        passwords.redeem(auth.read_reset(form.token), form.password)
    except ValidationFailed as error:
        return _reset_form(values.get("token", ""), 422, messages(error))
    return go_to("/login", "password_set")
