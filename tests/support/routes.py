"""Every route, and what each kind of caller is answered. A new route needs a row.

stranger    a customer with an order of somebody else's
owner       the customer whose order it is
driver      a driver, not this order's          assigned    the order's own driver
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from tests.support.http import Answer, Api

CALLERS = ("anonymous", "signed out", "stranger", "owner", "driver", "assigned", "admin")


@dataclass(frozen=True)
class Row:
    """What a route answers.

    expected        caller → status
    body            sent with the request; {email}, {password}, {own} and {driver} are filled in
    page            whether a browser asks: for HTML, and with a form instead of JSON; being sent to
                    the sign-in page counts as 401 then
    ends_session    the caller signs in anew for it
    outlives        the route reads what is left of deleted orders, for admins
    file            what stands for <path:filename>
    """

    expected: Mapping[str, int]
    body: Mapping[str, Any] | None = None
    page: bool = False
    ends_session: bool = False
    outlives: bool = False
    file: str = ""

    def send(self, api: Api, method: str, path: str, body: dict[str, Any] | None) -> Answer:
        if not self.page:
            return api.request(method, path, json=body)
        headers = {"Accept": "text/html", "Accept-Encoding": "identity"}
        if method == "GET":
            return api.get(path, headers=headers)
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        return api.request(method, path, body=urlencode(body or {}).encode(), headers=headers)

    def status(self, answer: Answer) -> int:
        """The answer's status in the terms of the table."""
        to_sign_in = answer.headers.get("Location", "").startswith("/login")
        return 401 if self.page and to_sign_in else answer.status_code


def row(*statuses: int, body: Mapping[str, Any] | None = None, **options: Any) -> Row:
    """*statuses* in the order of `CALLERS`."""
    return Row(dict(zip(CALLERS, statuses, strict=True)), body, **options)


def everybody(status: int, body: Mapping[str, Any] | None = None, **options: Any) -> Row:
    return row(*[status] * len(CALLERS), body=body, **options)


def page(*statuses: int, body: Mapping[str, Any] | None = None, **options: Any) -> Row:
    """As `row`, for what a browser asks for."""
    return row(*statuses, body=body, page=True, **options)


_TEXT = {"description": "two boxes of pears"}

# fmt: off
#                                                anon out  str  own  drv  asg  adm
API = {
    "POST /api/register":          everybody(201, {"name": "Ann", "email": "{email}",
                                                   "password": "{password}"}),
    "POST /api/login":             everybody(200, {"email": "{own}", "password": "{password}"}),
    # Callers come with access tokens; that a refresh token works is tested with the accounts.
    "POST /api/refresh":                     everybody(401),
    "POST /api/logout":                      row(401, 204, 204, 204, 204, 204, 204,
                                                 ends_session=True),
    "GET /api/me":                           row(401, 401, 200, 200, 200, 200, 200),
    "PUT /api/me/password":                  row(401, 401, 422, 422, 422, 422, 422,
                                                 body={"current_password": "not this one",
                                                       "new_password": "{password}"}),
    "POST /api/password-reset":    everybody(422, {"token": "made up", "password": "{password}"}),
    "GET /api/me/sessions":                  row(401, 401, 200, 200, 200, 200, 200),
    "DELETE /api/me/sessions/<id:session_id>": row(401, 401, 404, 404, 404, 404, 404),
    "POST /api/orders":                      row(401, 401, 201, 201, 201, 201, 201, body=_TEXT),
    "GET /api/orders":                       row(401, 401, 200, 200, 200, 200, 200),
    "GET /api/orders/<id:order_id>":         row(401, 401, 404, 200, 200, 200, 200),
    "PUT /api/orders/<id:order_id>":         row(401, 401, 404, 200, 403, 403, 200, body=_TEXT),
    "PATCH /api/orders/<id:order_id>":       row(401, 401, 404, 200, 403, 403, 200, body=_TEXT),
    "DELETE /api/orders/<id:order_id>":      row(401, 401, 404, 204, 403, 403, 204),
    "PUT /api/orders/<id:order_id>/status":  row(401, 401, 404, 403, 200, 200, 200,
                                                 body={"status": "Processing"}),
    "PUT /api/orders/<id:order_id>/driver":  row(401, 401, 404, 403, 403, 403, 200,
                                                 body={"driver_id": "{driver}"}),
    "GET /api/orders/<id:order_id>/history": row(401, 401, 404, 200, 200, 200, 200,
                                                 outlives=True),
    "GET /api/admin/orders":                 row(401, 401, 403, 403, 200, 200, 200),
    "GET /api/admin/users":                  row(401, 401, 403, 403, 403, 403, 200),
    "PATCH /api/admin/users/<id:user_id>":   row(401, 401, 403, 403, 403, 403, 200,
                                                 body={"active": True}),
    "POST /api/admin/users/<id:user_id>/password-reset":
                                             row(401, 401, 403, 403, 403, 403, 201),
}

