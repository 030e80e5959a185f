"""The answers to a change of status, specified case by case, independent of the code.

Each grid is one kind of caller: rows are the order's status, columns the wanted one.

    >  200, it moves       =  200, it is there already       !  409 invalid_transition
    x  403, this caller never may                            -  404, it does not exist for them
"""

STATUSES = ("Pending", "Processing", "Shipped", "Completed", "Cancelled")

_OWNER = """
    = x x x >
    ! x x x !
    ! x x x !
    ! x x x !
    ! x x x =
"""
_DRIVER = """
    = > ! ! x
    ! = > ! x
    ! ! = > x
    ! ! ! = x
    ! ! ! ! x
"""
_DRIVER_AND_OWNER = """
    = > ! ! >
    ! = > ! !
    ! ! = > !
    ! ! ! = !
    ! ! ! ! =
"""
_ADMIN = """
    = > ! ! >
    ! = > ! >
    ! ! = > !
    ! ! ! = !
    ! ! ! ! =
"""
_STRANGER = """
    - - - - -
    - - - - -
    - - - - -
    - - - - -
    - - - - -
"""

# (role, whether the order is the caller's own): with DRIVER_SCOPE=all
GRIDS = {
    ("user", True): _OWNER,
    ("user", False): _STRANGER,
    ("driver", True): _DRIVER_AND_OWNER,
    ("driver", False): _DRIVER,
    ("admin", True): _ADMIN,
    ("admin", False): _ADMIN,
}

# (own, assigned to the caller): drivers with DRIVER_SCOPE=assigned
ASSIGNED_GRIDS = {
    (True, True): _DRIVER_AND_OWNER,
    (True, False): _OWNER,
    (False, True): _DRIVER,
    (False, False): _STRANGER,
}


def outcome(grid: str, status: str, target: str) -> str:
    """The sign in *grid* for an order at *status* of which *target* is wanted."""
    return grid.split()[len(STATUSES) * STATUSES.index(status) + STATUSES.index(target)]


def may_set(grid: str, status: str) -> list[str]:
    """What the caller may set an order at *status* to, in the order of the flow."""
    return [target for target in STATUSES if outcome(grid, status, target) == ">"]


# How an admin takes a new order to each status.
WAY_TO = {
    "Pending": (),
    "Processing": ("Processing",),
    "Shipped": ("Processing", "Shipped"),
    "Completed": ("Processing", "Shipped", "Completed"),
    "Cancelled": ("Cancelled",),
}
