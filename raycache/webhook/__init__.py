"""The webhook: a pod that asks for datasets by a label gets them as directories, by a sidecar.

`inject` is the pure core (a pod in, JSON Patch operations out); `review` speaks AdmissionReview; `server` speaks TLS.
Nothing here imports Ray. What the sidecar is told, and how: docs/sidecar.md.
"""

from __future__ import annotations

from raycache.webhook.catalog import Catalog, FileCatalog
from raycache.webhook.inject import Decision, inject
from raycache.webhook.policy import Policy

__all__ = ["Catalog", "Decision", "FileCatalog", "Policy", "inject"]
