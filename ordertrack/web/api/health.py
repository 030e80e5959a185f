"""Health checks and metrics for operators. See docs/operations.md."""

from flask import Blueprint, Response, request
from prometheus_client.exposition import choose_encoder

from ordertrack import auth, db
from ordertrack.errors import Unavailable
from ordertrack.extensions import state
from ordertrack.web.parsing import json_response

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
@auth.public
def healthz() -> Response:
    """Liveness: the process answers. The database is not checked: a restart would not mend it."""
    return json_response({"status": "ok"})


@blueprint.get("/readyz")
@auth.public
def readyz() -> Response:
    """Readiness: the database answers, and the relay follows the log. Raises `Unavailable`."""
    if not state().relay.is_following:
        raise Unavailable("The relay is not following the log.")
    db.require_answer()
    return json_response({"status": "ready"})


@blueprint.get("/metrics")
@auth.public
def metrics() -> Response:
    """This process's metrics, in Prometheus' text format, or OpenMetrics if the client asks."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(state().metrics), content_type=content_type)
