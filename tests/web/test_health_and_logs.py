"""Health checks, metrics, request ids, and the lines of requests in the log."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from socketio import SimpleClient

from ordertrack import logs
from ordertrack.services import accounts, order_lists, passwords
from ordertrack.web.middleware import request_log
from tests.support.http import Answer, Api
from tests.support.people import People
from tests.support.servers import ROOT, Server
from tests.support.waiting import eventually


def figures(answer: Answer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of /metrics by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


class Scrape:
    """What /metrics says now: ``Scrape(api)("deliveries_total")``, without the common prefix."""

    def __init__(self, api: Api) -> None:
        answer = api.get("/metrics")
        assert answer.status_code == 200
        self.found = figures(answer)

    def __call__(self, name: str, **labels: str) -> float:
        return self.found.get((f"ordertrack_{name}", frozenset(labels.items())), 0.0)


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The records of the log so far, as the formatter writes them."""
    written: list[str] = []
    formatter = logs.JsonFormatter()

    class Written(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(formatter.format(record))

    handler = Written()
    logger = logging.getLogger("ordertrack")
    logger.addHandler(handler)
    with caplog.at_level("DEBUG", "ordertrack"):
        yield lambda: [json.loads(line) for line in written]
    logger.removeHandler(handler)


# --- health checks -----------------------------------------------------------------------------


def test_healthz_answers_without_a_database(nobody: Api) -> None:
    answer = nobody.get("/healthz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok"}


def test_readyz_is_503_where_no_relay_follows_the_log(nobody: Api) -> None:
    answer = nobody.get("/readyz")
    assert answer.status_code == 503
    assert answer.code == "unavailable"


def test_readyz_is_200_on_a_running_server(server: Server) -> None:
    assert server.api.get("/readyz").json() == {"status": "ready"}


# --- metrics -----------------------------------------------------------------------------------


def test_metrics_are_prometheus_text_or_openmetrics(nobody: Api) -> None:
    plain = nobody.get("/metrics")
    assert plain.headers["Content-Type"].startswith("text/plain; version=")
    assert figures(plain)
    other = nobody.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert other.headers["Content-Type"].startswith("application/openmetrics-text")
    assert other.text.endswith("# EOF\n")


def test_requests_are_counted_by_route_method_and_status_class(people: People, nobody: Api) -> None:
    customer = people.customer()
    order = customer.order()
    labels = {"route": "/api/orders/<id:order_id>", "method": "GET"}
    before = Scrape(nobody)
    customer.read(order)
    nobody.get(f"/api/orders/{order['id']}")
    after = Scrape(nobody)
    count = "http_request_duration_seconds_count"
    for status in ("2xx", "4xx"):
        assert after(count, status=status, **labels) == before(count, status=status, **labels) + 1
    name = "http_request_duration_seconds_bucket"
    assert after(name, status="2xx", le="+Inf", **labels) == after(count, status="2xx", **labels)


def test_paths_and_methods_that_clients_make_up_become_no_labels(nobody: Api) -> None:
    for path in ("/made/up/one", "/made/up/two"):
        nobody.request("BREW", path)
        nobody.get(path)
    scrape = Scrape(nobody)
    count = "http_request_duration_seconds_count"
    assert scrape(count, route="(none)", method="(other)", status="4xx") >= 2
    assert scrape(count, route="(none)", method="GET", status="4xx") >= 2
    assert not any("made" in value for _, labels in scrape.found for _, value in labels)
    assert not any("BREW" in value for _, labels in scrape.found for _, value in labels)


def test_the_operations_page_lists_exactly_the_metrics_there_are(server: Server) -> None:
    server.api.get("/healthz")
    exposed = {
        family.name.removeprefix("ordertrack_")
        for family in text_string_to_metric_families(server.api.get("/metrics").text)
        if family.name.startswith("ordertrack_")
    }
    table = (
        (ROOT / "docs/operations.md").read_text().partition("| Metric |")[2].partition("\n\n")[0]
    )
    first_cells = "".join(line.split("|")[1] for line in table.splitlines()[2:])
    named = re.findall(r"`([a-z_]+)(?:\{[a-z,]+\})?`", first_cells)
    assert {name.removesuffix("_total") for name in named} == exposed


def test_metrics_show_the_connection_pool(nobody: Api) -> None:
    scrape = Scrape(nobody)
    assert scrape("db_pool_size") == 10
    assert scrape("db_pool_checked_out") == 0
    assert scrape("db_pool_waiting") == 0


def test_metrics_count_connections_subscriptions_and_deliveries(
    start_server: Callable[..., Server], database: str
) -> None:
    server = start_server(database)
    driver = server.people.driver()
    customer = server.people.customer()
    order = customer.order()
    with SimpleClient() as client:
        client.connect(server.url, auth={"token": customer.token}, transports=["websocket"])
        acknowledged = client.call("subscribe", {"order_id": order["id"], "after": 0})
        assert len(acknowledged["events"]) == 1
        driver.move(order, "Processing", "Shipped")
        assert [client.receive(timeout=10)[1]["version"] for _ in range(2)] == [2, 3]

        scrape = Scrape(server.api)
        assert scrape("connections", kind="socketio_websocket") == 1
        assert scrape("connections", kind="socketio_polling") == 0
        assert scrape("connections", kind="websocket") == 0
        assert scrape("guests") == 1
        assert scrape("subscriptions", kind="socketio_order") == 1
        assert scrape("subscriptions", kind="socketio_feed") == 0
        assert scrape("subscribes_total") == 1
        assert scrape("resumes_total") == 1
        assert scrape("resets_total") == 0
        assert scrape("replayed_events_total") == 1
        assert scrape("deliveries_total") == 2
        assert scrape("relay_events_total") >= 3  # others may share the database
        assert scrape("relay_lag_seconds_count") == scrape("relay_events_total")
        assert scrape("relay_following") == 1
        assert scrape("relay_reconnects_total") == 0
        assert scrape("queue_bytes") == 0
        assert scrape("slow_closes_total") == 0
        assert scrape("loop_lag_seconds_count") > 0
        assert scrape("db_pool_size") == 10
        upgrades = {"route": "/socket.io/", "method": "GET", "status": "1xx"}
        assert scrape("http_request_duration_seconds_count", **upgrades) == 1

    eventually(lambda: Scrape(server.api)("connections", kind="socketio_websocket") == 0)
    scrape = Scrape(server.api)
    assert scrape("guests") == 0
    assert scrape("subscriptions", kind="socketio_order") == 0
    assert scrape("connections_opened_total") == 1


def test_refused_handshakes_are_counted_by_problem_code(
    start_server: Callable[..., Server], database: str
) -> None:
    server = start_server(database)
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    assert server.api.get("/ws/orders/1", headers=upgrade).code == "invalid_token"
    foreign = {**upgrade, "Origin": "https://evil.example"}
    assert server.api.get("/ws/orders/1", headers=foreign).code == "forbidden"
    scrape = Scrape(server.api)
    assert scrape("handshakes_refused_total", code="invalid_token") == 1
    assert scrape("handshakes_refused_total", code="forbidden") == 1


# --- request ids -------------------------------------------------------------------------------


def test_every_answer_has_a_request_id_of_its_own(nobody: Api) -> None:
    ids = {nobody.get("/healthz").headers["X-Request-ID"] for _ in range(3)}
    ids.add(nobody.get("/nothing").headers["X-Request-ID"])
    assert len(ids) == 4


@pytest.mark.parametrize("given", ["7d6e1f2c-4a0b-4a3e-9a55-0d5f6a1b2c3d", "01J.trace_1", "x"])
def test_a_request_id_of_the_client_is_kept(nobody: Api, given: str) -> None:
    answer = nobody.get("/healthz", headers={"X-Request-ID": given})
    assert answer.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", "é", '"}{'])
def test_a_malformed_request_id_of_the_client_is_replaced(nobody: Api, given: str) -> None:
    answer = nobody.get("/healthz", headers={"X-Request-ID": given})
    assert answer.headers["X-Request-ID"] != given
    assert request_log._SANE_ID.fullmatch(answer.headers["X-Request-ID"])


# --- the log line of a request -----------------------------------------------------------------


def lines_of(records: list[dict[str, Any]], request_id: str) -> list[dict[str, Any]]:
    """The request's line and exceptions, without the DEBUG records of other loggers."""
    ours = ("ordertrack.web.middleware.request_log", "ordertrack.problems")
    return [
        record
        for record in records
        if record.get("request_id") == request_id and record["logger"] in ours
    ]


def test_a_write_is_logged_with_user_route_status_and_duration(
    people: People, records: Callable[[], list[dict[str, Any]]]
) -> None:
    admin, other = people.admin(), people.customer()
    answer = admin.api.patch(
        f"/api/admin/users/{other.id}?x=secret-in-a-query",
        json={"role": "driver"},
        headers={"X-Request-ID": "write-1"},
    )
    assert answer.status_code == 200
    [record] = lines_of(records(), "write-1")
    assert record["level"] == "INFO"
    assert record["message"] == "request"
    assert record["method"] == "PATCH"
    assert record["path"] == "/api/admin/users/<id:user_id>"
    assert record["status"] == 200
    assert record["user_id"] == admin.id
    assert record["duration_ms"] > 0
    assert "secret-in-a-query" not in json.dumps(records())


def test_a_login_is_logged_with_the_users_id(
    people: People, nobody: Api, records: Callable[[], list[dict[str, Any]]]
) -> None:
    person = people.customer()
    credentials = {"email": person.email, "password": person.password}
    nobody.post("/api/login", json=credentials, headers={"X-Request-ID": "login-1"})
    [record] = lines_of(records(), "login-1")
    assert record["level"] == "INFO"
    assert record["user_id"] == person.id


def test_of_changes_of_an_order_only_refusals_are_logged_at_info(
    people: People, records: Callable[[], list[dict[str, Any]]]
) -> None:
    driver, order = people.driver(), people.customer().order()
    path = f"/api/orders/{order['id']}/status"
    for request_id in ("move-1", "move-2"):
        driver.api.put(path, json={"status": "Processing"}, headers={"X-Request-ID": request_id})
    driver.api.put(path, json={"status": "Completed"}, headers={"X-Request-ID": "move-3"})
    levels = [lines_of(records(), f"move-{n}")[0]["level"] for n in (1, 2, 3)]
    assert levels == ["DEBUG", "DEBUG", "INFO"]
    [refused] = lines_of(records(), "move-3")
    assert refused["path"] == "/api/orders/<id:order_id>/status"
    assert refused["status"] == 409
    assert refused["user_id"] == driver.id


def test_a_quick_read_is_logged_at_debug_and_a_refused_one_at_info(
    people: People, nobody: Api, records: Callable[[], list[dict[str, Any]]]
) -> None:
    customer = people.customer()
    order = customer.order()
    customer.api.get(f"/api/orders/{order['id']}", headers={"X-Request-ID": "read-1"})
    nobody.get(f"/api/orders/{order['id']}", headers={"X-Request-ID": "read-2"})
    [quick] = lines_of(records(), "read-1")
    [refused] = lines_of(records(), "read-2")
    assert quick["level"] == "DEBUG"
    assert refused["level"] == "INFO"
    assert refused["status"] == 401
    assert refused["user_id"] is None


def test_a_slow_read_is_logged_at_info(
    people: People, records: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "SLOW_SECONDS", 0.0)
    customer = people.customer()
    customer.api.get("/api/orders", headers={"X-Request-ID": "slow-1"})
    [record] = lines_of(records(), "slow-1")
    assert record["level"] == "INFO"


def test_an_unexpected_exception_is_logged_with_its_traceback_and_answered_with_the_request_id(
    people: People,
    records: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    customer = people.customer()

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("the sum of \r\n\x1b all fears")

    monkeypatch.setattr(order_lists, "own_page", fail)
    answer = customer.api.get("/api/orders", headers={"X-Request-ID": "bad-1"})
    assert answer.status_code == 500
    assert answer.code == "internal_error"
    assert answer.json()["request_id"] == "bad-1"
    assert "fears" not in answer.text
    error, line = lines_of(records(), "bad-1")
    assert error["level"] == "ERROR"
    assert "\nZeroDivisionError: the sum of" in error["traceback"]
    assert line["message"] == "request"
    assert line["level"] == "WARNING"
    assert line["status"] == 500
    assert line["user_id"] == customer.id


@pytest.mark.safety("log-lines")
def test_no_password_token_or_cookie_is_logged_even_in_an_exception(
    people: People,
    nobody: Api,
    records: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    person = people.customer()
    secrets = [person.password, person.token, person.refresh_token, "wrong horse staple"]
    nobody.post("/api/login", json={"email": person.email, "password": "wrong horse staple"})
    cookie = {"Cookie": f"access_token_cookie={person.token}"}
    nobody.get(f"/api/me?token={person.token}", headers=cookie)

    def tell_all(*arguments: object) -> None:
        raise ValueError(f"{arguments} {cookie} Bearer {person.token}")

    monkeypatch.setattr(passwords, "run_in_thread", tell_all)
    answer = nobody.post("/api/login", json={"email": person.email, "password": person.password})
    assert answer.status_code == 500
    monkeypatch.setattr(accounts, "me", tell_all)
    person.api.get("/api/me", headers=cookie)
    nobody.post("/api/refresh", headers={"Authorization": f"Bearer {person.refresh_token}"})

    written = json.dumps(records())
    assert "ValueError" in written
    for secret in secrets:
        assert secret not in written


@pytest.mark.safety("log-lines")
def test_a_servers_standard_error_is_json_lines_without_secrets(
    start_server: Callable[..., Server], database: str
) -> None:
    server = start_server(database, LOG_LEVEL="DEBUG")
    customer = server.people.customer()
    order = customer.order()
    server.people.driver().move(order, "Processing")
    with SimpleClient() as client:
        client.connect(server.url, auth={"token": customer.token}, transports=["polling"])
        client.call("subscribe", {"order_id": order["id"]})
    upgrade = {"Sec-WebSocket-Protocol": f"ordertrack.v1, bearer.{customer.token}"}
    server.api.get(f"/ws/orders/{order['id']}?token={customer.token}", headers=upgrade)
    assert server.terminate() == 0

    announced = ("OrderTrack serves on", "  data ", "  admin ", "  demo ")
    lines = [line for line in server.log.splitlines() if not line.startswith(announced)]
    records = [json.loads(line) for line in lines]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, records))
    assert any(record.get("path") == "/api/orders/<id:order_id>/status" for record in records)
    for secret in (customer.token, customer.password, server.env["JWT_SECRET"]):
        assert secret not in server.log
