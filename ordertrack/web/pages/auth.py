"""Pages to register, log in and log out; and the renewal of an open page's session."""

from flask import Blueprint, Response, request

from ordertrack import auth
from ordertrack.errors import EmailTaken, InvalidCredentials, TooManyRequests, ValidationFailed
from ordertrack.policy import Role
from ordertrack.problems import STATUS
from ordertrack.schemas import Credentials, Registration, parse
from ordertrack.services import accounts, callers
from ordertrack.web.pages.rendering import fields, go_to, messages, render, safe_path
from ordertrack.web.parsing import json_response

blueprint = Blueprint("auth_pages", __name__)

HOME = {Role.USER: "/orders", Role.DRIVER: "/deliveries", Role.ADMIN: "/board"}


@blueprint.get("/")
def home() -> Response:
    """Redirect to the first page of the caller's role; without a session, to log in."""
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
        form = parse(values, Credentials)
        login, tokens = auth.log_in(form.email.strip(), form.password, request.user_agent.string)
    except ValidationFailed:
        error, status = "Enter your e-mail address and your password.", 422
    except (InvalidCredentials, TooManyRequests) as refused:
        error, status = refused.detail, STATUS[refused.code].value
    else:
        following = safe_path(_following())
        return _logged_in(tokens, following if following != "/" else HOME[login.account.role])
    return _login_form(status, email=values.get("email", ""), error=error)


def _logged_in(tokens: auth.Tokens, url: str, notice: str | None = None) -> Response:
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
        form = parse(values, Registration)
        accounts.register(form.name, form.email, form.password)
        _, tokens = auth.log_in(form.email, form.password, request.user_agent.string)
    except ValidationFailed as error:
        errors, status = messages(error), 422
    except EmailTaken as error:
        errors, status = {"email": error.detail}, 409
    else:
        return _logged_in(tokens, "/orders", "registered")
    shown = {name: values.get(name, "") for name in ("name", "email")}
    return render("register.html", status, values=shown, errors=errors)


@blueprint.post("/logout")
def logout() -> Response:
    """Revoke the session; its pages in other tabs are told at once."""
    accounts.log_out(auth.caller())
    response = go_to("/login", "signed_out")
    auth.clear_cookies(response)
    return response


@blueprint.post("/session/renew")
@auth.takes_refresh_token
def renew() -> Response:
    """Set a new access cookie, by the refresh cookie; for open pages."""
    _, tokens = auth.renew(auth.caller())
    response = json_response({"expires_in": tokens.expires_in})
    auth.set_access_cookie(response, tokens)
    return response
