"""Draws the picture of the lifecycle that stands in docs/protocol.md: python docs/lifecycle.py

It is drawn from the table that the server goes by; a test compares the two.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ordertrack.lifecycle import INITIAL, TERMINAL, TRANSITIONS


def mermaid() -> str:
    """The steps as a Mermaid state diagram, each with those who may take it."""
    lines = ["stateDiagram-v2", "    direction LR", f"    [*] --> {INITIAL}: customer"]
    for status, steps in TRANSITIONS.items():
        for target, standings in steps.items():
            lines.append(f"    {status} --> {target}: {', '.join(sorted(standings))}")
    lines += [f"    {status} --> [*]" for status in TRANSITIONS if status in TERMINAL]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(mermaid())
