"""The page that a browser stores and shows when it cannot reach the server; without user data."""

from typing import Final

from flask import Blueprint, Response, render_template

from ordertrack import auth
from ordertrack.web.pages.rendering import render

blueprint = Blueprint("offline", __name__)

# The files that the page needs. The service worker caches them, and nothing else.
FILES: Final = (
    "favicon.svg",
    "vendor/bootstrap/bootstrap.min.css",
    "css/ordertrack.css",
    "js/offline.js",
)


@blueprint.get("/offline")
@auth.public
def page() -> Response:
    return render("offline.html")


@blueprint.get("/worker.js")
@auth.public
def worker() -> Response:
    """The service worker; at the root, because it may answer only for URLs below its own."""
    text = render_template("worker.js", files=FILES)
    response = Response(text, content_type="text/javascript; charset=utf-8")
    # Revalidated each time: a new release has other files, and so another worker.
    response.headers["Cache-Control"] = "no-cache"
    return response
