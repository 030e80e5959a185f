"""The HTTP server, request by request, on real sockets."""

import json
import re
import socket
from collections.abc import Iterator

import pytest

from ordertrack.server.http_request import parse_head
from tests.server.echo import Echo, running


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    with running() as started:
        yield started


def talk(server: Echo, *sent: str | bytes) -> bytes:
    """Send each piece on one connection; returns all bytes until the server closes it."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        for piece in sent:
            client.sendall(piece.encode("latin-1") if isinstance(piece, str) else piece)
        answer = b""
        while data := client.recv(65536):
            answer += data
        return answer


def received_before_the_reset(server: Echo, sent: str) -> bytes:
    """The bytes received on a connection that the server must reset, not close."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(sent.encode())
        answer = b""
        try:
            while data := client.recv(65536):
                answer += data
        except ConnectionResetError:
            return answer
        pytest.fail(f"closed as if this were the whole response: {answer[:200]!r}")


def request(*lines: str, body: str = "") -> str:
    return "\r\n".join([*lines, "", body])


LAST = ("Host: x", "Connection: close")
GET = "GET /environ HTTP/1.1"
POST = "POST /body HTTP/1.1"
CHUNKED = (POST, "Host: x", "Transfer-Encoding: chunked")


def test_a_request_is_answered_with_a_length_and_a_date(server: Echo) -> None:
    answer = talk(server, request("GET /environ?a=1&b=%20 HTTP/1.1", *LAST))
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"\r\nDate: " in head
    assert b"\r\nConnection: close" in head
    assert b'"QUERY_STRING":"a=1&b=%20"' in body
    assert b'"REMOTE_ADDR":"127.0.0.1"' in body


def test_connections_are_kept_alive_and_requests_may_be_pipelined(server: Echo) -> None:
    first = request("GET /environ HTTP/1.1", "Host: x")
    post = request("POST /body HTTP/1.1", "Host: x", "Content-Length: 5", body="hello")
    answer = talk(server, first + post + request("GET /environ HTTP/1.1", *LAST))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert b'"length":5' in answer


