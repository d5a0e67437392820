"""What users write: datasets, runtimes, loads, secrets; raycache's own YAML and Fluid's."""

from __future__ import annotations

from raycache.spec.loader import Document, load_documents, load_files
from raycache.spec.models import (
    API_VERSION,
    CacheRuntime,
    CacheRuntimeSpec,
    Consistency,
    DataLoad,
    DataLoadSpec,
    Dataset,
    DatasetSpec,
    LoadTarget,
    Metadata,
    Mount,
    Owner,
    ReplicaRange,
    Resource,
    Secret,
)
from raycache.spec.quantities import (
    format_duration,
    format_size,
    humanize_size,
    parse_duration,
    parse_ratio,
    parse_size,
)
from raycache.spec.resolve import MountSource, ResolvedDataset, TierSpec, resolve, runtime_for

__all__ = [
    "API_VERSION",
    "CacheRuntime",
    "CacheRuntimeSpec",
    "Consistency",
    "DataLoad",
    "DataLoadSpec",
    "Dataset",
    "DatasetSpec",
    "Document",
    "LoadTarget",
    "Metadata",
    "Mount",
    "MountSource",
    "Owner",
    "ReplicaRange",
    "ResolvedDataset",
    "Resource",
    "Secret",
    "TierSpec",
    "format_duration",
    "format_size",
    "humanize_size",
    "load_documents",
    "load_files",
    "parse_duration",
    "parse_ratio",
    "parse_size",
    "resolve",
    "runtime_for",
]