OPERATIONS = {
    "GET /healthz":                          everybody(200),
    "GET /metrics":                          everybody(200),
    "GET /readyz":                           everybody(200),
}

_ONE = {"order": "{order}", "confirmed": "yes"}

# The dashboard. 303 leads on to where the work is, 401 to the sign-in page.
#                                                    anon out  str  own  drv  asg  adm
PAGES: dict[str, Row] = {
    "GET /static/<path:name>":                  everybody(200, file="js/order-stream.js"),
    # Kept by browsers for the time without a network: the same for everybody.
    "GET /worker.js":                            everybody(200),
    "GET /offline":                              everybody(200, page=True),
    "GET /":                                     page(401, 401, 303, 303, 303, 303, 303),
    "GET /login":                                page(200, 200, 200, 200, 200, 200, 200),
    "POST /login":                               page(303, 303, 303, 303, 303, 303, 303,
                                                      body={"email": "{own}",
                                                            "password": "{password}"}),
    "GET /register":                             page(200, 200, 200, 200, 200, 200, 200),
    "POST /register":                            page(303, 303, 303, 303, 303, 303, 303,
                                                      body={"name": "Ann", "email": "{email}",
                                                            "password": "{password}"}),
    "POST /logout":                              page(401, 401, 401, 401, 401, 401, 401,
                                                      ends_session=True),
    # With the refresh token alone, as /api/refresh.
    "POST /session/renew":                       page(401, 401, 401, 401, 401, 401, 401),
    "GET /orders":                               page(401, 401, 200, 200, 200, 200, 200),
    "POST /orders":                              page(401, 401, 303, 303, 303, 303, 303,
                                                      body=_TEXT),
    "GET /orders/<id:order_id>":                 page(401, 401, 404, 200, 200, 200, 200,
                                                      outlives=True),
    "GET /orders/<id:order_id>/history":         page(401, 401, 404, 200, 200, 200, 200,
                                                      outlives=True),
    "POST /orders/<id:order_id>/edit":           page(401, 401, 404, 303, 403, 403, 303,
                                                      body=_TEXT),
    "POST /orders/<id:order_id>/delete":         page(401, 401, 404, 303, 403, 403, 303),
    "POST /orders/<id:order_id>/status":         page(401, 401, 404, 403, 303, 303, 303,
                                                      body={"status": "Processing"}),
    "POST /orders/<id:order_id>/driver":         page(401, 401, 404, 403, 403, 403, 303,
                                                      body={"driver_id": "{driver}"}),
    "GET /deliveries":                           page(401, 401, 403, 403, 200, 200, 200),
    "GET /board":                                page(401, 401, 403, 403, 200, 200, 200),
    "GET /board.csv":                            page(401, 401, 403, 403, 200, 200, 200),
    "POST /board/move":                          page(401, 401, 403, 403, 303, 303, 303,
                                                      body={"status": "Processing", **_ONE}),
    "POST /board/assign":                        page(401, 401, 403, 403, 403, 403, 303,
                                                      body={"driver_id": "{driver}", **_ONE}),
    "GET /users":                                page(401, 401, 403, 403, 403, 403, 200),
    "POST /users/<id:user_id>":                  page(401, 401, 403, 403, 403, 403, 303,
                                                      body={"active": "yes"}),
    "POST /users/<id:user_id>/reset":            page(401, 401, 403, 403, 403, 403, 200),
    "GET /account":                              page(401, 401, 200, 200, 200, 200, 200),
    "POST /account/password":                    page(401, 401, 422, 422, 422, 422, 422,
                                                      body={"current_password": "not this one",
                                                            "new_password": "{password}"}),
    "POST /account/sessions/<id:session_id>/end":
                                                 page(401, 401, 404, 404, 404, 404, 404),
    "GET /reset":                                page(200, 200, 200, 200, 200, 200, 200),
    "POST /reset":                               page(422, 422, 422, 422, 422, 422, 422,
                                                      body={"token": "made up",
                                                            "password": "{password}"}),
}
# fmt: on

ROWS = {**API, **OPERATIONS, **PAGES}
