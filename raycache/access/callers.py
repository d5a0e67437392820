"""Who calls, and what he may."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

Verb = Literal["read", "invalidate"]
"""What a token can allow: names and bytes; and to say that they have changed in the store."""

VERBS: tuple[Verb, ...] = get_args(Verb)


@dataclass(frozen=True)
class Caller:
    """Who presented a token.

    Args:
        name: for logs, and for counting his calls together: the token's own id.
        datasets: names of those he may use; None is all.
        verbs: what he may do with them.
        internal: whether he is part of the cluster, and may everything.
    """

    name: str
    datasets: frozenset[str] | None = frozenset()
    verbs: frozenset[Verb] = frozenset()
    internal: bool = False

    def may(self, verb: Verb, datasets: Collection[str]) -> bool:
        """Whether he may do something with all of some datasets."""
        return self.internal or (
            verb in self.verbs and (self.datasets is None or set(datasets) <= self.datasets)
        )

    def sees(self, dataset: str) -> bool:
        """Whether he may know that a dataset exists."""
        return self.internal or self.datasets is None or dataset in self.datasets


CLUSTER = Caller("cluster", None, frozenset(VERBS), internal=True)
"""Workers, the coordinator, and processes that have joined the Ray cluster: Ray does not tell its jobs apart, so the
cache cannot either."""
