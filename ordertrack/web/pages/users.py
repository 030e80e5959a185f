"""The admins' page of users: roles, deactivation, links to set a password."""

from typing import Any

from flask import Blueprint, Response, request, url_for

from ordertrack import auth
from ordertrack.policy import Role
from ordertrack.schemas import UserChange, parse
from ordertrack.services import accounts, callers, passwords
from ordertrack.web.pages.rendering import back, fields, go_to, render
from ordertrack.web.parsing import integer_argument

blueprint = Blueprint("user_pages", __name__)

PAGE = 50


@blueprint.get("/users")
def show() -> Response:
    caller = auth.caller()
    viewer = callers.identify(caller)
    words = request.args.get("q", "").strip()
    found = accounts.list_users(
        caller, words=words, after=integer_argument("after", 0), limit=PAGE + 1
    )
    return render(
        "users.html",
        viewer=viewer,
        users=found[:PAGE],
        words=words,
        roles=tuple(Role),
        after=found[PAGE - 1].id if len(found) > PAGE else None,
        here=request.full_path.removesuffix("?"),
    )


@blueprint.post("/users/<id:user_id>")
def change(user_id: int) -> Response:
    values: dict[str, Any] = fields()
    if "active" in values:
        values["active"] = {"yes": True, "no": False}.get(values["active"])
    form = parse(values, UserChange)
    accounts.change_user(auth.caller(), user_id, role=form.role, active=form.active)
    return go_to(back("/users"), "saved")


@blueprint.post("/users/<id:user_id>/reset")
def make_reset(user_id: int) -> Response:
    """Show a one-time link, for the admin to pass on; it is not stored and not shown again."""
    caller = auth.caller()
    reset = passwords.reset_by_admin(caller, user_id)
    link = url_for("account.reset_form", token=auth.sign_reset(reset), _external=True)
    return render("reset_link.html", viewer=callers.identify(caller), link=link)
