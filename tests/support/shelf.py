"""An object store that only fsspec knows: a third party's filesystem, registered under a protocol of its own."""

from __future__ import annotations

import hashlib
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

SHELVES: dict[str, dict[str, bytes]] = {}
"""What is on each shelf, by key. Whoever writes to a shelf writes here."""


class ShelfFileSystem(AsyncFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Shelves as a client of some vendor offers them: asynchronous, with tags and without any time, and without
    directories of their own. (fsspec's own `memory://` is the opposite: synchronous, times and no tags.)

    Args:
        reader: who reads; anybody but `nobody` may.
    """

    protocol = "shelf"

    def __init__(self, reader: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._reader = reader

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        objects, key = self._find_shelf(path)
        if key in objects:
            return _entry(path, objects[key])
        if any(other.startswith(f"{key}/") for other in objects) or not key:
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        objects, key = self._find_shelf(path)
        if key in objects:
            found = {path: _entry(path, objects[key])}
        else:
            found = {}
            below = f"{key}/" if key else ""
            for other, data in objects.items():
                name, slash, _rest = other.removeprefix(below).partition("/")
                if other.startswith(below) and slash:
                    found[name] = {"name": f"{path}/{name}", "size": 0, "type": "directory"}
                elif other.startswith(below):
                    found[name] = _entry(f"{path}/{name}", data)
            if not found:
                raise FileNotFoundError(path)
        return list(found.values()) if detail else [entry["name"] for entry in found.values()]

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        objects, key = self._find_shelf(self._strip_protocol(path))
        if key not in objects:
            raise FileNotFoundError(path)
        return objects[key][start:end]

    def _find_shelf(self, path: str) -> tuple[dict[str, bytes], str]:
        if self._reader == "nobody":
            raise PermissionError(path)
        shelf, _, key = path.partition("/")
        if shelf not in SHELVES:
            raise FileNotFoundError(path)
        return SHELVES[shelf], key


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"name": path, "size": len(data), "type": "file", "etag": hashlib.sha256(data).hexdigest()}


fsspec.register_implementation("shelf", ShelfFileSystem, clobber=True)
