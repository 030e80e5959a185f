"""Forged tokens are refused by REST, Socket.IO and plain WebSockets alike."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
import pytest

from tests.support.databases import JWT_SECRET
from tests.support.http import Api
from tests.support.people import Person
from tests.support.servers import Server
from tests.support.watchers import Refused, raw_watching, watching


@dataclass(frozen=True)
class Genuine:
    """A signed-in person, and the claims of its access token."""

    person: Person
    claims: dict[str, Any]
    others_session: str

    def signed(self, **changes: Any) -> str:
        """A token like the server's own, but for *changes*; None removes a claim."""
        claims = {**self.claims, **changes}
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, JWT_SECRET, algorithm="HS256")


@pytest.fixture(scope="module")
def genuine(server: Server) -> Genuine:
    person, other = server.people.customer(), server.people.customer()
    return Genuine(person, claims_of(person.token), claims_of(other.token)["sid"])


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def by_hand(genuine: Genuine, header: dict[str, Any], key: bytes | None, **changes: Any) -> str:
    """A token that no library would make."""
    signed = f"{part(header)}.{part({**genuine.claims, **changes})}"
    digest = b"" if key is None else hmac.digest(key, signed.encode(), "sha256")
    return f"{signed}.{part(digest)}"


def with_another_payload(genuine: Genuine) -> str:
    header, _, signature = genuine.person.token.split(".")
    return f"{header}.{part({**genuine.claims, 'sub': '1'})}.{signature}"


def flipped(token: str) -> str:
    """The last signature byte changed."""
    head, _, signature = token.rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[-1] ^= 1
    return f"{head}.{part(bytes(raw))}"


# A public key that an attacker might hope is taken for an HMAC secret.
PUBLIC_KEY = (
    b"-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAK\n-----END PUBLIC KEY-----"
)

HS256 = {"typ": "JWT", "alg": "HS256"}

FORGERIES: dict[str, tuple[str, Callable[[Genuine], str]]] = {
    name: (code, make)
    for code, makes in {
        "invalid_token": {
            "garbage": lambda _: "garbage",
            "three empty parts": lambda _: "..",
            "two parts": lambda g: g.person.token.rpartition(".")[0],
            "a trailing part": lambda g: g.person.token + ".x",
            "alg none": lambda g: by_hand(g, {"typ": "JWT", "alg": "none"}, None),
            "alg None": lambda g: by_hand(g, {"typ": "JWT", "alg": "None"}, None),
            "alg nOnE, signed": lambda g: by_hand(g, {"alg": "nOnE"}, JWT_SECRET.encode()),
            "alg RS256, signed as HS256": lambda g: by_hand(
                g, {"typ": "JWT", "alg": "RS256"}, JWT_SECRET.encode()
            ),
            "HS256 with a public key": lambda g: by_hand(g, HS256, PUBLIC_KEY),
            "alg HS512": lambda g: jwt.encode(g.claims, JWT_SECRET + JWT_SECRET, "HS512"),
            "no alg": lambda g: by_hand(g, {"typ": "JWT"}, JWT_SECRET.encode()),
            "an empty key": lambda g: by_hand(g, HS256, b""),
            "no signature": lambda g: by_hand(g, HS256, None),
            "a key in the header": lambda g: by_hand(
                g,
                {**HS256, "jwk": {"kty": "oct", "k": part(b"mine")}, "kid": "../../dev/null"},
                b"mine",
            ),
            "another server's secret": lambda g: by_hand(g, HS256, b"another server's secret" * 3),
            "tampered payload": with_another_payload,
            "tampered signature": lambda g: flipped(g.person.token),
            "wrong issuer": lambda g: g.signed(iss="elsewhere"),
            "no issuer": lambda g: g.signed(iss=None),
            "wrong audience": lambda g: g.signed(aud="elsewhere"),
            "no audience": lambda g: g.signed(aud=None),
            "no expiry": lambda g: g.signed(exp=None),
            "an expiry that is no time": lambda g: g.signed(exp="tomorrow"),
            "not valid yet": lambda g: g.signed(nbf=int(time.time()) + 600),
            "issued in the future": lambda g: g.signed(iat=int(time.time()) + 600),
            "no subject": lambda g: g.signed(sub=None),
            "a subject that is nobody": lambda g: g.signed(sub=str(2**62)),
            "a subject that is no id": lambda g: g.signed(sub="1 OR 1=1"),
            "no session": lambda g: g.signed(sid=None),
            "another's session": lambda g: g.signed(sid=g.others_session),
            "a session that is a list": lambda g: g.signed(sid=["1"]),
            "no type": lambda g: g.signed(type=None),
            "a refresh token": lambda g: g.person.refresh_token,
            "a refresh token of its own making": lambda g: g.signed(type="refresh"),
        },
        "token_expired": {
            "expired": lambda g: g.signed(exp=int(time.time()) - 1),
            "expired long ago": lambda g: g.signed(exp=1),
        },
    }.items()
    for name, make in makes.items()
}


@pytest.mark.safety("forged-tokens")
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_token_is_refused_everywhere(server: Server, genuine: Genuine, name: str) -> None:
    code, make = FORGERIES[name]
    token = make(genuine)
    order = genuine.person.order()

    answer = Api(server.transport, token).get("/api/me")
    assert (answer.status_code, answer.code) == (401, code)
    answer = Api(server.transport, token).put(
        f"/api/orders/{order['id']}", json={"description": "x"}
    )
    assert (answer.status_code, answer.code) == (401, code)

    with pytest.raises(Refused) as refused, watching(server, token):
        pass
    assert (refused.value.problem["status"], refused.value.code) == (401, code)

    for options in ({"token": token}, {"subprotocols": ["ordertrack.v1", f"bearer.{token}"]}):
        with pytest.raises(Refused) as refused, raw_watching(server, order, **options):
            pass
        assert (refused.value.status, refused.value.code) == (401, code)

    with watching(server, genuine.person.token) as watcher:
        renewed = watcher.call("authenticate", {"token": token})
        assert (renewed["ok"], renewed["error"]["code"]) == (False, code)


@pytest.mark.safety("forged-tokens")
def test_the_token_behind_the_forgeries_is_accepted(server: Server, genuine: Genuine) -> None:
    """Else the list above would prove nothing."""
    order = genuine.person.order()
    for token in (genuine.signed(), by_hand(genuine, HS256, JWT_SECRET.encode())):
        assert Api(server.transport, token).get("/api/me").status_code == 200
        with watching(server, token) as watcher:
            assert watcher.call("authenticate", {"token": token}) == {"ok": True}
        with raw_watching(server, order, token) as raw:
            assert raw.next()["version"] == 1


@pytest.mark.parametrize("token", [None, "", 1, 1.5, True, [], {}, ["x"], "\x00", "ü", "\ud800"])
def test_a_token_of_another_type_is_refused_by_sockets(server: Server, token: Any) -> None:
    with pytest.raises(Refused) as refused, watching(server, token):
        pass
    assert (refused.value.problem["status"], refused.value.code) == (401, "invalid_token")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic {}",
        "{}",
        "bearer{}",
        "Bearer {} x",
        "Bearer x {}",
        "Token {}",
    ],
)
def test_only_a_bearer_header_is_used(server: Server, genuine: Genuine, header: str) -> None:
    sent = {"Authorization": header.format(genuine.person.token)}
    assert server.api.get("/api/me", headers=sent).code == "invalid_token"
    order = genuine.person.order()
    with pytest.raises(Refused) as refused, raw_watching(server, order, headers=sent):
        pass
    assert (refused.value.status, refused.value.code) == (401, "invalid_token")
