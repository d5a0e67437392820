"""Who owned a partition before: where its bytes may still be when a change of the workers has moved it.

Kept for each partition, not for each change: its last owner and its first, as far as they are still members and are
not its owner now. The last one has the bytes if there was time between two changes; the first one if ten workers
joined in a minute. Pure; travels with the membership (`Membership.former`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from raycache.placement import PARTITIONS, Placement

DEPTH = 2
"""Former owners remembered for a partition. Each more would cost a table in every membership, and a question in every
fetch of what nobody has."""

NOBODY = ""
"""Worker id in a table of former owners where there is none."""


def former_owners(
    known: Sequence[Placement], old: Placement | None, new: Placement, members: Collection[str]
) -> tuple[Placement, ...]:
    """The former owners once `new` has taken the place of `old`.

    Args:
        known: the former owners so far, the latest first.
        old: the placement so far; None if there was none.
        new: the placement from now on.
        members: ids of the workers that can be asked, or may come back; others are forgotten.

    Returns:
        Up to `DEPTH` tables, the latest owners first, the first of all last; `NOBODY` where a partition has not that
        many. None of them names a partition's owner in `new`.
    """
    names = (NOBODY, *sorted(members))
    codes = {name: code for code, name in enumerate(names)}
    current = _coded(new, codes)
    slots = [np.zeros(PARTITIONS, dtype=np.int64) for _ in range(DEPTH + 1)]
    for candidates in (_coded(one, codes) for one in ([] if old is None else [old]) + list(known)):
        fresh = (candidates != 0) & (candidates != current)
        for slot in slots:
            fresh &= candidates != slot
        for slot in slots:
            put = fresh & (slot == 0)
            slot[put] = candidates[put]
            fresh &= ~put
    # One too many: the first one stays, and who had it for a moment goes.
    first = slots.pop()
    slots[-1][first != 0] = first[first != 0]
    return tuple(_table(slot, names) for slot in slots if slot.any())


def _coded(placement: Placement, codes: dict[str, int]) -> npt.NDArray[np.int64]:
    """The code of each partition's worker; 0 for one that is not known."""
    known = np.array([codes.get(worker, 0) for worker in placement.workers], dtype=np.int64)
    coded: npt.NDArray[np.int64] = known[placement.table]
    return coded


def _table(slot: npt.NDArray[np.int64], names: Sequence[str]) -> Placement:
    used, table = np.unique(slot, return_inverse=True)
    return Placement(tuple(names[code] for code in used.tolist()), table.astype(np.uint16))
