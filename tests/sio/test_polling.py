"""HTTP long-polling and the upgrade to a WebSocket: packets, bounds, CORS."""

import threading
from socket import create_connection

import pytest
import requests

from tests.server.echo import Echo
from tests.sio.clients import PollingClient
from tests.support.waiting import eventually

# Packets ----------------------------------------------------------------------------------------


def test_a_polling_client_is_offered_the_upgrade(server: Echo) -> None:
    poller = PollingClient(server)
    assert poller.hello["upgrades"] == ["websocket"]
    assert poller.post("40") == 200
    assert poller.get()[1][0].startswith('40{"sid":')


def test_polling_checks_origins_too(server: Echo) -> None:
    base = f"{server.url}/socket.io/?EIO=4&transport=polling"
    for origin, status in [
        ("https://evil.example", 403),
        ("null", 403),
        ("https://shop.example.com", 200),
        (server.url, 200),
    ]:
        answer = requests.get(base, headers={"Origin": origin}, timeout=10)
        assert answer.status_code == status
        if status == 403:
            assert answer.json()["code"] == "forbidden"
        else:
            assert answer.headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize("body", ["4x", "9", "", "40\x1e" * 17, "4" * 65_537, b"\xff", "b4AAA="])
def test_a_bad_payload_ends_the_session(server: Echo, body: str | bytes) -> None:
    poller = PollingClient(server)
    poller.post(body)
    eventually(lambda: poller.get()[0] == 400)


def test_packets_wait_for_the_next_poll_in_order(server: Echo) -> None:
    poller = PollingClient(server)
    poller.post("40")
    poller.get()
    poller.post('420["numbers",100]')
    packets: list[str] = []
    while "430[100]" not in packets:
        packets += poller.get()[1]
    assert packets == [*(f'42["number",{n}]' for n in range(100)), "430[100]"]


def test_the_last_packets_wait_for_a_client_that_is_between_two_polls(server: Echo) -> None:
    poller = PollingClient(server)
    poller.post("40")
    poller.get()
    poller.post('42["leave me","close_with"]')
    assert poller.get()[1] == ["41"]
    assert poller.get()[1] == ["1"]
    assert poller.get()[0] == 400


def test_a_polling_client_that_does_not_fetch_is_closed(server: Echo) -> None:
    before = server.stats()["slow_closes"]
    full, old = PollingClient(server), PollingClient(server)
    for poller in (full, old):
        poller.post("40")
        poller.get()
    full.post('42["numbers",20000]')
    eventually(lambda: server.stats()["slow_closes"] == before + 1)
    old.post('42["numbers",10]')
    eventually(lambda: server.stats()["slow_closes"] == before + 2)
    eventually(lambda: server.stats()["queued_bytes"] == 0)


def test_a_flood_over_polling_ends_the_session(server: Echo) -> None:
    poller = PollingClient(server)
    poller.post("40")
    poller.get()
    for _ in range(40):  # 640 packets, of which 400 are free
        poller.post("\x1e".join(["3"] * 16))
    eventually(lambda: poller.get()[0] == 400)


def test_two_polls_at_once_end_the_session(server: Echo) -> None:
    poller = PollingClient(server)
    poller.post("40")
    poller.get()
    with create_connection(("127.0.0.1", server.port), 10) as waiting:
        waiting.sendall(f"GET {poller.url.removeprefix(server.url)} HTTP/1.1\r\n".encode())
        waiting.sendall(b"Host: x\r\n\r\n")
        eventually(lambda: poller.get()[0] == 400)
        assert waiting.recv(4096).endswith(b"\r\n\r\n1"), "the first is answered, too"


def test_a_chunked_body_is_accepted(server: Echo) -> None:
    poller = PollingClient(server)
    sent = requests.post(poller.url, data=iter([b"4", b"0"]), timeout=10)
    assert (sent.status_code, sent.text) == (200, "ok")
    assert poller.get()[1][0].startswith('40{"sid"')


def test_one_request_may_bring_as_many_packets_as_the_allowance_has(server: Echo) -> None:
    """The JavaScript client puts everything that was emitted in one turn into one request."""
    poller = PollingClient(server)
    assert poller.post("\x1e".join(["40", *['42["leave","x"]'] * 200])) == 200
    assert poller.get()[1][0].startswith('40{"sid"')
    assert poller.post("\x1e".join(['42["leave","x"]'] * 400)) == 400
    eventually(lambda: poller.get()[0] == 400)


