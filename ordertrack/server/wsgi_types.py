"""The types of WSGI (PEP 3333), as the server and the middleware use them."""

from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Any]  # (status, headers[, exc_info]) → write
Wsgi = Callable[[Environ, StartResponse], Iterable[bytes]]
