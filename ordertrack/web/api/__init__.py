"""The REST API: one module for each kind of resource, and `health` for operators."""

from flask import Blueprint, Flask

from ordertrack.web.api import auth, health, orders, users

BLUEPRINTS: tuple[Blueprint, ...] = (
    auth.blueprint,
    orders.blueprint,
    users.blueprint,
    health.blueprint,
)


def init_app(app: Flask) -> None:
    """Register the API's blueprints."""
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
