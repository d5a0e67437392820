"""The data plane: checked blocks and small JSON actions over Arrow Flight. It knows nothing of caches."""

from __future__ import annotations

from raycache.flight.client import FlightPeer
from raycache.flight.pool import PeerPool
from raycache.flight.server import FlightServer

__all__ = ["FlightPeer", "FlightServer", "PeerPool"]
