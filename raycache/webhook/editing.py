"""Changing a JSON document, and keeping the operations (RFC 6902) that do the same to the original."""

from __future__ import annotations

import copy
from typing import Any

Path = tuple[str | int, ...]


class Editing:
    """A working copy of `document`, and the operations that lead to it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = copy.deepcopy(document)
        self.operations: list[dict[str, Any]] = []

    def set(self, path: Path, value: Any) -> None:
        """Have `value` at `path`, whose parent exists. Nothing is noted where it is there already."""
        parent, last = self._parent(path)
        if isinstance(parent, dict) and last not in parent:
            self._note("add", path, value)
        elif parent[last] == value:
            return
        else:
            self._note("replace", path, value)
        parent[last] = copy.deepcopy(value)

    def insert(self, path: Path, value: Any) -> None:
        """Put `value` into the list at `path[:-1]`, before the index `path[-1]`; a missing list is made."""
        *above, index = path
        parent, last = self._parent(tuple(above))
        if parent.get(last) is None:  # absent, or null, which Kubernetes reads as absent
            self.set(tuple(above), [value])
            return
        parent[last].insert(index, copy.deepcopy(value))
        self._note("add", path, value)

    def remove(self, path: Path) -> None:
        """Take away what is at `path`."""
        parent, last = self._parent(path)
        del parent[last]
        self.operations.append({"op": "remove", "path": pointer(path)})

    def _parent(self, path: Path) -> tuple[Any, Any]:
        here: Any = self.document
        for step in path[:-1]:
            here = here[step]
        return here, path[-1]

    def _note(self, op: str, path: Path, value: Any) -> None:
        self.operations.append({"op": op, "path": pointer(path), "value": copy.deepcopy(value)})


def pointer(path: Path) -> str:
    """`path` as a JSON Pointer (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
