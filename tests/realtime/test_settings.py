"""The settings that limit connections and their queues take effect."""

import pytest

from ordertrack.app import create_app
from ordertrack.realtime import setup
from ordertrack.realtime.connections import Connections
from ordertrack.server.websocket import Limits
from tests.support.databases import settings_for


def test_every_setting_reaches_its_limit(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Limits] = []
    connections: list[dict[str, object]] = []

    def spy_limits(**given: object) -> Limits:
        limits.append(Limits(**given))  # type: ignore[arg-type]
        return limits[-1]

    def spy_connections(**given: object) -> Connections:
        connections.append(given)
        return Connections(**given)  # type: ignore[arg-type]

    monkeypatch.setattr(setup, "Limits", spy_limits)
    monkeypatch.setattr(setup, "Connections", spy_connections)
    create_app(
        settings_for(
            database,
            MAX_BODY_BYTES="70001",
            QUEUE_MAX_BYTES="700002",
            QUEUE_MAX_SECONDS="7",
            MAX_CONNECTIONS="73",
            MAX_CONNECTIONS_PER_USER="7",
        )
    )
    (found,), (shares,) = limits, connections
    assert found.max_message_bytes == 70001
    assert found.max_queue_bytes == 700002
    assert found.max_queue_seconds == 7
    assert found.max_connections == 73
    assert (shares["limit"], shares["per_user"]) == (73, 7)
