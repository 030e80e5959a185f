"""/api/orders and /api/admin/orders."""

import re
from typing import Any

from flask import Blueprint, Response, request, url_for

from ordertrack import auth
from ordertrack.errors import ValidationFailed
from ordertrack.lifecycle import Status
from ordertrack.schemas import (
    MAX_VERSION,
    DriverAssignment,
    OrderDescription,
    StatusChange,
    decode_cursor,
    encode_cursor,
    present_history,
    present_order,
)
from ordertrack.services import order_lists, orders
from ordertrack.services.order_query import Filters, Page
from ordertrack.services.order_rows import OrderView
from ordertrack.web.parsing import (
    MAX_PAGE,
    if_match,
    integer_argument,
    json_body,
    json_response,
    refuse_unknown_arguments,
    time_argument,
)

blueprint = Blueprint("orders", __name__, url_prefix="/api")


@blueprint.post("/orders")
def create() -> Response:
    form = json_body(OrderDescription)
    order = orders.create(auth.caller(), form.description, key=_idempotency_key())
    location = url_for("orders.get", order_id=order.id)
    return _answer(order, 201, {"Location": location})


def _idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise ValidationFailed.at(
            "/Idempotency-Key", "must be 1 to 255 visible ASCII characters, such as a UUID"
        )
    return key


@blueprint.get("/orders")
def own_page() -> Response:
    refuse_unknown_arguments("status", "q", "limit", "cursor")
    limit, before = _place()
    return _page(order_lists.own_page(auth.caller(), _filters(), before=before, limit=limit))


@blueprint.get("/admin/orders")
def staff_page() -> Response:
    refuse_unknown_arguments(
        "status", "q", "limit", "cursor", "driver", "customer", "created_from", "created_before"
    )
    limit, before = _place()
    return _page(order_lists.staff_page(auth.caller(), _filters(), before=before, limit=limit))


def _filters() -> Filters:
    wanted = request.args.get("status")
    try:
        status = Status(wanted) if wanted else None
    except ValueError:
        raise ValidationFailed.at("/status", f"must be one of {', '.join(Status)}") from None
    words = request.args.get("q", "").strip()
    if len(words) > 200:
        raise ValidationFailed.at("/q", "must have at most 200 characters")
    return Filters(
        status=status,
        text=words or None,
        driver_id=integer_argument("driver", low=1),
        customer_id=integer_argument("customer", low=1),
        created_from=time_argument("created_from"),
        created_before=time_argument("created_before"),
    )


def _place() -> tuple[int, int | None]:
    cursor = request.args.get("cursor")
    limit = integer_argument("limit", 50, low=1, high=MAX_PAGE)
    return limit, decode_cursor(cursor) if cursor is not None else None


def _page(page: Page) -> Response:
    cursor = encode_cursor(page.older) if page.older is not None else None
    headers = {}
    if cursor is not None:
        arguments: dict[str, Any] = {**request.args.to_dict(), "cursor": cursor}
        following = url_for(request.endpoint or "", **arguments)
        headers["Link"] = f'<{following}>; rel="next"'
    return json_response(
        {"orders": [present_order(order) for order in page.orders], "next_cursor": cursor},
        headers=headers,
    )


@blueprint.get("/orders/<id:order_id>")
def get(order_id: int) -> Response:
    return _answer(orders.get(auth.caller(), order_id))


@blueprint.route("/orders/<id:order_id>", methods=["PUT", "PATCH"])
def edit(order_id: int) -> Response:
    form = json_body(OrderDescription)
    return _answer(orders.edit(auth.caller(), order_id, form.description, if_version=if_match()))


@blueprint.delete("/orders/<id:order_id>")
def delete(order_id: int) -> Response:
    orders.delete(auth.caller(), order_id, if_version=if_match())
    return Response(status=204)


@blueprint.put("/orders/<id:order_id>/status")
def change_status(order_id: int) -> Response:
    form = json_body(StatusChange)
    return _answer(
        orders.change_status(
            auth.caller(), order_id, form.status, note=form.note, if_version=if_match()
        )
    )


@blueprint.put("/orders/<id:order_id>/driver")
def assign_driver(order_id: int) -> Response:
    form = json_body(DriverAssignment)
    return _answer(
        orders.assign_driver(auth.caller(), order_id, form.driver_id, if_version=if_match())
    )


@blueprint.get("/orders/<id:order_id>/history")
def history(order_id: int) -> Response:
    refuse_unknown_arguments("after", "limit")
    found = orders.history(
        auth.caller(),
        order_id,
        after=integer_argument("after", 0, high=MAX_VERSION),
        limit=integer_argument("limit", MAX_PAGE, low=1, high=orders.REPLAY_LIMIT),
    )
    return json_response(present_history(found))


def _answer(order: OrderView, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return json_response(
        present_order(order), status, {"ETag": f'"{order.version}"', **(headers or {})}
    )
