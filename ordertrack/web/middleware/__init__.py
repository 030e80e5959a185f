"""WSGI middleware, which `ordertrack.app` puts around all that answers a request."""
