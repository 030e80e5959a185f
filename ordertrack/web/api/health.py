"""For those who run it: alive, ready, and in figures. See docs/operations.md."""

from flask import Blueprint, Response, request
from prometheus_client.exposition import choose_encoder

from ordertrack import auth, db
from ordertrack.errors import Unavailable
from ordertrack.extensions import state
from ordertrack.web.http import json_answer

blueprint = Blueprint("ops", __name__)


@blueprint.get("/healthz")
@auth.public
def healthz() -> Response:
    """The process answers: no more than that, so that a database's fault does not restart it."""
    return json_answer({"status": "ok"})


@blueprint.get("/readyz")
@auth.public
def readyz() -> Response:
    """Whether to send it traffic: the database answers and the relay follows the log."""
    if not state().relay.is_following:
        raise Unavailable("The relay is not following the log.")
    db.require_answer()
    return json_answer({"status": "ready"})


@blueprint.get("/metrics")
@auth.public
def metrics() -> Response:
    """This process's figures, in Prometheus' text format or, if asked, OpenMetrics."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(state().metrics), content_type=content_type)
