"""Which cached object goes next. Pure: no clock, no I/O, no locks; the store holds its own lock around each call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Literal, Protocol

from raycache.errors import SpecError

PolicyName = Literal["sieve", "lru"]


class EvictionPolicy(Protocol):
    """Order of eviction over a set of keys.

    Unknown keys are ignored by `access` and `remove`, so callers need not know what has gone in the meantime.
    """

    def __len__(self) -> int:
        """Number of keys."""
        ...

    def __contains__(self, key: Hashable) -> bool:
        """Whether the key is tracked."""
        ...

    def add(self, key: Hashable) -> None:
        """Track a new key. Adding a known key counts as an access."""
        ...

    def access(self, key: Hashable) -> None:
        """Note a hit."""
        ...

    def remove(self, key: Hashable) -> None:
        """Stop tracking a key (it was evicted, or dropped for another reason)."""
        ...

    def victims(self) -> Iterator[Hashable]:
        """Candidates, the best one first, each at most once.

        A candidate stays tracked until `remove`: the caller may find it in use and ask for the next. Other
        methods may be called between two candidates; the iteration goes on with what is there then.
        """
        ...


class Lru:
    """Least recently used first."""

    def __init__(self) -> None:
        self._order: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._order

    def add(self, key: Hashable) -> None:
        """Track a new key, as the most recently used."""
        self._order[key] = None
        self._order.move_to_end(key)

    def access(self, key: Hashable) -> None:
        """Make the key the most recently used."""
        if key in self._order:
            self._order.move_to_end(key)

    def remove(self, key: Hashable) -> None:
        """Stop tracking a key."""
        self._order.pop(key, None)

    def victims(self) -> Iterator[Hashable]:
        """Keys from the least to the most recently used, as they stood at the call."""
        # A snapshot: the order changes under the iteration whenever a reader comes by.
        for key in list(self._order):
            if key in self._order:
                yield key


class _Node:
    """A key in SIEVE's queue. `newer` leads towards the head (insertions), `older` towards the tail."""

    __slots__ = ("key", "newer", "older", "visited")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.newer: _Node | None = None
        self.older: _Node | None = None
        self.visited = False


class Sieve:
    """SIEVE (Zhang et al., NSDI 2024): a queue, one visited bit per key, and a hand that walks from the oldest
    key to the newest. A key that was hit since the hand last came by is spared once, *in its place*; the first
    that was not is the victim. New keys that are never hit again leave quickly, so a scan does not flush what
    is in use, and a hit costs one bit.
    """

    def __init__(self) -> None:
        self._nodes: dict[Hashable, _Node] = {}
        self._head: _Node | None = None
        self._tail: _Node | None = None
        self._hand: _Node | None = None

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._nodes

    def add(self, key: Hashable) -> None:
        """Track a new key, at the head."""
        if key in self._nodes:
            self.access(key)
            return
        node = _Node(key)
        node.older = self._head
        if self._head is not None:
            self._head.newer = node
        self._head = node
        if self._tail is None:
            self._tail = node
        self._nodes[key] = node

    def access(self, key: Hashable) -> None:
        """Set the key's visited bit."""
        node = self._nodes.get(key)
        if node is not None:
            node.visited = True

    def remove(self, key: Hashable) -> None:
        """Stop tracking a key; the hand moves on if it stood there."""
        node = self._nodes.pop(key, None)
        if node is None:
            return
        if self._hand is node:
            self._hand = node.newer
        if node.newer is not None:
            node.newer.older = node.older
        else:
            self._head = node.older
        if node.older is not None:
            node.older.newer = node.newer
        else:
            self._tail = node.newer

    def victims(self) -> Iterator[Hashable]:
        """Unvisited keys, in the order in which the hand meets them."""
        offered: set[Hashable] = set()
        # Two rounds without a new candidate: the first may clear every bit, the second would have found one.
        idle = 0
        while self._nodes and idle <= 2 * len(self._nodes):
            node = self._hand or self._tail
            assert node is not None  # there are nodes, so there is a tail
            # The hand leaves before the key is offered: whether it is removed or kept, the next look is past it.
            self._hand = node.newer
            if node.key in offered:
                idle += 1
            elif node.visited:
                node.visited = False
                idle += 1
            else:
                idle = 0
                offered.add(node.key)
                yield node.key


_POLICIES: dict[str, type[Sieve] | type[Lru]] = {"sieve": Sieve, "lru": Lru}


def make_policy(name: str) -> EvictionPolicy:
    """A new policy by its name in the spec.

    Args:
        name: "sieve" or "lru".

    Raises:
        SpecError: there is no policy of that name.
    """
    try:
        return _POLICIES[name]()
    except KeyError:
        raise SpecError(
            f"unknown eviction policy {name!r}",
            where="evictionPolicy",
            hint=f"use one of: {', '.join(sorted(_POLICIES))}",
        ) from None
