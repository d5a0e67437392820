"""raycache: object-store data at local-disk speed, next to the compute that reads it.

    import raycache

    with raycache.local_path("raycache://models/llama/model.safetensors") as path:
        ...

Names are imported when they are first used: `import raycache` alone imports neither Ray nor pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Admin": "raycache.api",
    "connect": "raycache.api",
    "disconnect": "raycache.api",
    "embedded": "raycache.api",
    "local_path": "raycache.api",
    "nodes_for": "raycache.locality",
    "placement_group": "raycache.locality",
    "scheduling_options": "raycache.locality",
    "arrow_filesystem": "raycache.filesystem",
    "RaycacheFileSystem": "raycache.filesystem",
    "AccessDeniedError": "raycache.errors",
    "BucketNotFoundError": "raycache.errors",
    "CacheFullError": "raycache.errors",
    "ClusterUnavailableError": "raycache.errors",
    "DatasetNotFoundError": "raycache.errors",
    "IntegrityError": "raycache.errors",
    "MountBusyError": "raycache.errors",
    "MountError": "raycache.errors",
    "NotAFileError": "raycache.errors",
    "NotFoundError": "raycache.errors",
    "NotMountedError": "raycache.errors",
    "ObjectNotFoundError": "raycache.errors",
    "OperationFailedError": "raycache.errors",
    "PathError": "raycache.errors",
    "RaycacheError": "raycache.errors",
    "ReadOnlyError": "raycache.errors",
    "SpecError": "raycache.errors",
    "StaleObjectError": "raycache.errors",
    "StoreBusyError": "raycache.errors",
    "TooManyFilesError": "raycache.errors",
    "UnderStoreError": "raycache.errors",
    "WorkerUnavailableError": "raycache.errors",
}
"""Where each exported name is defined."""

if TYPE_CHECKING:
    from raycache.api import Admin, connect, disconnect, embedded, local_path
    from raycache.errors import (
        AccessDeniedError,
        BucketNotFoundError,
        CacheFullError,
        ClusterUnavailableError,
        DatasetNotFoundError,
        IntegrityError,
        MountBusyError,
        MountError,
        NotAFileError,
        NotFoundError,
        NotMountedError,
        ObjectNotFoundError,
        OperationFailedError,
        PathError,
        RaycacheError,
        ReadOnlyError,
        SpecError,
        StaleObjectError,
        StoreBusyError,
        TooManyFilesError,
        UnderStoreError,
        WorkerUnavailableError,
    )
    from raycache.filesystem import RaycacheFileSystem, arrow_filesystem
    from raycache.locality import nodes_for, placement_group, scheduling_options

__all__ = [
    "AccessDeniedError",
    "Admin",
    "BucketNotFoundError",
    "CacheFullError",
    "ClusterUnavailableError",
    "DatasetNotFoundError",
    "IntegrityError",
    "MountBusyError",
    "MountError",
    "NotAFileError",
    "NotFoundError",
    "NotMountedError",
    "ObjectNotFoundError",
    "OperationFailedError",
    "PathError",
    "RaycacheError",
    "RaycacheFileSystem",
    "ReadOnlyError",
    "SpecError",
    "StaleObjectError",
    "StoreBusyError",
    "TooManyFilesError",
    "UnderStoreError",
    "WorkerUnavailableError",
    "__version__",
    "arrow_filesystem",
    "connect",
    "disconnect",
    "embedded",
    "local_path",
    "nodes_for",
    "placement_group",
    "scheduling_options",
]


def __getattr__(name: str) -> Any:
    if name == "data":
        return import_module("raycache.data")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'raycache' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "data"})
