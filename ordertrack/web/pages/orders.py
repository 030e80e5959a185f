"""A customer's orders, and one order: its page, its history, and the forms that change it."""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any
from uuid import uuid4

from flask import Blueprint, Response, request

from ordertrack import auth, policy
from ordertrack.errors import (
    Conflict,
    DomainError,
    Forbidden,
    IdempotencyKeyReused,
    InvalidTransition,
    NotFound,
    ValidationFailed,
    VersionMismatch,
)
from ordertrack.eventlog import Event
from ordertrack.lifecycle import TERMINAL, TRANSITIONS, Status
from ordertrack.problems import STATUS as HTTP_STATUS
from ordertrack.schemas import MAX_VERSION, DriverAssignment, OrderDescription, StatusChange, parse
from ordertrack.services import order_lists, orders
from ordertrack.services.order_query import Filters
from ordertrack.services.orders import OrderPage
from ordertrack.web.pages.progress import steps
from ordertrack.web.pages.rendering import back, fields, go_to, messages, render, version
from ordertrack.web.parsing import integer_argument

blueprint = Blueprint("order_pages", __name__)

PAGE = 30

# Errors that the order's own page explains, showing the order in its present state.
REFUSALS = (ValidationFailed, VersionMismatch, Conflict, InvalidTransition, Forbidden)

View = Callable[[int], Response]


# --- a customer's orders -----------------------------------------------------------------------


@blueprint.get("/orders")
def own() -> Response:
    return _own()


def _own(status: int = 200, *, typed: str = "", error: str | None = None) -> Response:
    wanted = request.args.get("status")
    chosen = Status(wanted) if wanted in list(Status) else None
    found = order_lists.own_page(
        auth.caller(), Filters(status=chosen), before=integer_argument("before", low=1), limit=PAGE
    )
    return render(
        "orders.html",
        status,
        viewer=found.actor,
        orders=found.orders,
        older=found.older,
        is_first_page="before" not in request.args,
        chosen=chosen,
        typed=typed,
        error=error,
        key=request.form.get("key") or uuid4().hex,
    )


@blueprint.post("/orders")
def place() -> Response:
    """Idempotent by the form's key: a second click or a reload finds the order that was placed."""
    values = fields("key")
    key = request.form.get("key", "")
    try:
        form = parse(values, OrderDescription)
        order = orders.create(
            auth.caller(),
            form.description,
            key=f"page-{key}" if re.fullmatch("[0-9a-f]{32}", key) else None,
        )
    except ValidationFailed as error:
        typed = values.get("description", "")
        return _own(422, typed=typed, error=_about_description(error, typed))
    except (IdempotencyKeyReused, Conflict):
        return _own(409, typed="", error="This form was sent before. Here is a fresh one.")
    return go_to(f"/orders/{order.id}", "placed")


def _about_description(error: ValidationFailed, typed: str) -> str:
    return " ".join(messages(error).values()) if typed.strip() else "Write what you need."


# --- one order ---------------------------------------------------------------------------------


@blueprint.get("/orders/<id:order_id>")
def show(order_id: int) -> Response:
    try:
        return _show(order_id)
    except NotFound:
        # A deleted order has no page, but admins may read its history.
        orders.history_page(auth.caller(), order_id)
        return go_to(f"/orders/{order_id}/history")


def _show(order_id: int, refused: DomainError | None = None) -> Response:
    screen = orders.page(auth.caller(), order_id)
    order = screen.order
    typed = fields("version").get("description") if refused else None
    return render(
        "order.html",
        200 if refused is None else HTTP_STATUS[refused.code].value,
        viewer=screen.actor,
        order=order,
        events=screen.events,
        progress=steps(screen.events),
        earlier=order.version - len(screen.events),
        transitions=_transitions(screen),
        when=_when(screen),
        drivers=screen.drivers,
        is_owner=order.customer_id == screen.actor.id,
        mover=_mover(screen.events),
        refused=refused,
        reason=_reason(refused, typed),
        typed=typed,
    )