def test_http_1_0_closes_unless_told_otherwise(server: Echo) -> None:
    assert b"Connection: close" in talk(server, request("GET /environ HTTP/1.0"))
    kept = request("GET /environ HTTP/1.0", "Connection: keep-alive")
    answer = talk(server, kept + request("GET /environ HTTP/1.0"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"Connection: keep-alive" in answer


def test_a_response_without_a_length_is_chunked(server: Echo) -> None:
    answer = talk(server, request("GET /stream HTTP/1.1", *LAST))
    head, body = answer.split(b"\r\n\r\n", 1)
    assert b"Transfer-Encoding: chunked" in head
    pieces = [b"0" * 9000 + b"1" * 9000, b"2" * 9000 + b"3" * 9000, b"4" * 9000]
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    assert body == b"".join(chunks) + b"0\r\n\r\n"
    old = talk(server, request("GET /stream HTTP/1.0"))
    assert old.endswith(b"\r\n\r\n" + b"".join(pieces))


def test_head_requests_get_no_body(server: Echo) -> None:
    answer = talk(server, request("HEAD /stats HTTP/1.1", *LAST))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"Content-Length: " in answer
    assert answer.endswith(b"\r\n\r\n")


def test_chunked_bodies_arrive_whole(server: Echo) -> None:
    head = request("POST /body HTTP/1.1", *LAST, "Transfer-Encoding: chunked")
    body = "5\r\nhello\r\nA;ext=1\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    assert b'"length":15' in talk(server, head + body)
    assert b'"length":15' in talk(server, head, *[body[i] for i in range(len(body))])


def test_a_large_body_that_comes_in_pieces_arrives_whole(server: Echo) -> None:
    head = request("POST /body HTTP/1.1", *LAST, "Content-Length: 65536")
    assert b'"length":65536' in talk(server, head, b"x" * 30_000, b"y" * 35_536)


@pytest.mark.parametrize(
    "head",
    [
        request(POST, "Host: x", "Content-Length: 65537"),
        request(POST, "Host: x", "Content-Length: 65537", "Expect: 100-continue"),
        request(POST, "Host: x", "Transfer-Encoding: chunked", body="10001\r\n"),
        request(POST, "Host: x", "Transfer-Encoding: chunked", body="1\r\nx\r\n10000\r\n"),
    ],
)
def test_a_body_over_the_limit_is_refused_before_it_is_sent(server: Echo, head: str) -> None:
    answer = talk(server, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "payload_too_large"
    assert b"Connection: close" in answer


def test_a_refusal_arrives_although_the_client_is_still_sending(server: Echo) -> None:
    head = request("POST /ignored HTTP/1.1", "Host: x", "Content-Length: 1000000")
    answer = talk(server, head, b"x" * 1_000_000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"}")


def test_a_client_may_wait_for_100_continue_before_it_sends_a_body(server: Echo) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        head = request("POST /body HTTP/1.1", *LAST, "Content-Length: 2", "Expect: 100-continue")
        client.sendall(head.encode())
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"ok")
        assert b'"length":2' in client.recv(4096)


@pytest.mark.safety("request-smuggling")
def test_a_body_that_the_application_ignores_does_not_become_a_request(server: Echo) -> None:
    smuggled = request("GET /stats HTTP/1.1", "Host: x")
    post = request("POST /ignored HTTP/1.1", "Host: x", f"Content-Length: {len(smuggled)}")
    answer = talk(server, post, smuggled, request("GET /environ HTTP/1.1", *LAST))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"frames_out" not in answer


@pytest.mark.parametrize("body", ["ok", "2\r\nok\r\n0\r\n\r\n"], ids=["plain", "chunked"])
def test_a_client_that_sends_the_body_at_once_gets_no_100_continue(server: Echo, body: str) -> None:
    kind = "Content-Length: 2" if body == "ok" else "Transfer-Encoding: chunked"
    answer = talk(server, request(POST, *LAST, kind, "Expect: 100-continue", body=body))
    assert answer.endswith(b'"length":2}\n')
    if body == "ok":
        assert answer.startswith(b"HTTP/1.1 200 OK")


def test_expect_is_ignored_in_http_1_0(server: Echo) -> None:
    head = request("POST /body HTTP/1.0", "Content-Length: 2", "Expect: 100-continue")
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(head.encode())
        client.settimeout(0.3)  # the time that passes when the server is right
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.settimeout(10)
        client.sendall(b"ok")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("what", ["split", "split-stream", "twice", "more"])
def test_an_error_of_the_application_is_a_problem_without_details(server: Echo, what: str) -> None:
    answer = talk(server, request(f"GET /odd/{what} HTTP/1.1", "Host: x"))
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 500 ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Transfer-Encoding" not in head
    assert b"Set-Cookie" not in head
    assert json.loads(body)["code"] == "internal_error"


@pytest.mark.parametrize(
    ("what", "version", "received"),
    [("fails", "1.1", 40_000), ("fails", "1.0", 40_000), ("less", "1.1", 2)],
)
def test_a_partial_response_ends_with_a_reset(
    server: Echo, what: str, version: str, received: int
) -> None:
    answer = received_before_the_reset(
        server, request(f"GET /odd/{what} HTTP/{version}", "Host: x")
    )
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert not answer.endswith(b"0\r\n\r\n")
    assert b"internal_error" not in answer
    assert answer.partition(b"\r\n\r\n")[2].count(b"x") <= received


def test_an_application_may_replace_its_status_until_the_head_is_sent(server: Echo) -> None:
    answer = talk(server, request("GET /odd/instead HTTP/1.1", *LAST))
    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert answer.endswith(b"\r\n\r\ninstead")


def test_the_application_may_close_the_connection(server: Echo) -> None:
    once = request("GET /odd/closes HTTP/1.1", "Host: x")
    answer = talk(server, once + once)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert re.findall(rb"(?im)^connection: (.*)\r$", answer) == [b"close, upgrade"]


def test_connection_is_a_list_of_words(server: Echo) -> None:
    kept = request("GET /odd/ok HTTP/1.1", "Host: x", "Connection: x-close, closed")
    closed = request("GET /odd/ok HTTP/1.1", "Host: x", "Connection: keep-alive, Close")
    answer = talk(server, kept + closed + kept)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


HANDSHAKE = (
    "Host: x",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@pytest.mark.parametrize(
    ("version", "extra", "body"),
    [
        ("1.0", (), ""),
        ("1.1", ("Content-Length: 2",), "ok"),
        ("1.1", ("Transfer-Encoding: chunked",), "0\r\n\r\n"),
    ],
)
def test_upgrade_is_ignored_in_http_1_0_and_with_a_body(
    server: Echo, version: str, extra: tuple[str, ...], body: str
) -> None:
    sent = request(f"GET /ws HTTP/{version}", *HANDSHAKE, *extra, body=body)
    answer = talk(server, sent + request("GET /odd/ok HTTP/1.1", *LAST))
    assert answer.startswith(b"HTTP/1.1 426 ")
    # Otherwise it counts.
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(request("GET /ws HTTP/1.1", *HANDSHAKE, "Content-Length: 0").encode())
        assert client.recv(12) == b"HTTP/1.1 101"


def test_a_request_that_would_upgrade_to_something_else_is_served(server: Echo) -> None:
    """As curl sends it with --http2."""
    offer = (
        "Upgrade: h2c",
        "Connection: close, Upgrade, HTTP2-Settings",
        "HTTP2-Settings: AAMAAAB",
    )
    answer = talk(server, request(POST, "Host: x", *offer, "Content-Length: 2", body="ok"))
    assert b'"length":2' in answer


def test_repeated_headers_are_joined_and_underscores_are_not_dashes(server: Echo) -> None:
    lines = ["X-A: 1", "X-A: 2", "X_Forwarded_For: 6.6.6.6", "Cookie: a=1", "Cookie: b=2"]
    answer = talk(server, request("GET /environ HTTP/1.1", *LAST, *lines))
    assert b'"HTTP_X_A":"1,2"' in answer
    assert b'"HTTP_COOKIE":"a=1; b=2"' in answer
    assert b"6.6.6.6" not in answer


@pytest.mark.safety("request-smuggling")
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(GET), 400),  # no Host
        (request(GET, "Host: x", "Host: y"), 400),
        (request(GET, "Host : x"), 400),
        (request(GET, "Host: "), 400),
        (request(GET, "Host: a b"), 400),
        (request(GET, "Host: a/b"), 400),
        (request(GET, "Host: c@d"), 400),
        (request(GET, "Host: a,b"), 400),
        (request(GET, "Host: x:http"), 400),
        (request(GET, "Host: [::1"), 400),
        (request("GET /environ HTTP/1.0", "Host: a b/c@d"), 400),
        (request("GET * HTTP/1.1", "Host: x"), 400),
        (request("GET http://* HTTP/1.1", "Host: x"), 400),
        (request("GET http:///environ HTTP/1.1", "Host: x"), 400),
        (request("GET http://me@x/environ HTTP/1.1", "Host: x"), 400),
        (request("GET https://x/environ HTTP/1.1", "Host: x"), 400),
        (request("GET http://x/environ HTTP/1.1", "Host: a b"), 400),
        (request("GET /environ#top HTTP/1.1", "Host: x"), 400),
        (request("GET /envi\tron HTTP/1.1", "Host: x"), 400),
        (request("CONNECT x:80 HTTP/1.1", "Host: x:80"), 501),
        (GET + "\nHost: x\n\n", 400),
        (request(GET, "Host: x", " folded: y"), 400),
        (request(GET, "Host: x", "X-A: 1", "\tfolded"), 400),
        (request(GET, "Host: x", "no colon"), 400),
        (request(GET, "Host: x", ": no name"), 400),
        (request(GET, "Host: x", "X(A): 1"), 400),
        (request(GET, "Host: x", "X-A: \x00"), 400),
        (request(GET, "Host: x", "X-A: a\rb"), 400),
        (request(GET, "Host: x", "X-A: a\nX-B: b"), 400),
        (request(GET, "Host: x", "X-A: \x1b[31m"), 400),
        ("GET /environ HTTP/1.1\nHost: x\n\n" + request("", ""), 400),
        (request("GET  /environ HTTP/1.1", "Host: x"), 400),
        (request("GET /environ", "Host: x"), 400),
        (request("GET /envi\xe9ron HTTP/1.1", "Host: x"), 400),
        (request("GET environ HTTP/1.1", "Host: x"), 400),
        (request("G@T / HTTP/1.1", "Host: x"), 400),
        (request("GET / HTTP/2.0", "Host: x"), 505),
        (request("GET / HTTP/1.10", "Host: x"), 505),
        (request("GET /" + "a" * 9000 + " HTTP/1.1", "Host: x"), 414),
        (request(GET, "Host: x", "X-A: " + "a" * 40_000), 431),
        (request(GET, "Host: x", *["X-A: 1"] * 101), 431),
        (request(POST, "Host: x", "Content-Length: 5", "Content-Length: 5", body="hello"), 400),
        (request(POST, "Host: x", "Content-Length: 5, 5", body="hello"), 400),
        (request(POST, "Host: x", "Content-Length: -5"), 400),
        (request(POST, "Host: x", "Content-Length: +5", body="hello"), 400),
        (request(POST, "Host: x", "Content-Length: 0x5", body="hello"), 400),
        (request(POST, "Host: x", "Content-Length: ", body="hello"), 400),
        (
            request(POST, "Host: x", "Content-Length: 5", "Transfer-Encoding: chunked", body="0"),
            400,
        ),
        (request(POST, "Host: x", "Transfer-Encoding: chunked", "Transfer-Encoding: x"), 400),
        (request(POST, "Host: x", "Transfer-Encoding: gzip, chunked"), 501),
        (request("POST /body HTTP/1.0", "Transfer-Encoding: chunked", body="0\r\n\r\n"), 400),
        (request(POST, "Host: x", "Transfer-Encoding: chunked", body="+5\r\nhello\r\n"), 400),
        (request(POST, "Host: x", "Transfer-Encoding: chunked", body="5\nhello\r\n0\r\n"), 400),
        (request(POST, "Host: x", "Transfer-Encoding: chunked", body="5\r\nhelloXX0\r\n"), 400),
        (request(*CHUNKED, body="0x5\r\nhello\r\n"), 400),
        (request(*CHUNKED, body="5 \r\nhello\r\n"), 400),
        (request(*CHUNKED, body="5;\r\nhello\r\n"), 400),
        (request(*CHUNKED, body="5;" + "a" * 300), 400),
        (request(*CHUNKED, body="0\r\nA: b\n\r\n"), 400),
        (request(*CHUNKED, body="0\r\n\n"), 400),
        (request(*CHUNKED, body="0\r\nno colon\r\n\r\n"), 400),
        (request(*CHUNKED, body="0\r\nA : b\r\n\r\n"), 400),
        (request(*CHUNKED, body="0\r\n folded\r\n\r\n"), 400),
        (request(*CHUNKED, body="0\r\nA: \x00\r\n\r\n"), 400),
        (request(*CHUNKED, body="0\r\nA: b\rc\r\n\r\n"), 400),
        (request(*CHUNKED, body="0\r\nContent-Length: 5\r\n\r\n"), 400),
        (request(*CHUNKED, body="0\r\nHost: y\r\n\r\n"), 400),
        (request(*CHUNKED, body="0\r\n" + "A: b\r\n" * 101), 400),
        (request(*CHUNKED, body="0\r\nA: " + "b" * 9000), 400),
        (request(POST, "Host: x", "Content-Length: 1", "Expect: something", body="x"), 417),
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_refused(
    server: Echo, sent: str, status: int
) -> None:
    answer = talk(server, sent)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert b"Connection: close" in answer
    assert answer.count(b"HTTP/1.1 ") == 1, "nothing after it is read as a request"


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        ("http://other/environ?x=1", "other", "/environ", "x=1"),
        ("HTTP://other:8080/environ", "other:8080", "/environ", ""),
        ("http://[::1]:80/environ?", "[::1]:80", "/environ", ""),
    ],
)
def test_an_absolute_target_replaces_the_host_header(
    server: Echo, target: str, host: str, path: str, query: str
) -> None:
    answer = talk(server, request(f"GET {target} HTTP/1.1", *LAST))
    seen = json.loads(answer.split(b"\r\n\r\n", 1)[1])
    assert (seen["HTTP_HOST"], seen["PATH_INFO"], seen["QUERY_STRING"]) == (host, path, query)


