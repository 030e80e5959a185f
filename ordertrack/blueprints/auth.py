"""/api: registering, signing in and out."""

from datetime import timedelta
from typing import Any

from flask import Blueprint, Response, request

from ordertrack import identity
from ordertrack.blueprints._http import body, json_answer, settings
from ordertrack.payloads import (
    Credentials,
    PasswordChange,
    PasswordReset,
    Registration,
    present_account,
    present_session,
)
from ordertrack.services import accounts, passwords, sessions

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
    sign_in = accounts.log_in(
        form.email, form.password, lifetime, user_agent=request.user_agent.string
    )
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


@blueprint.put("/me/password")
def change_password() -> Response:
    """Set the caller's password; its other sessions end."""
    form = body(PasswordChange)
    passwords.change(identity.principal(), form.current_password, form.new_password)
    return Response(status=204)


@blueprint.post("/password-reset")
@identity.public
def reset_password() -> Response:
    """Set a password by the token of a one-time link; all sessions of that user end."""
    form = body(PasswordReset)
    passwords.redeem(identity.read_reset(form.token), form.password)
    return Response(status=204)


@blueprint.get("/me/sessions")
def list_sessions() -> Response:
    found = sessions.list_open(identity.principal())
    return json_answer({"sessions": [present_session(session) for session in found]})


@blueprint.delete("/me/sessions/<id:session_id>")
def end_session(session_id: int) -> Response:
    sessions.end(identity.principal(), session_id)
    return Response(status=204)
