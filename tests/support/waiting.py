"""Waiting for what has no event to wait for: what only another process, or the operating system, knows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 60.0
"""Longest wait; reached only when a test fails."""

EVERY_S = 0.02


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The condition's first true value.

    Args:
        condition: looked at again and again.
        what: is waited for, for the message.
        patience_s: longest wait, seconds.

    Raises:
        AssertionError: it did not become true.
    """
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience_s:g} s: {what}")
        time.sleep(EVERY_S)
    return value