def test_packets_after_the_end_of_a_session_are_refused(server: Echo) -> None:
    for end in ('42["leave me","disconnect"]', "41", "1"):
        poller = PollingClient(server)
        poller.post("40")
        assert poller.post(f'{end}\x1e42["join",["lost"]]') == 400
        assert poller.post('42["join",["lost"]]') == 400
    assert "lost" not in server.stats()["rooms"]


def test_answers_are_not_compressed(server: Echo) -> None:
    poller = PollingClient(server)
    poller.post("40")
    poller.get()
    poller.post('42["numbers",2000]')
    answer = requests.get(poller.url, headers={"Accept-Encoding": "gzip"}, timeout=10)
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["Cache-Control"] == "no-store"


def test_an_oversized_request_is_refused_and_ends_the_session(server: Echo) -> None:
    poller = PollingClient(server)
    assert poller.post("4" * 65_537) == 413
    chunks = PollingClient(server)
    sent = requests.post(chunks.url, data=iter([b"4" * 40_000] * 2), timeout=10)
    assert sent.status_code == 413
    for one in (poller, chunks):
        eventually(lambda one=one: one.get()[0] == 400)


@pytest.mark.parametrize("index", ["0", "x", ""])
@pytest.mark.safety("jsonp-and-cookies")
def test_there_is_no_jsonp(server: Echo, index: str) -> None:
    base = PollingClient.base_of(server)
    assert requests.get(f"{base}&j={index}", timeout=10).status_code == 400
    poller = PollingClient(server)
    assert requests.get(f"{poller.url}&j={index}", timeout=10).status_code == 400
    assert requests.post(f"{poller.url}&j={index}", data="d=40", timeout=10).status_code == 400


def test_the_cors_preflight_of_an_allowed_origin_succeeds(server: Echo) -> None:
    asking = {
        "Origin": "https://shop.example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-trace",
    }
    answer = requests.options(PollingClient.base_of(server), headers=asking, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example.com"
    assert answer.headers["Access-Control-Allow-Headers"] == "x-trace"
    asking["Origin"] = "https://evil.example"
    answer = requests.options(PollingClient.base_of(server), headers=asking, timeout=10)
    assert answer.status_code == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


# The upgrade, step by step ----------------------------------------------------------------------


def test_an_upgrade_moves_queued_packets_in_order(server: Echo) -> None:
    poller = PollingClient(server)
    poller.post("40")
    poller.get()
    socket = poller.probe()
    socket.text("2probe")
    assert socket.read_text() == "3probe"
    poller.post('420["numbers",3]')
    assert poller.get()[1] == ["6"], "while upgrading, polls carry nothing"
    socket.text("5")
    expected = [*(f'42["number",{n}]' for n in range(3)), "430[3]"]
    assert [socket.read_text() for _ in range(4)] == expected
    assert poller.post("3") == 400, "the old transport is closed"
    socket.close()
    eventually(lambda: server.stats()["open"] == 0)


def test_polling_goes_on_after_a_failed_upgrade(server: Echo) -> None:
    poller = PollingClient(server)
    poller.post("40")
    poller.get()
    for wrong in ("nonsense", "5"):
        socket = poller.probe()
        socket.text(wrong)
        socket.close()
        poller.post('420["numbers",1]')
        eventually(lambda: '42["number",0]' in poller.get()[1])
    poller.post("1")


def test_a_probe_that_never_upgrades_is_closed(server: Echo) -> None:
    poller = PollingClient(server)
    poller.post("40")
    socket = poller.probe()
    assert socket.at_end()
    socket.close()


def test_an_upgrade_during_connect_is_refused(server: Echo) -> None:
    """Packets of the new transport would overtake those that a POST has still to handle."""
    poller = PollingClient(server)
    connecting = threading.Thread(target=lambda: poller.post('40{"wait":1}'))
    connecting.start()
    eventually(lambda: server.stats()["asking"] == 1)
    socket = poller.probe()
    socket.text("2probe")
    assert socket.read_text() == "3probe"
    socket.text("5")
    assert socket.read_close() == 1002
    connecting.join(10)
    assert poller.get()[1][0].startswith('40{"sid"'), "polling goes on"
    assert poller.post("1") == 200
    socket.close()
