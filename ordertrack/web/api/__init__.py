"""The REST API: one module for each kind of resource, and `health` for operators."""

from flask import Flask

from ordertrack.web.api import auth, health, orders, users


def init_app(app: Flask) -> None:
    """Register the API's blueprints."""
    for module in (auth, orders, users, health):
        app.register_blueprint(module.blueprint)
