"""The dispatchers' board: every order, filtered by the address, changed several at a time."""

import csv
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import chain
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, request, stream_with_context

from ordertrack import identity
from ordertrack.blueprints._http import integer, known_arguments, scope
from ordertrack.blueprints.pages._page import back, fields, go_to, read, render
from ordertrack.errors import ValidationFailed
from ordertrack.lifecycle import Status
from ordertrack.payloads import MAX_ID, DriverForm, StatusForm, present_time
from ordertrack.services import screens
from ordertrack.services.lists import Count, Filters
from ordertrack.services.orders import OrderView
from ordertrack.services.screens import Outcome

blueprint = Blueprint("board", __name__)

PAGE = 50

# Orders that one form moves: a page full of them, and then some.
AT_ONCE = 100

FILTERS = ("status", "q", "driver", "customer", "from", "to", "deleted")


@blueprint.get("/board")
def show() -> Response:
    known_arguments(*FILTERS, "before")
    filters = _filters()
    found = screens.board(
        identity.principal(),
        filters,
        scope(),
        before=integer("before", low=1),
        limit=PAGE,
    )
    page, older = found.page, found.page.older
    return render(
        "board.html",
        viewer=page.actor,
        orders=page.orders,
        cut_short=page.cut_short,
        searched_to=older,
        counts=found.counts,
        total=sum(found.counts.values(), start=Count(0)),
        drivers=found.drivers,
        filters=filters,
        chosen={name: request.args.get(name, "") for name in FILTERS},
        is_filtered=any(request.args.get(name) for name in FILTERS),
        older=_address(before=older) if older is not None else None,
        newest=_address() if "before" in request.args else None,
        here=_address(before=request.args.get("before")),
        address=_address,
    )


def _address(path: str = "/board", **changed: Any) -> str:
    """The board's address with the present filters, but for what is *changed*."""
    wanted = {name: request.args.get(name) for name in FILTERS} | changed
    query = urlencode({name: value for name, value in wanted.items() if value})
    return f"{path}?{query}" if query else path


def _filters() -> Filters:
    arguments = request.args
    wanted = arguments.get("status")
    if wanted and wanted not in list(Status):
        raise ValidationFailed.at("/status", f"must be one of {', '.join(Status)}")
    driver = arguments.get("driver", "")
    customer = arguments.get("customer", "").strip()[:200]
    is_id = customer.isascii() and customer.isdecimal() and int(customer) <= MAX_ID
    until = _day("to")
    return Filters(
        status=Status(wanted) if wanted else None,
        words=arguments.get("q", "").strip()[:200] or None,
        driver_id=None if driver in ("", "none") else integer("driver", low=1),
        unassigned=driver == "none",
        customer=None if is_id else customer or None,
        customer_id=int(customer) if is_id else None,
        created_from=_day("from"),
        created_before=until + timedelta(days=1) if until else None,
        deleted=arguments.get("deleted") == "yes",
    )


def _day(name: str) -> datetime | None:
    raw = request.args.get(name)
    if not raw:
        return None
    try:
        return datetime.strptime(raw, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ValidationFailed.at(f"/{name}", "must be a date such as 2025-07-28") from None


# --- several at once ---------------------------------------------------------------------------


@blueprint.post("/board/move")
def move() -> Response:
    form = read({"status": fields("order", "driver_id").get("status", "")}, StatusForm)
    return _done(screens.move_many(identity.principal(), _chosen(), form.status, scope()))


@blueprint.post("/board/assign")
def assign() -> Response:
    driver_id = fields("order", "status").get("driver_id", "")
    form = read({"driver_id": None if driver_id == "none" else driver_id}, DriverForm)
    return _done(screens.assign_many(identity.principal(), _chosen(), form.driver_id, scope()))


def _chosen() -> list[int]:
    raw = request.form.getlist("order")
    if len(raw) > AT_ONCE:
        raise ValidationFailed.at("/order", f"must be at most {AT_ONCE} orders at once")
    if not all(one.isascii() and one.isdecimal() and int(one) <= MAX_ID for one in raw):
        raise ValidationFailed.at("/order", "must be ids of orders")
    return [int(one) for one in raw]


def _done(outcomes: list[Outcome]) -> Response:
    following = back("/board")
    refused = sum(one.refused is not None for one in outcomes)
    changed = _orders(len(outcomes) - refused)
    if not outcomes:
        return go_to(following, "none_chosen")
    if refused:
        return go_to(following, "partly", changed, refused)
    return go_to(following, "changed", changed)


def _orders(number: int) -> str:
    return "1 order" if number == 1 else f"{number} orders"


# --- export ------------------------------------------------------------------------------------

COLUMNS = (
    "id",
    "status",
    "description",
    "customer_id",
    "customer",
    "driver_id",
    "driver",
    "version",
    "created_at",
    "updated_at",
)


@blueprint.get("/board.csv")
def export() -> Response:
    """All orders of the board's filters, streamed; never more than a batch in memory."""
    known_arguments(*FILTERS)
    rows = screens.export(identity.principal(), _filters(), scope())
    # The first row is read here, so that a refusal is an answer of its own and not half a file.
    first = next(rows, None)
    found = chain(() if first is None else (first,), rows)
    name = f"orders-{datetime.now(UTC):%Y-%m-%d}.csv"
    return Response(
        stream_with_context(_lines(found)),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _lines(found: Iterator[OrderView]) -> Iterator[str]:
    buffer = StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for number, order in enumerate(found, 1):
        writer.writerow(
            (
                order.id,
                order.status,
                _harmless(order.description),
                order.customer_id,
                _harmless(order.customer_name),
                order.driver_id,
                _harmless(order.driver_name or ""),
                order.version,
                present_time(order.created_at),
                present_time(order.updated_at),
            )
        )
        if number % 200 == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _harmless(cell: str) -> str:
    """Text that no spreadsheet takes for a formula (OWASP: CSV injection)."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
