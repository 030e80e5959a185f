"""The drivers' page, for phones: the orders that are not final, one large button each."""

from flask import Blueprint, Response, request

from ordertrack import auth
from ordertrack.lifecycle import TERMINAL, Status
from ordertrack.policy import DriverScope
from ordertrack.services import order_lists
from ordertrack.services.order_rows import OrderView
from ordertrack.web.pages.rendering import render

blueprint = Blueprint("deliveries", __name__)


@blueprint.get("/deliveries")
def show() -> Response:
    """``?show=mine`` shows only orders that are assigned to the viewer."""
    mine = request.args.get("show") == "mine"
    found = order_lists.waiting(auth.caller(), mine=mine)
    groups: dict[Status, list[OrderView]] = {
        status: [] for status in Status if status not in TERMINAL
    }
    for order in found.orders:
        groups[order.status].append(order)
    return render(
        "deliveries.html",
        viewer=found.actor,
        groups=groups,
        mine=mine,
        most=order_lists.WAITING,
        may_see_all=auth.caller().scope is DriverScope.ALL,
        here="/deliveries?show=mine" if mine else "/deliveries",
    )
