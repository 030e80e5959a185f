"""One's own account: the password, the open sessions, and setting a password by a one-time link."""

import re
from typing import Final

from flask import Blueprint, Response, request

from ordertrack import identity
from ordertrack.blueprints.pages._page import fields, go_to, messages, read, render
from ordertrack.errors import ValidationFailed
from ordertrack.payloads import PasswordChange, PasswordReset
from ordertrack.services import accounts, actors, passwords, sessions

blueprint = Blueprint("account", __name__)

# What a User-Agent header holds → what people call it. The first that fits: browsers also carry
# the names of those that they descend from.
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
    principal = identity.principal()
    return render(
        "account.html",
        status,
        viewer=actors.identify(principal),
        account=accounts.me(principal),
        sessions=sessions.list_open(principal),
        client_name=client_name,
        errors=errors or {},
    )


@blueprint.post("/account/password")
def change_password() -> Response:
    try:
        form = read(fields(), PasswordChange)
        passwords.change(identity.principal(), form.current_password, form.new_password)
    except ValidationFailed as error:
        return _show(422, messages(error))
    return go_to("/account", "password_changed")


@blueprint.post("/account/sessions/<id:session_id>/end")
def end_session(session_id: int) -> Response:
    sessions.end(identity.principal(), session_id)
    return go_to("/account", "session_closed")


@blueprint.get("/reset")
@identity.public
def reset_form() -> Response:
    """The form of a one-time link. The token is in the query, which no log of ours shows."""
    return _reset_form(request.args.get("token", ""))


def _reset_form(token: str, status: int = 200, errors: dict[str, str] | None = None) -> Response:
    return render("reset.html", status, token=token, errors=errors or {})


@blueprint.post("/reset")
@identity.public
def reset() -> Response:
    identity.refuse_other_sites()
    values = fields()
    try:
        form = read(values, PasswordReset)
        passwords.redeem(identity.read_reset(form.token), form.password)
    except ValidationFailed as error:
        return _reset_form(values.get("token", ""), 422, messages(error))
    return go_to("/login", "password_set")
