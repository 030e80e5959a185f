"""Users and their roles, for admins."""

from typing import Any

from flask import Blueprint, Response, request, url_for

from ordertrack import identity
from ordertrack.blueprints._http import integer
from ordertrack.blueprints.pages._page import back, fields, go_to, read, render
from ordertrack.payloads import UserForm
from ordertrack.policy import Role
from ordertrack.services import accounts, actors, passwords

blueprint = Blueprint("people", __name__)

PAGE = 50


@blueprint.get("/users")
def show() -> Response:
    principal = identity.principal()
    viewer = actors.identify(principal)
    words = request.args.get("q", "").strip()
    found = accounts.list_users(principal, words=words, after=integer("after", 0), limit=PAGE + 1)
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
    form = read(values, UserForm)
    accounts.change_user(identity.principal(), user_id, role=form.role, active=form.active)
    return go_to(back("/users"), "saved")


@blueprint.post("/users/<id:user_id>/reset")
def make_reset(user_id: int) -> Response:
    """Show a one-time link, for the admin to hand over; it is not kept and not shown again."""
    principal = identity.principal()
    reset = passwords.reset_by_admin(principal, user_id)
    link = url_for("account.reset_form", token=identity.sign_reset(reset), _external=True)
    return render("reset-link.html", viewer=actors.identify(principal), link=link)
