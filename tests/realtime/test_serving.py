"""The HTTP server, request by request, on real sockets."""

import socket
from collections.abc import Iterator

import pytest

from tests.realtime.echo import Echo, running


@pytest.fixture(scope="module")
def server() -> Iterator[Echo]:
    with running() as started:
        yield started


def talk(server: Echo, *sent: str | bytes) -> bytes:
    """Send each piece on one connection; everything that comes back until the server closes it."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        for piece in sent:
            client.sendall(piece.encode("latin-1") if isinstance(piece, str) else piece)
        answer = b""
        try:
            while data := client.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
        return answer


def request(*lines: str, body: str = "") -> str:
    return "\r\n".join([*lines, "", body])


LAST = ("Host: x", "Connection: close")


def test_a_request_is_answered_with_a_length_and_a_date(server: Echo) -> None:
    answer = talk(server, request("GET /environ?a=1&b=%20 HTTP/1.1", *LAST))
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"\r\nDate: " in head
    assert b"\r\nConnection: close" in head
    assert b'"QUERY_STRING":"a=1&b=%20"' in body
    assert b'"REMOTE_ADDR":"127.0.0.1"' in body


def test_connections_are_kept_and_requests_may_be_pipelined(server: Echo) -> None:
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


def test_an_answer_without_a_length_is_chunked(server: Echo) -> None:
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
    head = request("POST /body HTTP/1.1", *LAST, "Content-Length: 300000")
    assert b'"length":300000' in talk(server, head, b"x" * 100_000, b"y" * 200_000)


def test_a_client_may_ask_before_it_sends_a_body(server: Echo) -> None:
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


def test_an_answer_arrives_although_the_client_is_still_sending(server: Echo) -> None:
    head = request("POST /ignored HTTP/1.1", "Host: x", "Content-Length: 1000000")
    answer = talk(server, head, b"x" * 1_000_000)
    assert answer.endswith(b'{"read":false}\n')


def test_an_error_of_the_application_is_a_problem_without_details(server: Echo) -> None:
    answer = talk(server, request("GET /bug HTTP/1.1", "Host: x"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b'"code":"internal_error"' in answer
    assert b"Traceback" not in answer


def test_repeated_headers_are_joined_and_underscores_are_not_dashes(server: Echo) -> None:
    lines = ["X-A: 1", "X-A: 2", "X_Forwarded_For: 6.6.6.6", "Cookie: a=1", "Cookie: b=2"]
    answer = talk(server, request("GET /environ HTTP/1.1", *LAST, *lines))
    assert b'"HTTP_X_A":"1,2"' in answer
    assert b'"HTTP_COOKIE":"a=1; b=2"' in answer
    assert b"6.6.6.6" not in answer


GET = "GET /environ HTTP/1.1"
POST = "POST /body HTTP/1.1"


@pytest.mark.safety("request-smuggling")
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(GET), 400),  # no Host
        (request(GET, "Host: x", "Host: y"), 400),
        (request(GET, "Host : x"), 400),
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
        (request(POST, "Host: x", "Transfer-Encoding: chunked", body="0x5\r\nhello\r\n"), 400),
        (request(POST, "Host: x", "Content-Length: 1", "Expect: something", body="x"), 417),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(server: Echo, sent: str, status: int) -> None:
    answer = talk(server, sent)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert b"Connection: close" in answer
    assert answer.count(b"HTTP/1.1 ") == 1, "nothing behind it is read as a request"


def test_an_absolute_address_is_understood(server: Echo) -> None:
    answer = talk(server, request("GET http://other/environ?x=1 HTTP/1.1", *LAST))
    assert b'"PATH_INFO":"/environ"' in answer


def test_it_listens_on_ipv4_and_ipv6_for_localhost(server: Echo) -> None:
    for family, address in [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]:
        with socket.socket(family) as client:
            client.settimeout(10)
            try:
                client.connect((address, server.port))
            except OSError:
                assert family == socket.AF_INET6  # a machine without IPv6
                continue
            client.sendall(request("GET /stats HTTP/1.1", *LAST).encode())
            assert client.recv(12) == b"HTTP/1.1 200"


def test_descriptors_are_raised_to_the_hard_limit(server: Echo) -> None:
    with open(f"/proc/{server.process.pid}/limits") as limits:  # noqa: PTH123
        line = next(line for line in limits if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert soft == hard
