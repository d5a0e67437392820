"""Ray Data on raycache: reads whose tasks run on the nodes that hold the bytes.

    import raycache.data

    tables = raycache.data.read_parquet("raycache://demo/table")

The functions take the arguments of those of `ray.data` of the same name, except for `filesystem`.
"""

from raycache.data.hints import locality_hints
from raycache.data.prefetching import Prefetch, prefetch
from raycache.data.reading import (
    read,
    read_binary_files,
    read_csv,
    read_images,
    read_json,
    read_parquet,
    read_text,
)

__all__ = [
    "Prefetch",
    "locality_hints",
    "prefetch",
    "read",
    "read_binary_files",
    "read_csv",
    "read_images",
    "read_json",
    "read_parquet",
    "read_text",
]
