"""How many examples a test tries: its own number, or more of them in a long run."""

import os


def examples(number: int) -> int:
    """*number*, times the LONG_FACTOR that `scripts/test-long` sets."""
    return number * int(os.environ.get("LONG_FACTOR", "1"))
