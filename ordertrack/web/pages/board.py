"""The dispatchers' board: all orders, filtered by the query, and changed in bulk."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import chain
from typing import Any, Final
from urllib.parse import urlencode

from flask import Blueprint, Response, request, stream_with_context

from ordertrack import auth
from ordertrack.errors import Conflict, DomainError, ValidationFailed
from ordertrack.lifecycle import TERMINAL, Status
from ordertrack.schemas import MAX_ID, DriverAssignment, StatusChange, parse, present_time
from ordertrack.services import accounts, bulk, callers, order_lists
from ordertrack.services.bulk import Outcome
from ordertrack.services.order_lists import Count
from ordertrack.services.order_query import Filters
from ordertrack.services.order_rows import OrderView, no_such_order
from ordertrack.web.pages.rendering import back, fields, go_to, messages, render
from ordertrack.web.parsing import integer_argument, refuse_unknown_arguments

blueprint = Blueprint("board", __name__)

PAGE = 50

# Orders that one form may change. A page shows 50; `picked` may add others.
MAX_SELECTED = 100

FILTERS = ("status", "q", "driver", "customer", "from", "to", "deleted")


@blueprint.get("/board")
def show() -> Response:
    """``picked`` names the orders that are selected when the page is shown."""
    refuse_unknown_arguments(*FILTERS, "before", "picked")
    wanted = request.args.get("picked")
    picked = _ids(wanted.split(","), "/picked") if wanted else []
    errors: dict[str, str] = {}
    try:
        filters = _filters()
    except ValidationFailed as error:
        errors = messages(error)
        if not errors.keys() <= {"from", "to"}:  # no field of the page can show it
            raise
        filters = Filters()
    found = order_lists.board(
        auth.caller(), filters, before=integer_argument("before", low=1), limit=PAGE
    )
    page = found.page
    older = None if errors else page.older
    return render(
        "board.html",
        422 if errors else 200,
        viewer=page.actor,
        orders=[] if errors else page.orders,
        cut_short=page.cut_short,
        searched_to=older,
        counts=found.counts,
        total=sum(found.counts.values(), start=Count(0)),
        drivers=found.drivers,
        filters=filters,
        errors=errors,
        picked=frozenset(picked),
        chosen={name: request.args.get(name, "") for name in FILTERS},
        is_filtered=any(request.args.get(name) for name in FILTERS),
        older=_address(before=older) if older is not None else None,
        newest=_address() if "before" in request.args else None,
        here=_address(before=request.args.get("before")),
        address=_address,
    )


def _address(path: str = "/board", **changed: Any) -> str:
    """The board's URL with the present filters, and those of *changed* instead of theirs."""
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
    since, until = _day("from"), _day("to")
    if since and until and until < since:
        raise ValidationFailed.at("/to", "must not be before the first day")
    return Filters(
        status=Status(wanted) if wanted else None,
        words=arguments.get("q", "").strip()[:200] or None,
        driver_id=None if driver in ("", "none") else integer_argument("driver", low=1),
        unassigned=driver == "none",
        customer=None if is_id else customer or None,
        customer_id=int(customer) if is_id else None,
        created_from=since,
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


# --- changes in bulk ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """The question that a bulk change has to be confirmed with.

    ask         its text, with a place for the number of orders: "Cancel {}?"
    hidden      the form's field, and its value, that say what to change
    name        a driver's name that ends the question, or nothing
    hint        a sentence below it
    """

    ask: str
    hidden: tuple[str, str]
    name: str = ""
    hint: str = ""


# The question, a sentence below it, and what happened, after the number: "3 orders cancelled".
_MOVES: Final[dict[Status, tuple[str, str, str]]] = {
    Status.PENDING: ("Move {} to Pending?", "", "moved to Pending"),
    Status.PROCESSING: ("Move {} to Processing?", "", "moved to Processing"),
    Status.SHIPPED: ("Move {} to Shipped?", "", "moved to Shipped"),
    Status.COMPLETED: ("Mark {} as Completed?", "Completed is final.", "completed"),
    Status.CANCELLED: ("Cancel {}?", "A cancelled order cannot be taken up again.", "cancelled"),
}


@blueprint.post("/board/move")
def move() -> Response:
    values = fields("order", "left", "driver_id", "confirmed")
    target = parse({"status": values.get("status", "")}, StatusChange).status
    order_ids = _chosen()
    ask, hint, what = _MOVES[target]
    if order_ids and request.form.get("confirmed") != "yes":
        question = Question(ask, ("status", target.value), hint=hint)
        return _confirmation(order_ids, question, lambda order: target in order.next_statuses)
    outcomes = bulk.move(auth.caller(), order_ids, target)
    return _result(outcomes + _left_unchanged(), what)


@blueprint.post("/board/assign")
def assign() -> Response:
    driver_id = fields("order", "left", "status", "confirmed").get("driver_id", "")
    form = parse({"driver_id": None if driver_id == "none" else driver_id}, DriverAssignment)
    order_ids = _chosen()
    if order_ids and request.form.get("confirmed") != "yes":
        callers.require_admin(callers.identify(auth.caller()))
        drivers = accounts.drivers()
        name = next((driver.name for driver in drivers if driver.id == form.driver_id), None)
        if name is None and form.driver_id is not None:
            raise ValidationFailed.at("/driver_id", "must be the id of an active driver")
        ask = "Take the driver off {}?" if name is None else "Assign {} to "
        question = Question(ask, ("driver_id", driver_id), name=name or "")
        return _confirmation(order_ids, question, lambda order: order.status not in TERMINAL)
    outcomes = bulk.assign(auth.caller(), order_ids, form.driver_id)
    what = "assigned" if form.driver_id else "without a driver now"
    return _result(outcomes + _left_unchanged(), what)


def _chosen() -> list[int]:
    return _ids(request.form.getlist("order"), "/order")


def _left_unchanged() -> list[Outcome]:
    """The selected orders that the question listed as not changing, shown with the refused ones.

    They stay unchanged even if the change has become possible meanwhile: it was not confirmed.
    """
    order_ids = _ids(request.form.getlist("left"), "/left")
    if not order_ids:
        return []
    found = bulk.chosen(auth.caller(), order_ids).orders
    reasons: dict[int, DomainError] = {
        order.id: Conflict(f"It was {order.status}, and is left so.") for order in found
    }
    gone = no_such_order()
    return [Outcome(order_id, reasons.get(order_id, gone)) for order_id in order_ids]


def _ids(raw: Sequence[str], pointer: str) -> list[int]:
    if len(raw) > MAX_SELECTED:
        raise ValidationFailed.at(pointer, f"must be at most {MAX_SELECTED} orders at once")
    if not all(one.isascii() and one.isdecimal() and int(one) <= MAX_ID for one in raw):
        raise ValidationFailed.at(pointer, "must be ids of orders")
    return [int(one) for one in raw]


def _confirmation(
    order_ids: list[int], question: Question, can_change: Callable[[OrderView], bool]
) -> Response:
    """The page that asks *question*. It lists the orders that change, and those that cannot."""
    found = bulk.chosen(auth.caller(), order_ids)
    changing = [order for order in found.orders if can_change(order)]
    return render(
        "bulk_confirm.html",
        viewer=found.actor,
        before_name=question.ask.format(_count(len(changing))),
        question=question,
        path=request.path,
        changing=changing,
        left=[one for one in order_ids if one not in {order.id for order in changing}],
        others=[order for order in found.orders if not can_change(order)],
        missing=len(set(order_ids)) - len(found.orders),
        customers=Counter((order.customer_id, order.customer_name) for order in changing),
        back=back("/board"),
        back_with_selection=_with_picked(back("/board"), order_ids),
    )


def _with_picked(path: str, order_ids: Sequence[int]) -> str:
    joint = "&" if "?" in path else "?"
    return f"{path}{joint}{urlencode({'picked': ','.join(map(str, order_ids))})}"


def _result(outcomes: list[Outcome], what: str) -> Response:
    """The board again, with a notice; where some were refused, a page that lists them first."""
    following = back("/board")
    refused = [one for one in outcomes if one.refused is not None]
    changed = _count(len(outcomes) - len(refused))
    if not outcomes:
        return go_to(following, "none_chosen")
    if not refused:
        return go_to(following, "changed", changed, what)
    return render(
        "bulk_refused.html",
        viewer=callers.identify(auth.caller()),
        changed=f"{changed} {what}",
        left=_count(len(refused)),
        refused=refused,
        back_with_selection=_with_picked(following, [one.order_id for one in refused]),
    )


def _count(number: int) -> str:
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
    """Stream all orders that match the filters as CSV, with one batch in memory at a time."""
    refuse_unknown_arguments(*FILTERS)
    rows = order_lists.export(auth.caller(), _filters())
    # The first row is read before the response begins, so that a refusal is an error page.
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
                _without_formula(order.description),
                order.customer_id,
                _without_formula(order.customer_name),
                order.driver_id,
                _without_formula(order.driver_name or ""),
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


def _without_formula(cell: str) -> str:
    """*cell*, so that no spreadsheet evaluates it as a formula (OWASP: CSV injection)."""
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
