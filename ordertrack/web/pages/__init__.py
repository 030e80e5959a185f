"""The pages: forms and redirects that work without JavaScript, on the services that REST uses.

One module for each thing people do: `auth`, `orders` (a customer's, and one order), `deliveries`
(a driver's phone), `board` (dispatchers), `users` (users and roles), `account` (one's own password
and sessions). `errors` shows refusals, `offline` is what a browser shows without a network.
"""

from flask import Blueprint, Flask

from ordertrack.web.pages import (
    account,
    auth,
    board,
    deliveries,
    offline,
    orders,
    rendering,
    users,
)

BLUEPRINTS: tuple[Blueprint, ...] = (
    auth.blueprint,
    orders.blueprint,
    deliveries.blueprint,
    board.blueprint,
    users.blueprint,
    account.blueprint,
    offline.blueprint,
)


def init_app(app: Flask) -> None:
    rendering.init_app(app)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