@pytest.mark.parametrize(
    ("target", "path", "query"), [("http://x?a=1", "/", "a=1"), ("http://x", "/", "")]
)
def test_an_absolute_target_needs_no_path(target: str, path: str, query: str) -> None:
    environ: dict[str, str] = {}
    parse_head(f"GET {target} HTTP/1.1\r\nHost: y", environ)
    assert (environ["HTTP_HOST"], environ["PATH_INFO"], environ["QUERY_STRING"]) == (
        "x",
        path,
        query,
    )


def test_options_may_ask_about_the_server(server: Echo) -> None:
    assert talk(server, request("OPTIONS * HTTP/1.1", *LAST)).startswith(b"HTTP/1.1 404 ")


def test_one_empty_line_before_a_request_is_skipped(server: Echo) -> None:
    sent = request(POST, "Host: x", "Content-Length: 2", body="ok\r\n")
    assert talk(server, sent + request(GET, *LAST)).count(b"HTTP/1.1 200 OK") == 2
    assert talk(server, "\r\n\r\n" + request(GET, *LAST)).startswith(b"HTTP/1.1 400 ")


LOCALHOST = {(found[0], str(found[4][0])) for found in socket.getaddrinfo("localhost", 0)}


@pytest.mark.parametrize(("family", "address"), sorted(LOCALHOST))
def test_it_listens_on_every_address_of_localhost(
    server: Echo, family: socket.AddressFamily, address: str
) -> None:
    with socket.socket(family) as client:
        client.settimeout(10)
        client.connect((address, server.port))
        client.sendall(request("GET /stats HTTP/1.1", *LAST).encode())
        assert client.recv(12) == b"HTTP/1.1 200"


def test_descriptors_are_raised_to_the_hard_limit(server: Echo) -> None:
    with open(f"/proc/{server.process.pid}/limits") as limits:  # noqa: PTH123
        line = next(line for line in limits if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert soft == hard
