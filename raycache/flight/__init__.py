"""The data plane: checked blocks and small JSON actions over Arrow Flight. It knows nothing of caches.

pyarrow is loaded with the first connection, not with this package: a cache without a cluster never makes one, and is
40 MiB smaller for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raycache.flight.pool import PeerPool

if TYPE_CHECKING:
    from raycache.flight.client import FlightPeer
    from raycache.flight.server import FlightServer

__all__ = ["FlightPeer", "FlightServer", "PeerPool"]


def __getattr__(name: str) -> Any:
    if name == "FlightPeer":
        from raycache.flight.client import FlightPeer

        return FlightPeer
    if name == "FlightServer":
        from raycache.flight.server import FlightServer

        return FlightServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
