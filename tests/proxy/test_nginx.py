"""Two servers behind a real nginx with TLS, configured word for word as the documentation says.

Only the ports and the certificate are replaced, which the documentation leaves to the reader.
"""

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import socketio
import websocket
from playwright.sync_api import Browser

from tests.support import missing
from tests.support.databases import Postgres
from tests.support.people import Person
from tests.support.servers import ROOT, Server, running_server
from tests.support.waiting import eventually

DOCUMENTS = ("README.md", "docs/operations.md")
TIMEOUT = 20


def documented() -> str:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    (block,) = re.findall(r"^```nginx\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return str(block)


@dataclass(frozen=True)
class Site:
    """nginx in front of `servers`.

    url             https://localhost:PORT
    certificate     the file of the certificate that it shows, its own authority
    """

    url: str
    certificate: Path
    servers: list[Server]
    sessions: list[requests.Session] = field(default_factory=list, repr=False)

    def session(self) -> requests.Session:
        """A client that trusts the certificate, and keeps cookies as browsers do."""
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.certificate)
        self.sessions.append(session)
        return session

    def signed_in(self, person: Person) -> requests.Session:
        """A browser's session: cookies by the form."""
        session = self.session()
        form = {"email": person.email, "password": person.password}
        answer = session.post(
            f"{self.url}/login", data=form, allow_redirects=False, timeout=TIMEOUT
        )
        assert answer.status_code == 303, answer.text
        return session


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def written(folder: Path, port: int, servers: list[Server]) -> Path:
    """The documented block in a whole configuration; every replacement must find its place."""
    block = documented()
    for was, becomes in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("server_name orders.example.org;", "server_name localhost;"),
        ("server 127.0.0.1:8081;", f"server 127.0.0.1:{servers[0].port};"),
        ("server 127.0.0.1:8082;", f"server 127.0.0.1:{servers[1].port};"),
        (
            "# ssl_certificate …; ssl_certificate_key …;",
            f"ssl_certificate {folder}/certificate; ssl_certificate_key {folder}/key;",
        ),
    ):
        assert block.count(was) == 1, was
        block = block.replace(was, becomes)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"""
        # One process in the foreground, of the user who runs the tests.
        daemon off; master_process off;
        pid {folder}/pid; error_log {folder}/error.log;
        events {{ }}
        http {{ access_log off; {temporary} {block} }}
    """
    file = folder / "nginx.conf"
    file.write_text(whole)
    return file


