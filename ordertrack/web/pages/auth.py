"""Signing up, in and out, and staying signed in while a page is open."""

from flask import Blueprint, Response, request

from ordertrack import auth
from ordertrack.errors import (
    EmailTaken,
    InvalidCredentials,
    TooManyRequests,
    ValidationFailed,
)
from ordertrack.policy import Role
from ordertrack.problems import STATUS
from ordertrack.schemas import Credentials, Registration
from ordertrack.services import accounts, callers
from ordertrack.web.http import json_answer
from ordertrack.web.pages.rendering import fields, go_to, messages, read, render, safe_path

blueprint = Blueprint("session", __name__)

HOME = {Role.USER: "/orders", Role.DRIVER: "/deliveries", Role.ADMIN: "/board"}


@blueprint.get("/")
def home() -> Response:
    """Everybody's first page: their own kind of work. Who is not signed in, is asked to."""
    return go_to(HOME[callers.identify(auth.caller()).role])


@blueprint.get("/login")
@auth.public
def login_form() -> Response:
    return _login_form()


def _login_form(status: int = 200, *, email: str = "", error: str | None = None) -> Response:
    return render("login.html", status, email=email, error=error, following=safe_path(_following()))


def _following() -> str | None:
    return request.form.get("next") or request.args.get("next")


@blueprint.post("/login")
@auth.public
def login() -> Response:
    auth.refuse_other_sites()
    values = fields("next")
    try:
        form = read(values, Credentials)
        login, tokens = auth.log_in(form.email.strip(), form.password, request.user_agent.string)
    except ValidationFailed:
        error, status = "Enter your e-mail address and your password.", 422
    except (InvalidCredentials, TooManyRequests) as refused:
        error, status = refused.detail, STATUS[refused.code].value
    else:
        following = safe_path(_following())
        return _enter(tokens, following if following != "/" else HOME[login.account.role])
    return _login_form(status, email=values.get("email", ""), error=error)


def _enter(tokens: auth.Tokens, url: str, notice: str | None = None) -> Response:
    response = go_to(url, notice)
    auth.set_session_cookies(response, tokens)
    return response


@blueprint.get("/register")
@auth.public
def register_form() -> Response:
    return render("register.html", values={}, errors={})


@blueprint.post("/register")
@auth.public
def register() -> Response:
    auth.refuse_other_sites()
    values = fields()
    try:
        form = read(values, Registration)
        accounts.register(form.name, form.email, form.password)
        _, tokens = auth.log_in(form.email, form.password, request.user_agent.string)
    except ValidationFailed as error:
        errors, status = messages(error), 422
    except EmailTaken as error:
        errors, status = {"email": error.detail}, 409
    else:
        return _enter(tokens, "/orders", "registered")
    shown = {name: values.get(name, "") for name in ("name", "email")}
    return render("register.html", status, values=shown, errors=errors)


@blueprint.post("/logout")
def logout() -> Response:
    """End the session everywhere: its pages in other tabs notice at once."""
    accounts.log_out(auth.caller())
    response = go_to("/login", "signed_out")
    auth.clear_cookies(response)
    return response


@blueprint.post("/session/renew")
@auth.takes_refresh_token
def renew() -> Response:
    """For open pages: a new access cookie for the session, by the refresh cookie."""
    _, tokens = auth.renew(auth.caller())
    response = json_answer({"expires_in": tokens.expires_in})
    auth.set_access_cookie(response, tokens)
    return response
