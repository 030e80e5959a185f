"""WSGI middleware around everything that answers a request."""