@pytest.fixture(scope="module")
def site(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    nginx = missing.program("nginx", "apt install nginx-light")
    openssl = missing.program("openssl", "apt install openssl")
    folder = tmp_path_factory.mktemp("nginx")
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext",
            "subjectAltName=DNS:localhost", "-keyout", folder / "key",
            "-out", folder / "certificate",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    dsn = postgres.clone()
    with (
        running_server(dsn, TRUSTED_PROXIES="1") as one,
        running_server(dsn, TRUSTED_PROXIES="1") as other,
    ):
        port = free_port()
        found = Site(f"https://localhost:{port}", folder / "certificate", [one, other])
        configuration = written(folder, port, found.servers)
        process = subprocess.Popen([nginx, "-p", folder, "-c", configuration])
        try:
            eventually(lambda: _answers(found, process))
            yield found
        finally:
            for session in found.sessions:
                session.close()
            process.terminate()
            process.wait(TIMEOUT)


def _answers(site: Site, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "nginx does not take the configuration"
    try:
        return site.session().get(f"{site.url}/healthz", timeout=TIMEOUT).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.fixture
def customer(site: Site) -> Person:
    return site.servers[0].people.customer()


@pytest.fixture
def drivers(site: Site) -> list[Person]:
    """One driver, speaking to each of the servers, past nginx."""
    driver = site.servers[0].people.driver()
    return [driver, driver.at(site.servers[1].transport)]


def test_pages_get_secure_cookies_and_strict_transport(site: Site, customer: Person) -> None:
    session = site.signed_in(customer)
    assert {cookie.name for cookie in session.cookies} == {
        "access_token_cookie",
        "refresh_token_cookie",
    }
    for cookie in session.cookies:
        assert cookie.secure, cookie.name
        assert cookie.has_nonstandard_attr("HttpOnly"), cookie.name
    page = session.get(f"{site.url}/orders", timeout=TIMEOUT)
    assert page.status_code == 200
    assert page.url == f"{site.url}/orders"
    assert page.headers["Strict-Transport-Security"] == "max-age=31536000"
    moved = session.get(f"{site.url}/", allow_redirects=False, timeout=TIMEOUT)
    assert not moved.headers.get("Location", "").startswith("http://")


def test_the_origin_of_a_form_is_the_address_that_the_browser_sees(
    site: Site, customer: Person
) -> None:
    form = {"email": customer.email, "password": customer.password}
    statuses = {
        origin: site.session()
        .post(
            f"{site.url}/login",
            data=form,
            headers={"Origin": origin},
            allow_redirects=False,
            timeout=TIMEOUT,
        )
        .status_code
        for origin in (site.url, "https://localhost", site.servers[0].url)
    }
    assert statuses == {site.url: 303, "https://localhost": 403, site.servers[0].url: 403}


def test_the_metrics_are_refused_from_outside(site: Site) -> None:
    assert site.session().get(f"{site.url}/metrics", timeout=TIMEOUT).status_code == 403


def test_the_address_in_the_log_is_the_one_that_nginx_saw(site: Site) -> None:
    answer = site.session().post(
        f"{site.url}/api/login",
        json={"email": "nobody@example.org", "password": "a password of nobody"},
        headers={"X-Forwarded-For": "203.0.113.7", "X-Request-ID": "through-nginx"},
        timeout=TIMEOUT,
    )
    assert answer.status_code == 401
    lines = eventually(
        lambda: [
            line
            for server in site.servers
            for line in server.log.splitlines()
            if "through-nginx" in line and '"path"' in line
        ]
    )
    assert [json.loads(line)["client"] for line in lines] == ["127.0.0.1"]


@pytest.mark.parametrize(
    "transports",
    [["websocket"], ["polling"], ["polling", "websocket"]],
    ids=["websocket", "polling", "upgrade"],
)
def test_the_stock_client_receives_the_events_of_either_server(
    site: Site, customer: Person, drivers: list[Person], transports: list[str]
) -> None:
    order = customer.order()
    received: list[dict[str, Any]] = []
    client = socketio.Client(http_session=site.session(), reconnection=False)
    client.on("order_update", received.append)
    client.connect(
        site.url, auth={"token": customer.token}, transports=transports, wait_timeout=TIMEOUT
    )
    try:
        answer = client.call("subscribe", {"order_id": order["id"], "after": 0}, timeout=TIMEOUT)
        assert [event["version"] for event in answer["events"]] == [1]
        drivers[0].move(order, "Processing")
        drivers[1].move(order, "Shipped")
        drivers[0].move(order, "Completed")
        eventually(lambda: len(received) == 3)
        assert [event["version"] for event in received] == [2, 3, 4]
        assert client.transport() == transports[-1]
    finally:
        client.disconnect()


JAVASCRIPT = """
import { io } from "socket.io-client";
const [url, token, id, transports] = JSON.parse(process.argv[2]);
const socket = io(url, { auth: { token }, transports, reconnection: false });
socket.on("connect_error", (error) => { console.log(`${error}`); process.exit(1); });
socket.on("order_update", ({ version }) => { console.log(version); socket.disconnect(); });
console.log((await socket.emitWithAck("subscribe", { order_id: id })).version);
"""


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_the_stock_javascript_client_receives_events(
    site: Site, customer: Person, drivers: list[Person], transport: str
) -> None:
    node = missing.node()
    order = customer.order()
    arguments = json.dumps([site.url, customer.token, order["id"], [transport]])
    with subprocess.Popen(
        [node, "--input-type=module", "-", arguments],
        cwd=missing.TESTS,
        env={**site.servers[0].env, "NODE_EXTRA_CA_CERTS": str(site.certificate)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(JAVASCRIPT)
        process.stdin.close()
        assert process.stdout.readline() == "1\n"
        drivers[1].move(order, "Processing")
        assert process.stdout.readline() == "2\n"
        assert process.wait(TIMEOUT) == 0


def raw(site: Site, order: Any, **options: Any) -> websocket.WebSocket:
    return websocket.create_connection(
        f"{site.url.replace('https', 'wss')}/ws/orders/{order['id']}",
        sslopt={"ca_certs": str(site.certificate)},
        timeout=TIMEOUT,
        **options,
    )


def test_a_raw_websocket_is_upgraded_and_receives_events(
    site: Site, customer: Person, drivers: list[Person]
) -> None:
    order = customer.order()
    connection = raw(
        site, order, origin=site.url, subprotocols=["ordertrack.v1", f"bearer.{customer.token}"]
    )
    assert connection.getsubprotocol() == "ordertrack.v1"
    assert json.loads(connection.recv())["version"] == 1
    for driver, status in zip(drivers, ("Processing", "Shipped"), strict=True):
        driver.move(order, status)
        assert json.loads(connection.recv())["status"] == status
    connection.close(timeout=1)


def test_pages_of_other_origins_open_no_websocket(site: Site, customer: Person) -> None:
    order = customer.order()
    header = [f"Authorization: Bearer {customer.token}"]
    for origin in ("https://elsewhere.example", site.url.replace("https", "http"), "null"):
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            raw(site, order, header=header, origin=origin)
        assert refused.value.status_code == 403, origin


def test_a_page_is_live_with_its_secure_cookies(
    site: Site, chromium: Browser, customer: Person, drivers: list[Person]
) -> None:
    order = customer.order()
    context = chromium.new_context(ignore_https_errors=True)
    try:
        page = context.new_page()
        page.goto(f"{site.url}/orders/{order['id']}")
        page.fill('input[name="email"]', customer.email)
        page.fill('input[name="password"]', customer.password)
        page.press('input[name="password"]', "Enter")
        page.wait_for_selector('#link-state[data-state="live"]')
        drivers[1].move(order, "Processing", note="through the proxy")
        page.get_by_text("through the proxy").first.wait_for()
    finally:
        context.close()


def test_when_a_server_stops_nginx_sends_its_clients_to_the_other(
    site: Site, customer: Person, drivers: list[Person]
) -> None:
    """The last test of the module: it stops the server that nginx chose."""
    order = customer.order()
    versions: list[int] = []
    client = socketio.Client(
        http_session=site.session(), reconnection_delay=0.05, reconnection_delay_max=0.2
    )

    @client.event
    def connect() -> None:
        wanted = {"order_id": order["id"], "after": versions[-1] if versions else 0}

        def caught_up(answer: dict[str, Any]) -> None:
            versions.extend(event["version"] for event in answer["events"])

        client.emit("subscribe", wanted, callback=caught_up)

    client.on("order_update", lambda event: versions.append(event["version"]))
    client.connect(site.url, auth={"token": customer.token}, transports=["websocket"])
    try:
        eventually(lambda: versions == [1])
        serving = next(server for server in site.servers if _has_a_connection(server))
        (staying,) = (server for server in site.servers if server is not serving)
        drivers[site.servers.index(staying)].move(order, "Processing")
        assert serving.terminate() == 0
        drivers[site.servers.index(staying)].move(order, "Shipped")
        eventually(lambda: versions == [1, 2, 3])
        answer = site.session().post(
            f"{site.url}/api/orders",
            json={"description": "placed through the one that is left"},
            headers={"Authorization": f"Bearer {customer.token}"},
            timeout=TIMEOUT,
        )
        assert answer.status_code == 201
    finally:
        client.disconnect()


def _has_a_connection(server: Server) -> bool:
    figures = server.api.get("/metrics").text
    found = re.search(r"^ordertrack_guests (\S+)$", figures, re.MULTILINE)
    assert found is not None
    return float(found[1]) > 0
