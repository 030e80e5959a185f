"""Generates HTTP requests from a seed: mostly valid ones, some of them mutated."""

import itertools
import random
from collections.abc import Callable

TARGETS = (
    "/", "/api/orders", "/a%20b?x=1&y=%00", "/?", "//x/y", "/a;b=c/d", "http://x/y?z", "http://x",
    "http://x?a=b", "HTTP://[::1]:80/", "http://", "http://a@b/", "*", "/a#b", "x:80", "/a|b\\c",
    "https://x/", "/" + "a" * 300, "", "/a\tb", "/\xe9", "?x", "http://a:b/",
)  # fmt: skip

HOSTS = (
    "x", "localhost:8080", "[::1]:8080", "orders.example.org", "", "a b", "c@d", "a/b", "x:", "x:a",
    "[::1", "a_b", "a,b", "\xe9", "x:123456",
)  # fmt: skip

LINES = (
    "Accept: */*", "Accept:", "Accept:   a  b\t", "X-A: 1", "x-a: 2", "X_A: 3", "Cookie: a=1",
    "Cookie: b=2", "Connection: close", "Connection: keep-alive", "Connection: upgrade",
    "Connection: close, x", "Connection: closed", "Upgrade: websocket", "Upgrade: h2c",
    "Expect: 100-continue", "Expect: 200-ok", "Transfer-Encoding: chunked",
    "Transfer-Encoding: Chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity",
    "Transfer-Encoding: chunked, chunked", "Transfer-Encoding : chunked",
    "Transfer_Encoding: chunked",
    "Transfer-Encoding:\tchunked", "Transfer-Encoding: chunked\t",
    "Transfer-Encoding: chunked  ", "Transfer-Encoding: xchunked", "Content-Length: 0",
    "Content-Length: 5", "Content-Length: 05", "Content-Length: +5", "Content-Length: 5, 5",
    "Content-Length: -1", "Content-Length: 0x5", "Content-Length: 5 5", "Content-Length:",
    "Content-Length: 99999999999999999999", "Content-Length: 3000", "Content-Type: text/plain",
    "Authorization: Bearer x", "Host: y", "Trailer: X", "TE: trailers", "Proxy-Connection: close",
    "Keep-Alive: timeout=5", " folded", "\tfolded", ": nameless", "nocolon", "A B: c", "A: b\rc",
    "A: \x00", "A: \x7f", "A: \x0b", "A: \xe9\xff", "A\xe9: b", "A: b\nB: c", "A(B): c", "A :b",
    "\"A\": b", "A:b:c", "A" * 300 + ": b",
)  # fmt: skip

SIZES = ("%x", "%X", "0%x", "00000%x", "%x;a", "%x;a=b", '%x;a="b c"', "%x;a;b=c")
ODD_SIZES = (
    "+%x", "0x%x", "%x ", " %x", "%x;", "%x;a b", '%x;a="', "-%x", "%x\t", "", "g", "%x;=a",
    "00000000000000000%x", "%x;a=\x01", "%x;\xe9", "%x ;a", "%x; a",
)  # fmt: skip

TRAILERS = (
    "X-T: 1", "X-T:", "X T: 1", "nocolon", " folded", "X-T: a\rb", "Content-Length: 5", "X\x00: 1",
    "Transfer-Encoding: chunked", "Host: z", "X-T: \xe9", ": x", "X_T: 1",
    "Connection: close", "Upgrade: x", "Proxy-Connection: close",
)  # fmt: skip

ENDS = ("\n", "\r", "\r\r\n", "\n\r", "\r\n\r\n", " \r\n", "\r\n ")
ODD_BYTES = b'\x00\t\n\r "#%,-/0159:;=?@AZ[\\]_az{}\x7f\x80\xff\x0b\x0c\x1b'

FOLLOWING = b"GET /following HTTP/1.1\r\nHost: f\r\n\r\n"


