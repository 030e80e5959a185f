"""Watch orders live: each order's events in order, each once, none missing, whatever the network
does. The same as static/js/order-stream.js, in Python; clients/README.md tells about both.

    stream = OrderStream("http://localhost:8080", token=lambda: access_token)
    stop = stream.watch("42", after=3, on_event=print)
    …
    stream.close()
"""

from ordertrack_client.protocol import Event, History, Order, Person, Problem, ProblemError
from ordertrack_client.stream import OrderStream, State
from ordertrack_client.trail import Trail

__all__ = [
    "Event",
    "History",
    "Order",
    "OrderStream",
    "Person",
    "Problem",
    "ProblemError",
    "State",
    "Trail",
]