def _mover(events: Sequence[Event]) -> str | None:
    """The person who took the latest step of the main flow; shown where no driver is assigned."""
    for event in reversed(events):
        if event.type == "status_changed" and event.status != Status.CANCELLED:
            return event.actor_name
    return None


def _reason(refused: DomainError | None, typed: str | None) -> str:
    """The reason why a form was refused, for the page."""
    if not isinstance(refused, ValidationFailed):
        return refused.detail if refused else ""
    if typed is not None:
        return _about_description(refused, typed)
    return " ".join(messages(refused).values())


def _transitions(screen: OrderPage) -> list[tuple[Status, Status]]:
    """Every transition that the viewer may make with this order, in its present status or later."""
    return [
        (current, target)
        for current, targets in TRANSITIONS.items()
        for target, allowed in targets.items()
        if allowed & screen.held
    ]


def _when(screen: OrderPage) -> dict[str, list[Status]]:
    """The statuses in which the viewer may edit, delete, assign: then the page shows the form."""
    held = screen.held
    return {
        "edit": [status for status in Status if policy.can_edit(held, status)],
        "delete": [status for status in Status if policy.can_delete(held, status)],
        "assign": [
            status
            for status in Status
            if screen.actor.role is policy.Role.ADMIN and status not in TERMINAL
        ],
    }


@blueprint.get("/orders/<id:order_id>/history")
def history(order_id: int) -> Response:
    after = integer_argument("after", 0, high=MAX_VERSION)
    screen = orders.history_page(auth.caller(), order_id, after=after)
    last = screen.events[-1].version if screen.events else screen.order.version
    return render(
        "history.html",
        viewer=screen.actor,
        order=screen.order,
        events=screen.events,
        deleted_at=screen.deleted_at,
        after=last if last < screen.order.version else None,
    )


def explain_refusals(change: View) -> View:
    """Decorate *change*: a refusal is explained on the order's page, or elsewhere by a notice."""

    @wraps(change)
    def view(order_id: int) -> Response:
        try:
            return change(order_id)
        except REFUSALS as refused:
            page = f"/orders/{order_id}"
            following = back(page)
            if following == page:
                return _show(order_id, refused)
            if isinstance(refused, Forbidden):
                return go_to(following, "denied", order_id)
            order = orders.get(auth.caller(), order_id)
            return go_to(following, "refused", order_id, order.status)

    return view


@blueprint.post("/orders/<id:order_id>/edit")
@explain_refusals
def edit(order_id: int) -> Response:
    form = parse(fields("version"), OrderDescription)
    orders.edit(auth.caller(), order_id, form.description, if_version=version())
    return go_to(f"/orders/{order_id}", "edited")


@blueprint.post("/orders/<id:order_id>/status")
@explain_refusals
def change_status(order_id: int) -> Response:
    values: dict[str, Any] = fields("version")
    if not values.get("note", "").strip():
        values.pop("note", None)
    form = parse(values, StatusChange)
    orders.change_status(auth.caller(), order_id, form.status, note=form.note, if_version=version())
    return go_to(back(f"/orders/{order_id}"), "moved", order_id, form.status)


@blueprint.post("/orders/<id:order_id>/driver")
@explain_refusals
def assign_driver(order_id: int) -> Response:
    values = fields("version")
    form = parse({**values, "driver_id": values.get("driver_id") or None}, DriverAssignment)
    orders.assign_driver(auth.caller(), order_id, form.driver_id, if_version=version())
    notice = "assigned" if form.driver_id else "unassigned"
    return go_to(back(f"/orders/{order_id}"), notice, order_id)


@blueprint.post("/orders/<id:order_id>/delete")
@explain_refusals
def delete(order_id: int) -> Response:
    orders.delete(auth.caller(), order_id, if_version=version())
    return go_to(back("/"), "deleted", order_id)