class Generator:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def stream(self) -> bytes:
        """One to three requests, and after them one that is always valid."""
        rng = self._random
        count = rng.choice((1, 1, 1, 2, 3))
        data = b"".join(self._request() for _ in range(count)) + FOLLOWING
        if rng.random() < 0.3:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                data = rng.choice(MUTATIONS)(rng, data)
        return data

    def pieces(self, data: bytes) -> list[bytes]:
        rng = self._random
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 1, 3, 10))))
        edges = [0, *cuts, len(data)]
        pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
        return [piece for piece in pieces if piece]

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _request(self) -> bytes:
        rng = self._random
        method = rng.choice(("GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"))
        if self._maybe(0.03):
            method = rng.choice(("get", "CONNECT", "FOO", "G@T", "", "PRI", "M-SEARCH", "A" * 50))
        target = "/a" if self._maybe(0.7) else rng.choice(TARGETS)
        version = "HTTP/1.0" if self._maybe(0.1) else "HTTP/1.1"
        if self._maybe(0.02):
            version = rng.choice(("HTTP/2.0", "HTTP/1.2", "http/1.1", "HTTP/1.1 ", "HTTP/01.1", ""))
        host = rng.choice(HOSTS[:4]) if self._maybe(0.95) else rng.choice(HOSTS)
        lines = [] if self._maybe(0.02) else [f"Host: {host}"]
        proper = [line for line in LINES if line.startswith(("Acc", "X-A", "x-a", "Cook", "Upg"))]
        lines += rng.choices(proper, k=rng.choice((0, 1, 2, 4)))
        if self._maybe(0.2):
            lines += rng.choices(LINES, k=rng.choice((1, 1, 2)))
        body = b""
        kind = rng.random()
        if kind < 0.2:
            body = bytes(rng.choices(ODD_BYTES + b"GET / HTTP/1.1\r\n\r\n", k=rng.randrange(40)))
            length = len(body) + (rng.choice((-1, 1, 2)) if self._maybe(0.05) else 0)
            lines.append(f"Content-Length: {max(0, length)}")
        elif kind < 0.45:
            lines.append("Transfer-Encoding: chunked")
            body = self._chunks()
        rng.shuffle(lines)
        head = "\r\n".join([f"{method} {target} {version}", *lines, "", ""])
        empty = b"\r\n" if self._maybe(0.02) else b""
        return empty + head.encode("latin-1") + body

    def _chunks(self) -> bytes:
        rng = self._random
        said = b""
        for _ in range(rng.randrange(4)):
            data = bytes(rng.choices(ODD_BYTES + b"0\r\n\r\n", k=rng.randrange(1, 30)))
            said += self._size(len(data)) + data
            said += b"\r\n" if self._maybe(0.98) else rng.choice((b"", b"\n", b"x\r\n", b"\r"))
        said += self._size(0)
        if self._maybe(0.3):
            trailers = TRAILERS if self._maybe(0.4) else TRAILERS[:2]
            for line in rng.choices(trailers, k=rng.choice((1, 2))):
                said += line.encode("latin-1")
                said += b"\r\n" if self._maybe(0.95) else rng.choice(ENDS).encode()
        return said + (b"\r\n" if self._maybe(0.98) else rng.choice((b"", b"\n", b"\r")))

    def _size(self, size: int) -> bytes:
        form = self._random.choice(SIZES if self._maybe(0.95) else ODD_SIZES)
        said = form % size if "%" in form else form
        end = "\r\n" if self._maybe(0.98) else self._random.choice(ENDS)
        return (said + end).encode("latin-1")


Mutation = Callable[[random.Random, bytes], bytes]


def _place(rng: random.Random, data: bytes) -> int:
    """A random position, more often where a line ends or a word begins."""
    if rng.random() < 0.5:
        near = [at for at, byte in enumerate(data) if byte in b"\r\n :;,"]
        if near:
            return rng.choice(near)
    return rng.randrange(len(data) + 1)


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + bytes([rng.choice(ODD_BYTES)]) + data[at:]


def _replace(rng: random.Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + bytes([rng.choice(ODD_BYTES)]) + data[at + 1 :]


def _delete(rng: random.Random, data: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + rng.choice((1, 1, 2, 5)) :]


def _end_lines_otherwise(rng: random.Random, data: bytes) -> bytes:
    ends = data.count(b"\r\n")
    parts = data.split(b"\r\n")
    at = rng.randrange(ends) if ends else 0
    end = rng.choice(ENDS).encode()
    return b"\r\n".join(parts[: at + 1]) + (end if ends else b"") + b"\r\n".join(parts[at + 1 :])


def _repeat_a_line(rng: random.Random, data: bytes) -> bytes:
    parts = data.split(b"\r\n")
    at = rng.randrange(len(parts))
    return b"\r\n".join([*parts[:at], parts[at], *parts[at:]])


def _splice_a_line(rng: random.Random, data: bytes) -> bytes:
    parts = data.split(b"\r\n")
    at = rng.randrange(len(parts) + 1)
    return b"\r\n".join([*parts[:at], rng.choice(LINES).encode("latin-1"), *parts[at:]])


def _change_case(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at : at + 10].swapcase() + data[at + 10 :]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: _place(rng, data)] or data[:1]


MUTATIONS: tuple[Mutation, ...] = (
    _insert,
    _replace,
    _delete,
    _end_lines_otherwise,
    _repeat_a_line,
    _splice_a_line,
    _change_case,
    _cut,
)
