"""A worker's read path. It knows no Ray: `raycache.actors` puts it into an actor, `raycache.client` embeds it."""

from raycache.engine.engine import Engine, Keep
from raycache.engine.holdings import MAX_ROOTS, Held, segment_size
from raycache.engine.leaving import Leaving
from raycache.engine.metadata import Dated, MetadataCache, ttl_from_wire
from raycache.engine.peers import Peers
from raycache.engine.pulling import pull
from raycache.engine.service import EngineService, ensure_to_wire
from raycache.engine.volume import Volume, metadata_ttl

__all__ = [
    "MAX_ROOTS",
    "Dated",
    "Engine",
    "EngineService",
    "Held",
    "Keep",
    "Leaving",
    "MetadataCache",
    "Peers",
    "Volume",
    "ensure_to_wire",
    "metadata_ttl",
    "pull",
    "segment_size",
    "ttl_from_wire",
]
