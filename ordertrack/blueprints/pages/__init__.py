"""The pages: forms and redirects that work without JavaScript, on the services that REST uses.

One module for each thing people do: `session`, `orders` (a customer's, and one order), `deliveries`
(a driver's phone), `board` (dispatchers), `people` (users and roles), `account` (one's own password
and sessions). `errors` shows refusals, `offline` is what a browser shows without a network.
"""

from flask import Blueprint, Flask

from ordertrack.blueprints.pages import (
    _page,
    account,
    board,
    deliveries,
    errors,
    offline,
    orders,
    people,
    session,
)

BLUEPRINTS: tuple[Blueprint, ...] = (
    session.blueprint,
    orders.blueprint,
    deliveries.blueprint,
    board.blueprint,
    people.blueprint,
    account.blueprint,
    offline.blueprint,
)


def init_app(app: Flask) -> None:
    _page.init_app(app)
    errors.init_app(app)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
