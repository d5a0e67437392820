"""How much the memory tiers of a process may use: the decision, without clock and I/O.

Ray kills a task or an actor when a node's memory in use passes a threshold (95 % unless configured otherwise), at which
it looks every 250 ms (`RAY_memory_usage_threshold`, `RAY_min_memory_free_bytes`, `RAY_memory_monitor_refresh_ms`). The
tiers therefore keep a reserve below that threshold free: they shrink at once when it is touched, and grow back slowly.
"""

from __future__ import annotations

from dataclasses import dataclass

from raycache.blocks import GiB, MiB

RESERVE = 0.05
"""Share of the memory that is kept free below Ray's threshold."""

LEAST_RESERVE, MOST_RESERVE = 256 * MiB, 4 * GiB
"""Its bounds: what a process can allocate between two looks does not shrink, or grow, with the machine."""

AHEAD = 3
"""Looks for which the growth of the others since the last one is expected to go on."""

CALM, STEP = 50, 10
"""Looks with memory to spare before the first step up, and between two steps (of a quarter of what is missing)."""


@dataclass(frozen=True)
class Sample:
    """What is in use, as Ray's memory monitor counts it.

    Args:
        total: bytes of the machine, or of its container.
        used: bytes that are in use and cannot be reclaimed by the kernel; those of memory filesystems are among them.
        threshold: bytes in use above which Ray kills.
    """

    total: int
    used: int
    threshold: int

    @property
    def reserve(self) -> int:
        """Bytes to be kept free below the threshold."""
        wanted = min(max(int(self.total * RESERVE), LEAST_RESERVE), MOST_RESERVE)
        return min(wanted, self.threshold // 4)


@dataclass(frozen=True)
class Decision:
    """What follows from a sample.

    Args:
        limit: bytes that all memory tiers together may use.
        pressed: they use more, because others need the memory.
        hurry: half of the reserve is gone, too, or will be in a moment: drop, do not copy to a lower tier.
    """

    limit: int
    pressed: bool = False
    hurry: bool = False


class Governor:
    """Decides from one sample after the other."""

    def __init__(self) -> None:
        self._limit: int | None = None
        self._ceiling = 0
        self._others: int | None = None
        self._calm = 0

    def decide(self, sample: Sample, own: int, ceiling: int) -> Decision:
        """The limit from now on, never above `ceiling` and never below 0.

        Args:
            sample: what is in use now.
            own: bytes among them that the memory tiers use.
            ceiling: bytes that they may use at most.
        """
        others = sample.used - own
        growth = 0 if self._others is None else max(0, others - self._others)
        self._others = others
        ahead = AHEAD * growth
        room = max(0, sample.threshold - sample.reserve - others - ahead)
        # Half a reserve less than there is: noise that is smaller changes nothing.
        goal = min(ceiling, max(0, room - sample.reserve // 2))
        # Who was not held back is not now, if the tiers get larger quotas, or more of them come.
        if self._limit is None or (self._limit >= self._ceiling < ceiling and goal > self._limit):
            limit = goal
        else:
            limit = min(self._limit, ceiling)
        self._ceiling = ceiling
        pressed = own > room
        if pressed:
            limit = min(limit, goal)
        elif limit > room:
            limit = goal  # what is not used yet must not be
        if pressed or goal <= limit:
            self._calm = 0
        else:
            self._calm += 1
            if self._calm >= CALM:
                self._calm = CALM - STEP
                limit += min(goal - limit, max((goal - limit) // 4, ceiling // 64, 1))
        self._limit = limit
        hurry = pressed and sample.used + ahead > sample.threshold - sample.reserve // 2
        return Decision(limit, pressed, hurry)


def split(limit: int, firm: dict[str, int], auto: dict[str, int]) -> dict[str, int]:
    """The limit of each tier: those with a quota of their own before those that follow spare memory, in proportion.

    Args:
        limit: bytes for all.
        firm: ceilings of the tiers with a quota, by name.
        auto: ceilings of those without.
    """
    shares: dict[str, int] = {}
    for group in (firm, auto):
        whole = sum(group.values())
        given = min(limit, whole)
        shares |= {name: given * size // whole if whole else 0 for name, size in group.items()}
        limit -= given
    return shares
