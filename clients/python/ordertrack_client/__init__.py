"""Watches orders live: each order's events in version order, each once, none missing.

The Python counterpart of static/js/order-stream.js; clients/README.md describes both.

    stream = OrderStream("http://localhost:8080", token=lambda: access_token)
    stop = stream.watch("42", after=3, on_event=print)
    …
    stream.close()
"""

from ordertrack_client.cursor import OrderCursor
from ordertrack_client.protocol import Event, History, Order, Person, Problem, ProblemError
from ordertrack_client.stream import OrderStream, State

# The name of `OrderCursor` in version 0.1.0, kept for code that imports it.
Trail = OrderCursor

__all__ = [
    "Event",
    "History",
    "Order",
    "OrderCursor",
    "OrderStream",
    "Person",
    "Problem",
    "ProblemError",
    "State",
    "Trail",
]
