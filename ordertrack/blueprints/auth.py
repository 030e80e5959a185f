"""/api: registering, signing in and out."""

from datetime import timedelta
from typing import Any

from flask import Blueprint, Response

from ordertrack import identity
from ordertrack.blueprints._http import body, json_answer, settings
from ordertrack.payloads import Credentials, Registration, present_account
from ordertrack.services import accounts

blueprint = Blueprint("auth", __name__, url_prefix="/api")


@blueprint.post("/register")
@identity.public
def register() -> Response:
    form = body(Registration)
    account = accounts.register(form.name, form.email, form.password)
    return json_answer(present_account(account), 201)


@blueprint.post("/login")
@identity.public
def login() -> Response:
    form = body(Credentials)
    lifetime = timedelta(seconds=settings().refresh_token_seconds)
    sign_in = accounts.log_in(form.email, form.password, lifetime)
    return json_answer(_tokens(sign_in))


@blueprint.post("/refresh")
@identity.takes_refresh_token
def refresh() -> Response:
    """A new access token for the same session; the refresh token stays good."""
    sign_in = accounts.continue_session(identity.principal())
    shown = _tokens(sign_in)
    del shown["refresh_token"]
    return json_answer(shown)


def _tokens(sign_in: accounts.SignIn) -> dict[str, Any]:
    tokens = identity.issue(sign_in)
    return {
        "access_token": tokens.access,
        "refresh_token": tokens.refresh,
        "token_type": "Bearer",
        "expires_in": tokens.expires_in,
        "user": present_account(sign_in.account),
    }


@blueprint.post("/logout")
def logout() -> Response:
    accounts.log_out(identity.principal())
    return Response(status=204)


@blueprint.get("/me")
def me() -> Response:
    return json_answer(present_account(accounts.me(identity.principal())))
