"""/api: register, log in, refresh, log out; the caller's password and sessions."""

from typing import Any

from flask import Blueprint, Response, request

from ordertrack import auth
from ordertrack.schemas import (
    Credentials,
    PasswordChange,
    PasswordReset,
    Registration,
    present_account,
    present_session,
)
from ordertrack.services import accounts, passwords, sessions
from ordertrack.web.parsing import json_body, json_response

blueprint = Blueprint("auth", __name__, url_prefix="/api")


@blueprint.post("/register")
@auth.public
def register() -> Response:
    form = json_body(Registration)
    account = accounts.register(form.name, form.email, form.password)
    return json_response(present_account(account), 201)


@blueprint.post("/login")
@auth.public
def login() -> Response:
    form = json_body(Credentials)
    return json_response(
        _tokens(*auth.log_in(form.email, form.password, request.user_agent.string))
    )


@blueprint.post("/refresh")
@auth.takes_refresh_token
def refresh() -> Response:
    """A new access token for the same session; the refresh token stays good."""
    shown = _tokens(*auth.renew(auth.caller()))
    del shown["refresh_token"]
    return json_response(shown)


def _tokens(login: accounts.Login, tokens: auth.Tokens) -> dict[str, Any]:
    return {
        "access_token": tokens.access,
        "refresh_token": tokens.refresh,
        "token_type": "Bearer",
        "expires_in": tokens.expires_in,
        "user": present_account(login.account),
    }


@blueprint.post("/logout")
def logout() -> Response:
    accounts.log_out(auth.caller())
    return Response(status=204)


@blueprint.get("/me")
def me() -> Response:
    return json_response(present_account(accounts.me(auth.caller())))


@blueprint.put("/me/password")
def change_password() -> Response:
    """Set the caller's password; its other sessions end."""
    form = json_body(PasswordChange)
    passwords.change(auth.caller(), form.current_password, form.new_password)
    return Response(status=204)


@blueprint.post("/password-reset")
@auth.public
def reset_password() -> Response:
    """Set a password by the token of a one-time link; all sessions of that user end."""
    form = json_body(PasswordReset)
    passwords.redeem(auth.read_reset(form.token), form.password)
    return Response(status=204)


@blueprint.get("/me/sessions")
def list_sessions() -> Response:
    found = sessions.list_open(auth.caller())
    return json_response({"sessions": [present_session(session) for session in found]})


@blueprint.delete("/me/sessions/<id:session_id>")
def end_session(session_id: int) -> Response:
    sessions.revoke(auth.caller(), session_id)
    return Response(status=204)
