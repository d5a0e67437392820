"""Which datasets there are, and which of them are ready: from files, read again when they change."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from raycache.errors import RaycacheError, SpecError
from raycache.spec import load_files

logger = logging.getLogger(__name__)

READY = "Bound"
"""The phase of a dataset that the cluster holds."""


class Catalog(Protocol):
    """Where `inject` gets its second argument from."""

    def current(self) -> Mapping[str, str]:
        """Names of the datasets; the value says why one is not ready, "" if it is."""


class FileCatalog:
    """Datasets of spec files, such as a mounted ConfigMap.

    Args:
        specs: files, and directories of them. Other objects than Datasets in them are skipped.
        status: file with what `raycache get datasets -o json` prints: only datasets that are Bound in it are ready.
            Without it, every dataset of the specs is taken for ready.

    Raises:
        RaycacheError: the files cannot be read now. Later, what was read last stays, and the log says why.
    """

    def __init__(self, specs: Sequence[str], status: str | None = None) -> None:
        self._specs = list(specs)
        self._status = status
        self._lock = threading.Lock()
        self._signature = self._look()
        self._datasets = self._read()

    def current(self) -> Mapping[str, str]:
        """As `Catalog.current`."""
        with self._lock:
            signature = self._look()
            if signature != self._signature:
                self._signature = signature
                try:
                    self._datasets = self._read()
                except (RaycacheError, OSError) as error:
                    logger.warning("datasets stay as they were: %s", error)
            return self._datasets

    def _look(self) -> list[tuple[str, int, int, int]]:
        """What changes when a file does. Links are followed: a ConfigMap is changed by turning one round."""
        found = []
        for place in [*self._specs, *([self._status] if self._status else [])]:
            path = Path(place)
            try:
                for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                    stat = file.stat()
                    found.append((str(file), stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except OSError:  # being replaced, or gone: then it is not what it was, and reading it says more
                continue
        return found

    def _read(self) -> dict[str, str]:
        names = [document.name for document in load_files(self._specs) if document.kind == "Dataset"]
        if self._status is None:
            return dict.fromkeys(names, "")
        phases = _phases(self._status)
        return {
            name: phases.get(name, "the cluster does not know it; raycache apply it first") for name in names
        }


def _phases(path: str) -> dict[str, str]:
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {}
        for row in rows:
            phase, reason = str(row["phase"]), str(row.get("reason") or "")
            found[str(row["name"])] = "" if phase == READY else f"{phase}, {reason}".rstrip(", ")
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", where=path) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        hint = "write it with raycache get datasets -o json"
        raise SpecError("is not a list of datasets in JSON", where=path, hint=hint) from None
    return found
