"""Who else has what a worker sends: so that copies of a hot segment come from many, and not all from its owner.

The owner remembers which workers asked it for which blocks, for they keep what they get. While it is sending to
somebody else, it names them to who asks next, and sends nothing itself: so its uplink carries about one copy, and those
who ask at the same moment get the blocks from each other while they arrive. This is what a tracker does in peer-to-peer
file distribution; here each owner is one for its own segments, and nothing of it is kept anywhere else. What it
believes may be wrong: who is named and has not got the blocks says so, and the owner is asked again, and sends.

Nobody waits in a circle. Who is named for blocks has asked for them before, and was sent them, or to somebody who had
asked still earlier. One who asks for blocks again (he lost them, or something went wrong) is sent to nobody who may be
waiting for what he had asked for then: only to those whose whole chain, back to the owner, is younger than that.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

MAX_BLOCKS = 16_384
"""Blocks that are remembered, those asked for last: 64 GiB in blocks of 4 MiB. A few MiB of memory."""

MAX_COPIES = 64
"""Workers that are remembered of a block. Those after them are sent to one of these."""

MAX_DEPTH = 4
"""Workers that blocks on their way pass through, one after the other: each adds the time of one fetch (8 MiB)."""

NAMED = 2
"""Workers that are named to who asks. If none of them can give the blocks, the owner does."""

SETTLED_S = 10.0
"""Seconds after which who asked for a block counts as having it, and not as waiting for it himself."""

MAX_NAMES = 10_000
"""Workers of which it is remembered when they were named last; then it is forgotten of all."""

RECENT_S = 120.0
"""Seconds after which a worker no longer waits for blocks that it asked for, whoever it was sent to: longer than
anybody waits for blocks that are on their way to somebody (`held.ARRIVING_S`)."""


@dataclass(eq=False, slots=True)
class _Copy:
    """A worker's copy of the blocks that it asked for at once.

    Args:
        at: when it asked, seconds.
        since: when the first one asked of those through which they come to it, seconds.
        depth: workers that they pass through on their way to it, itself counted.
        missed: somebody was sent to it and did not get them.
    """

    at: float
    since: float
    depth: int
    missed: bool = False


class Tracker:
    """Decides which requests a worker serves itself, and whom it names for the others. Thread-safe.

    Args:
        usable: of the id of a worker, whether it can be named now.
        clock: monotonic seconds.

    Attributes:
        enabled: whether anybody is named.
    """

    def __init__(self, usable: Callable[[str], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self.enabled = True
        self._usable = usable
        self._clock = clock
        self._lock = threading.Lock()
        self._copies: OrderedDict[tuple[str, int], dict[str, _Copy]] = OrderedDict()
        self._sending: Counter[Hashable] = Counter()
        self._named: dict[str, int] = {}
        """The turn in which each worker was named last."""
        self._turn = 0

    @contextmanager
    def request(self, object_id: str, blocks: range, asker: str, shares: bool) -> Iterator[list[str]]:
        """A request for some blocks, as long as it is being answered.

        Args:
            object_id: of the object version.
            blocks: adjacent blocks.
            asker: id of the worker that asks, and will have them; "" for somebody who keeps nothing.
            shares: whether the asker goes to others that are named to him.

        Yields:
            Workers to name to him, best first. Empty: send him the blocks.
        """
        keys = [(object_id, block) for block in blocks]
        sent_to: Hashable = asker or object()
        with self._lock:
            now = self._clock()
            others = any(each != asker for each in self._sending)
            named = self._best(keys, asker, now) if shares and others and self.enabled else []
            if asker:
                self._note(keys, asker, self._copy_from(keys, named[:1], now))
            if not named:
                self._sending[sent_to] += 1
        try:
            yield named
        finally:
            if not named:
                with self._lock:
                    self._sending[sent_to] -= 1
                    if not self._sending[sent_to]:
                        del self._sending[sent_to]

    def missed(self, object_id: str, blocks: range, workers: Collection[str]) -> None:
        """Workers could not give blocks for which they were named: they are not named again before they have asked for
        them."""
        with self._lock:
            for block in blocks:
                copies = self._copies.get((object_id, block), {})
                for worker in workers:
                    if worker in copies:
                        copies[worker].missed = True

    def _best(self, keys: Sequence[tuple[str, int]], asker: str, now: float) -> list[str]:
        """Who has all of the blocks, or will have them soon; who was not named for the longest time comes first."""
        known = [self._copies.get(key, {}) for key in keys]
        asked = max((copies[asker].at for copies in known if asker in copies), default=-math.inf)

        def gives(copy: _Copy | None) -> bool:
            if copy is None or copy.missed or _depth(copy, now) >= MAX_DEPTH:
                return False
            return copy.since > asked or now - copy.at > RECENT_S

        found = [
            worker
            for worker in known[0]
            if worker != asker and all(gives(copies.get(worker)) for copies in known) and self._usable(worker)
        ]
        found.sort(key=lambda worker: self._named.get(worker, 0))
        if found:
            self._turn += 1
            if len(self._named) > MAX_NAMES:
                self._named.clear()
            self._named[found[0]] = self._turn
        return found[:NAMED]

    def _copy_from(self, keys: Sequence[tuple[str, int]], sources: Sequence[str], now: float) -> _Copy:
        """What somebody has who has it from one of these, or from this worker if there are none."""
        copies = [self._copies[key][source] for key in keys for source in sources]
        since = min((copy.since for copy in copies), default=now)
        return _Copy(now, since, 1 + max((_depth(copy, now) for copy in copies), default=0))

    def _note(self, keys: Sequence[tuple[str, int]], asker: str, copy: _Copy) -> None:
        for key in keys:
            copies = self._copies.setdefault(key, {})
            self._copies.move_to_end(key)
            if asker in copies or len(copies) < MAX_COPIES:
                copies[asker] = copy
        while len(self._copies) > MAX_BLOCKS:
            self._copies.popitem(last=False)


def _depth(copy: _Copy, now: float) -> int:
    return copy.depth if now - copy.at < SETTLED_S else 0
