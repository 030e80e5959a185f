"""Says whether this Python was compiled without its optimisations, as far as that can be known.

CPython compiles without profile-guided optimisation unless ``configure`` is told otherwise; so does
pyenv. Whoever distributes a Python optimises it, and some record nothing of it: Debian's Python has
the flags of another build. So a Python counts as unoptimised only if its recorded flags say nothing
of optimisation and nobody is known to have packaged it: a false warning would be worse than none.

It needs no packages, so that scripts can run it before any is installed:
``python ordertrack/interpreter.py`` fails where `is_unoptimised`.
"""

import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ADVICE: Final = (
    "This Python was compiled without optimisation and computes more slowly than it could."
    " Use a packaged Python, or compile it with --enable-optimizations --with-lto."
)

# How the two optimisations are asked for: of configure, or of the compiler.
_SIGNS: Final = (
    "--enable-optimizations",
    "--with-lto",
    "-fprofile-use",
    "-fprofile-instr-use",
    "-flto",
)

# Where flags that somebody chose are recorded. PGO_PROF_USE_FLAG and the like are in every build.
_RECORDS: Final = ("CONFIG_ARGS", "PY_CFLAGS", "PY_CORE_CFLAGS", "PY_CORE_LDFLAGS")


def is_unoptimised(
    recorded: Mapping[str, Any] | None = None, prefix: str = sys.base_prefix
) -> bool:
    """Whether a Python, this one by default, is known to lack its optimisations.

    *recorded* is what its ``sysconfig.get_config_vars`` returns, *prefix* where it is installed.
    """
    if recorded is None:
        recorded = sysconfig.get_config_vars()
    if not recorded.get("CONFIG_ARGS"):
        return False  # not made by configure: Windows, PyPy
    flags = " ".join(str(recorded.get(name) or "") for name in _RECORDS)
    if any(sign in flags for sign in _SIGNS):
        return False
    is_of_the_operating_system = prefix == "/usr"
    is_of_conda = Path(prefix, "conda-meta").exists()
    return not (is_of_the_operating_system or is_of_conda)


if __name__ == "__main__":
    sys.exit(is_unoptimised())
