"""The rules of who may see and change an order; over REST they are tested in tests/web."""

from dataclasses import dataclass
from itertools import product

import pytest

from ordertrack import policy
from ordertrack.lifecycle import Standing, Status
from ordertrack.policy import Actor, DriverScope, Role

ME, SOMEBODY = 1, 2


@dataclass
class Facts:
    customer_id: int = SOMEBODY
    driver_id: int | None = None
    status: str = Status.PENDING
    is_deleted: bool = False


def actor(role: Role, scope: DriverScope = DriverScope.ALL) -> Actor:
    return Actor(ME, "Ann", role, scope)


SIGHT = [
    # role, own order, my delivery, scope, my standings
    (Role.USER, False, False, DriverScope.ALL, set()),
    (Role.USER, True, False, DriverScope.ALL, {Standing.OWNER}),
    # A former driver does not see the orders that are still assigned to them.
    (Role.USER, False, True, DriverScope.ALL, set()),
    (Role.DRIVER, False, False, DriverScope.ALL, {Standing.DRIVER}),
    (Role.DRIVER, True, False, DriverScope.ALL, {Standing.DRIVER, Standing.OWNER}),
    (Role.DRIVER, False, False, DriverScope.ASSIGNED, set()),
    (Role.DRIVER, False, True, DriverScope.ASSIGNED, {Standing.DRIVER}),
    (Role.DRIVER, True, False, DriverScope.ASSIGNED, {Standing.OWNER}),
    (Role.DRIVER, True, True, DriverScope.ASSIGNED, {Standing.DRIVER, Standing.OWNER}),
    (Role.ADMIN, False, False, DriverScope.ASSIGNED, {Standing.ADMIN}),
    (Role.ADMIN, True, True, DriverScope.ALL, {Standing.ADMIN, Standing.OWNER}),
]


@pytest.mark.parametrize(("role", "own", "mine", "scope", "expected"), SIGHT)
def test_the_standings_of_a_user_to_an_order(
    role: Role, own: bool, mine: bool, scope: DriverScope, expected: set[Standing]
) -> None:
    order = Facts(ME if own else SOMEBODY, ME if mine else SOMEBODY)
    assert policy.standings(actor(role, scope), order) == expected
    assert policy.can_see(actor(role, scope), order) == bool(expected)
    assert policy.can_read_history(actor(role, scope), order) == bool(expected)


@pytest.mark.parametrize(("role", "scope"), list(product(Role, DriverScope)))
def test_a_deleted_order_is_invisible_and_admins_read_its_history(
    role: Role, scope: DriverScope
) -> None:
    order = Facts(ME, ME, is_deleted=True)
    assert not policy.can_see(actor(role, scope), order)
    assert policy.can_read_history(actor(role, scope), order) == (role is Role.ADMIN)


PENDING_ONLY = {Status.PENDING}
ALWAYS = set(Status)
UNTIL_FINAL = {Status.PENDING, Status.PROCESSING, Status.SHIPPED}


@pytest.mark.parametrize(
    ("held", "may_edit", "may_delete"),
    [
        (set(), set(), set()),
        ({Standing.DRIVER}, set(), set()),
        ({Standing.OWNER}, PENDING_ONLY, PENDING_ONLY),
        ({Standing.OWNER, Standing.DRIVER}, PENDING_ONLY, PENDING_ONLY),
        ({Standing.ADMIN}, UNTIL_FINAL, ALWAYS),
        ({Standing.ADMIN, Standing.OWNER}, UNTIL_FINAL, ALWAYS),
    ],
)
def test_who_may_edit_and_delete_and_when(
    held: set[Standing], may_edit: set[Status], may_delete: set[Status]
) -> None:
    standings = frozenset(held)
    assert {status for status in Status if policy.can_edit(standings, status)} == may_edit
    assert {status for status in Status if policy.can_delete(standings, status)} == may_delete
    assert policy.can_ever_edit(standings) == bool(may_edit)


@pytest.mark.parametrize("role", Role)
def test_staff_are_drivers_and_admins(role: Role) -> None:
    assert actor(role).is_staff == (role in {Role.DRIVER, Role.ADMIN})
