"""The table of transitions and what is derived from it; over REST it is tested in tests/web."""

from itertools import pairwise, product

import pytest

from ordertrack import lifecycle
from ordertrack.lifecycle import INITIAL, MAIN_FLOW, TERMINAL, TRANSITIONS, Standing, Status
from tests.support.rules import GRIDS, STATUSES, may_set

# The grids of tests/support/rules.py are the specification, independent of the code.
CALLERS = {
    frozenset({Standing.OWNER}): GRIDS["user", True],
    frozenset({Standing.DRIVER}): GRIDS["driver", False],
    frozenset({Standing.DRIVER, Standing.OWNER}): GRIDS["driver", True],
    frozenset({Standing.ADMIN}): GRIDS["admin", False],
    frozenset({Standing.ADMIN, Standing.OWNER}): GRIDS["admin", True],
}

callers = pytest.mark.parametrize(
    "held", CALLERS, ids=lambda held: " and ".join(sorted(standing.value for standing in held))
)


def test_the_statuses_are_those_of_the_protocol() -> None:
    assert tuple(status.value for status in Status) == STATUSES


def test_every_status_has_a_row_also_the_final_ones() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert {Status.COMPLETED, Status.CANCELLED} == TERMINAL


def test_no_transition_leads_to_the_initial_status() -> None:
    assert not any(INITIAL in steps for steps in TRANSITIONS.values())
    assert MAIN_FLOW[0] is INITIAL


def test_the_main_flow_goes_one_step_at_a_time() -> None:
    assert tuple(Status)[:4] == MAIN_FLOW
    for status, following in pairwise(MAIN_FLOW):
        assert [step for step in TRANSITIONS[status] if step in MAIN_FLOW] == [following]


@callers
def test_next_statuses_are_what_the_table_allows(held: frozenset[Standing]) -> None:
    for status in Status:
        assert lifecycle.next_statuses(status, held) == may_set(CALLERS[held], status)


@callers
def test_predecessors_are_the_inverse_of_next_statuses(held: frozenset[Standing]) -> None:
    for status, target in product(Status, Status):
        leads_there = any(status in lifecycle.predecessors(target, standing) for standing in held)
        assert leads_there == (target in lifecycle.next_statuses(status, held))


@callers
def test_may_ever_set_is_whether_any_status_leads_there(held: frozenset[Standing]) -> None:
    for target in Status:
        reachable = any(target in may_set(CALLERS[held], status) for status in STATUSES)
        assert lifecycle.may_ever_set(target, held) == reachable


def test_without_a_standing_nothing_may_be_set() -> None:
    for status in Status:
        assert lifecycle.next_statuses(status, ()) == []
        assert not lifecycle.may_ever_set(status, ())


def test_an_edge_is_a_transition_that_some_standing_may_make() -> None:
    for status, target in product(Status, Status):
        anybody = any(target in may_set(grid, status) for grid in CALLERS.values())
        assert (target in lifecycle.TRANSITIONS[status]) == anybody
