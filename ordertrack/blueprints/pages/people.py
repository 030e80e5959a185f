"""Users and their roles, for admins."""

from typing import Any

from flask import Blueprint, Response, request

from ordertrack import identity
from ordertrack.blueprints._http import integer
from ordertrack.blueprints.pages._page import back, fields, go_to, read, render
from ordertrack.payloads import UserForm
from ordertrack.policy import Role
from ordertrack.services import accounts, actors

blueprint = Blueprint("people", __name__)

PAGE = 50


@blueprint.get("/users")
def show() -> Response:
    principal = identity.principal()
    viewer = actors.identify(principal)
    found = accounts.list_users(principal, after=integer("after", 0), limit=PAGE + 1)
    return render(
        "users.html",
        viewer=viewer,
        users=found[:PAGE],
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
