"""The HTML pages: forms and redirects that work without JavaScript, on the REST API's services.

`auth` (log in, log out, register), `orders` (a customer's orders, and one order), `deliveries` (for
drivers), `board` (for dispatchers), `users` (for admins), `account` (the viewer's password and
sessions), `errors`, `offline` (shown by browsers without a network). `rendering` is what they all
use, `progress` computes the steps that an order's page shows.
"""

from flask import Flask

from ordertrack.web.pages import account, auth, board, deliveries, offline, orders, rendering, users


def init_app(app: Flask) -> None:
    rendering.init_app(app)
    for module in (auth, orders, deliveries, board, users, account, offline):
        app.register_blueprint(module.blueprint)
