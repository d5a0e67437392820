"""What a soak is set up with: sizes, the dataset's spec, and where everything is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.fuse.conftest import WHY_NOT
from tests.soak.truth import Truth
from tests.support.cache import Cache

MiB = 1 << 20

KEYS = 24
"""Objects: about 125 MiB, and the three nodes' tiers are 96 MiB together."""

TIERS = {"mem": "16Mi", "ssd": "16Mi"}
BLOCK = "256Ki"
EMBEDDED_QUOTA = 24 * MiB

TTL_S = 2.0
UNDER_WAY_S = 4.0
"""Seconds that the store's answer about a name may take to those who believe it for TTL_S from then on."""

PATIENCE_S = 120.0
"""Longest wait for what has to happen after the storm, seconds."""


@dataclass
class Setting:
    """A started raycache, with nothing on it but the soak.

    Args:
        cache: its proxy and bucket are the soak's own.
        seed: of all choices but those that time makes.

    Attributes:
        truth: the history of all objects.
        point: where the dataset is mounted; "" where that cannot be.
    """

    cache: Cache
    seed: int
    truth: Truth = field(init=False)
    point: str = field(init=False)

    def __post_init__(self) -> None:
        self.truth = Truth(self.truth_path, KEYS, TTL_S + UNDER_WAY_S)
        self.point = "" if WHY_NOT else str(self.cache.directory / "mnt")

    @property
    def truth_path(self) -> Path:
        """The file with the history."""
        return self.cache.directory / "truth"

    def spec(self, *, mounted: bool = True) -> str:
        """YAML of the dataset and all that it needs."""
        mount = self.point if mounted else ""
        return self.cache.spec(**TIERS, ttl=f"{TTL_S:g}s", block_size=BLOCK, mount=mount)
