"""Who is connected, and for how long."""

import time

import pytest

from ordertrack.errors import DomainError, InvalidToken, TooManyRequests, Unavailable
from ordertrack.eventlog import AccessEnded
from ordertrack.identity import Credential
from ordertrack.policy import Principal
from ordertrack.realtime.guests import Guests


class Visitor:
    def __init__(self, user: int = 1, session: int = 1, expires_in: float = 900) -> None:
        self.credential = credential(user, session, expires_in)
        self.told: str | None = None
        self.silenced: DomainError | None = None

    def silence(self, error: DomainError) -> None:
        self.silenced = error

    def sign_out(self, error: DomainError) -> None:
        self.told = error.code


def credential(user: int, session: int, expires_in: float) -> Credential:
    return Credential(Principal(user, session), time.time() + expires_in)


@pytest.fixture
def guests() -> Guests:
    return Guests(most=3, per_user=2)


def test_a_guest_whose_token_has_expired_is_told(guests: Guests) -> None:
    expired, good = Visitor(expires_in=-1), Visitor(expires_in=60)
    guests.admit(expired)
    guests.admit(good)
    guests.sweep(0)
    assert (expired.told, good.told) == ("token_expired", None)


def test_a_renewed_guest_stays_and_then_expires_by_its_new_token(guests: Guests) -> None:
    guest = Visitor(expires_in=-1)
    guests.admit(guest)
    guests.renew(guest, credential(1, 2, 60))
    guests.sweep(0)
    assert guest.told is None
    guests.renew(guest, credential(1, 2, -1))
    guests.sweep(0)
    assert guest.told == "token_expired"


def test_a_guest_does_not_go_on_as_somebody_else(guests: Guests) -> None:
    guest = Visitor(user=1)
    guests.admit(guest)
    with pytest.raises(InvalidToken):
        guests.renew(guest, credential(2, 1, 60))


def test_all_who_are_sent_away_have_an_error_of_their_own(guests: Guests) -> None:
    """Each raises it where it is, and its traceback holds what it was doing."""
    visitors = [Visitor(user=1), Visitor(user=2), Visitor(user=3)]
    for visitor in visitors:
        guests.admit(visitor)
    assert guests.silence_all(lambda: Unavailable("Connect again.")) == visitors
    assert len({id(visitor.silenced) for visitor in visitors} - {id(None)}) == 3


def test_a_session_that_ends_takes_its_own_guests_along(guests: Guests) -> None:
    first, second, stranger = Visitor(1, 1), Visitor(1, 2), Visitor(2, 3)
    for guest in (first, second, stranger):
        guests.admit(guest)
    guests.end_access(AccessEnded(1, 1, 1, "signed_out"))
    assert [guest.told for guest in (first, second, stranger)] == ["invalid_token", None, None]
    guests.end_access(AccessEnded(2, 1, None, "deactivated"))
    assert [guest.told for guest in (second, stranger)] == ["invalid_token", None]


def test_the_house_and_each_share_of_it_have_a_limit(guests: Guests) -> None:
    guests.admit(Visitor(1))
    guests.admit(Visitor(1))
    with pytest.raises(TooManyRequests):
        guests.admit(Visitor(1))
    guests.admit(Visitor(2))
    with pytest.raises(TooManyRequests):
        guests.admit(Visitor(3))
    assert len(guests) == 3


def test_who_leaves_leaves_nothing_behind(guests: Guests) -> None:
    for _ in range(1000):
        guest = Visitor()
        guests.admit(guest)
        guests.leave(guest)
        guests.leave(guest)
    assert len(guests) == 0
    assert sum(map(len, guests._expiring.values())) == 0
    assert guests._by_user == {}


class Stubborn(Visitor):
    def sign_out(self, error: DomainError) -> None:
        raise RuntimeError("a bug in signing out")


def test_one_that_cannot_be_told_does_not_keep_the_others_in(guests: Guests) -> None:
    """Neither when tokens expire in the same second, nor when an account ends."""
    expires_at = time.time() - 1
    told: list[Visitor] = []
    for number in range(3):
        guest = Stubborn(user=number) if number % 2 else Visitor(user=number)
        guest.credential = Credential(Principal(number, 1), expires_at)
        guests.admit(guest)
        told.append(guest)
    guests.sweep(0)
    assert [guest.told for guest in told] == ["token_expired", None, "token_expired"]
    assert len(guests) == 2, "whoever could not be told has no right any more, either"


def test_one_that_cannot_be_told_of_an_end_does_not_keep_the_others_in(guests: Guests) -> None:
    stubborn, good = Stubborn(1), Visitor(1)
    guests.admit(stubborn)
    guests.admit(good)
    guests.end_access(AccessEnded(1, 1, None, "deactivated"))
    assert good.told == "invalid_token"
    assert stubborn not in guests._by_user.get(1, ())
