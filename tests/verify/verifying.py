"""What the tests of the verifier share."""

from __future__ import annotations

import os
import sys
from itertools import count

import pytest

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PATIENT = 60.0  # seconds for a comparison that must not time out on a busy machine
HANGS = "9^{9^{9^9}}"
numbers = count(1)


def boxed(answer: str) -> str:
    return rf"The answer is \boxed{{{answer}}}."


def fresh_pair() -> tuple[str, str]:
    """Return two equal answers that no earlier test has left in the pool's memory."""
    n = next(numbers)
    return f"x+{n}y", boxed(f"{n}y+x")
