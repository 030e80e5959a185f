"""Compares our request reader with h11 and httptools, on generated and mutated requests.

Whatever h11 or httptools refuses, ours refuses; whatever ours accepts, all three read alike:
method, target, version, headers, body, and where the next request begins. Each run tries other
requests; a failure names the seed (`LONG_SEED` repeats it) and the bytes. `scripts/test-long` tries
more.
"""

import os
import random
from collections import Counter

import pytest

from tests.server.generated import Generator
from tests.server.oracles import Reading, Request, as_environ, by_h11, by_httptools, ours
from tests.support.examples import examples

SEED = int(os.environ.get("LONG_SEED") or random.randrange(1_000_000))
PART = 5_000  # cases of one test, each with a generator of its own


def excepted(which: str, refusal: str, before: Request) -> str | None:
    """Why a request that an oracle refuses may be accepted: each is a choice of the oracle."""
    if which == "httptools" and "InvalidMethod" in refusal:
        # It knows a list of methods. RFC 9110, 9.1: a method is any token; ours answers 405.
        return "a method that llhttp does not list"
    if which == "httptools" and "Data after" in refusal and "proxy-connection" in before.headers:
        # It takes this header for Connection. RFC 9110 has it no more (7.6.1): it means nothing.
        return "Proxy-Connection"
    if which == "h11" and refusal == "no request line received":
        # RFC 9112, 2.2: a server SHOULD ignore one empty line before a request.
        return "one empty line before a request"
    return None


def compare(which: str, reading: Reading, read: list[dict[str, object]]) -> str | None:
    """Returns the exception that applied. Fails where our reader has read something else."""
    for number, environ in enumerate(read):
        if number >= len(reading.requests):
            assert reading.refused is not None, f"{which} waits for more of request {number}"
            before = reading.requests[-1] if reading.requests else Request()
            reason = excepted(which, reading.refused, before)
            assert reason, f"{which} refuses request {number}: {reading.refused}\nours: {environ}"
            return reason
        theirs = as_environ(reading.requests[number])
        own = {k: v for k, v in environ.items() if k not in ("PATH_INFO", "QUERY_STRING")}
        if reading.left and number == len(reading.requests) - 1:
            # RFC 9110, 7.8: a server may ignore Upgrade, and then the body is this request's, as
            # h11 reads it as well. Java's HttpClient sends such requests.
            for member in ("body", "CONTENT_LENGTH"):
                own.pop(member), theirs.pop(member)
            assert own == theirs, f"{which} reads request {number} in another way"
            return "the body of a request that asks for an upgrade"
        assert own == theirs, f"{which} reads request {number} in another way"
    return None


@pytest.mark.safety("request-smuggling")
@pytest.mark.parametrize("part", range(examples(3)))
def test_requests_are_refused_and_read_as_by_two_other_parsers(part: int) -> None:
    generator = Generator(SEED + part)
    seen: Counter[str] = Counter()
    for case in range(PART):
        data = generator.stream()
        pieces = generator.pieces(data)
        try:
            read, refused = ours([data])
            assert ours(pieces) == (read, refused), f"read in pieces: {pieces}"
            for which, reading in (("h11", by_h11(data)), ("httptools", by_httptools(data))):
                reason = compare(which, reading, read)
                if reason is not None:
                    seen[reason] += 1
                seen[f"refused by {which}"] += reading.refused is not None
        except AssertionError as error:
            error.add_note(f"seed {SEED + part}, case {case}: {data!r}")
            raise
        seen["accepted requests"] += len(read)
        seen["accepted with a body"] += any(environ["body"] for environ in read)
        seen["refused by ours"] += refused is not None
        if refused is not None:
            seen[refused[:3]] += 1
    print(f"seed {SEED + part}: {dict(seen.most_common())}")  # noqa: T201
    # The generator reaches what is to be compared.
    for what in ("refused by ours", "refused by h11", "refused by httptools"):
        assert PART * 0.1 < seen[what] < PART * 0.9, what
    assert seen["accepted requests"] > PART * 0.8
    assert seen["accepted with a body"] > PART * 0.1
    for status in ("400", "413", "417", "501", "505"):
        assert seen[status], f"no case was answered {status}"


def test_the_oracles_refuse_smuggling_and_read_valid_requests() -> None:
    """So their agreement with our reader means something."""
    smuggled = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"
    assert by_h11(smuggled).refused
    assert by_httptools(smuggled).refused
    two = b"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\n"
    two += b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    two += b"2\r\nok\r\n0\r\nT: 1\r\n\r\n"
    for reading in (by_h11(two), by_httptools(two)):
        assert [(r.target, r.body) for r in reading.requests] == [("/a", b""), ("/b", b"ok")]
