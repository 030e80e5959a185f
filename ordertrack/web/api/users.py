"""/api/admin/users: users and their roles, for admins."""

from flask import Blueprint, Response, request

from ordertrack import auth
from ordertrack.errors import ValidationFailed
from ordertrack.schemas import UserChange, present_account
from ordertrack.services import accounts, passwords
from ordertrack.web.parsing import (
    MAX_PAGE,
    integer_argument,
    json_body,
    json_response,
    refuse_unknown_arguments,
)

blueprint = Blueprint("users", __name__, url_prefix="/api/admin")


@blueprint.get("/users")
def list_users() -> Response:
    """Ascending by id: ``?after=`` takes the last id of the page before, ``?q=`` words to find."""
    refuse_unknown_arguments("after", "limit", "q")
    limit = integer_argument("limit", MAX_PAGE, low=1, high=MAX_PAGE)
    found = accounts.list_users(
        auth.caller(),
        words=request.args.get("q"),
        after=integer_argument("after", 0),
        limit=limit + 1,
    )
    shown = found[:limit]
    return json_response(
        {
            "users": [present_account(account) for account in shown],
            "next_after": str(shown[-1].id) if len(found) > limit else None,
        }
    )


@blueprint.patch("/users/<id:user_id>")
def change_user(user_id: int) -> Response:
    form = json_body(UserChange)
    if form.role is None and form.active is None:
        raise ValidationFailed.at("", "give role, active or both")
    account = accounts.change_user(auth.caller(), user_id, role=form.role, active=form.active)
    return json_response(present_account(account))


@blueprint.post("/users/<id:user_id>/password-reset")
def make_password_reset(user_id: int) -> Response:
    """Make a one-time token with which that user can set a new password."""
    reset = passwords.reset_by_admin(auth.caller(), user_id)
    return json_response({"token": auth.sign_reset(reset), "expires_in": auth.RESET_SECONDS}, 201)
