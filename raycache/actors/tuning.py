"""What scaling goes by on this cluster: the defaults, unless the cluster's store says otherwise."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from raycache.actors import kv as keys
from raycache.actors.kv import Kv, get_json, put_json
from raycache.autoscaling import Policy


@dataclass(frozen=True)
class Tuning:
    """See above. Read once by each process, when it starts.

    Args:
        policy: of the autoscaler.
        retire_s: seconds for which a worker must have held nothing before it ends.
    """

    policy: Policy = field(default_factory=Policy)
    retire_s: float = 120.0

    @property
    def report_s(self) -> float:
        """Seconds between two reports of a worker: often enough for what must be seen before anything is changed, and
        with 1,000 workers about 70 a second."""
        return min(15.0, self.policy.look_s / 8)

    def store(self, kv: Kv) -> None:
        """Have all that start from now on go by this."""
        put_json(kv, keys.TUNING, asdict(self))

    @classmethod
    def of(cls, kv: Kv) -> Tuning:
        """What the cluster's store says."""
        known: dict[str, Any] | None = get_json(kv, keys.TUNING)
        return cls() if known is None else cls(Policy(**known["policy"]), known["retire_s"])
