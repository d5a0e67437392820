"""raycache: object-store data at local-disk speed, next to the compute that reads it."""

__version__ = "0.1.0"
