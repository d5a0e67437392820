"""A disk that gives errors: below one directory, system calls of chosen kinds fail with a chosen errno."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycache.store import files


class SickDisk:
    """Makes the store's system calls (raycache/store/files.py) on files below a directory fail.

    Args:
        monkeypatch: undoes it after the test.
        directory: whose files.

    Attributes:
        errors: errno by kind of call: `read`, `write` (data files), `index` (writes of index files), `create`,
            `open`, `unlink`. Empty: the disk is well.
        calls: number of calls that failed, by kind.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path | str) -> None:
        self.errors: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self._directory = os.path.realpath(directory) + "/"
        for name, kind in (("create", "create"), ("open_file", "open"), ("unlink", "unlink")):
            self._patch(monkeypatch, files, name, kind, lambda path: path)
        self._patch(monkeypatch, files, "pread_into", "read", path_of)
        self._patch(monkeypatch, os, "pread", "read", path_of)
        self._patch(monkeypatch, files, "pwrite_all", "write", path_of)

    def fail(self, code: int, *kinds: str) -> None:
        """From now on calls of these kinds (none: of all) fail so, and no others."""
        self.errors = dict.fromkeys(kinds or ("read", "write", "index", "create", "open", "unlink"), code)

    def heal(self) -> None:
        """From now on nothing fails."""
        self.errors = {}

    def _patch(
        self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, kind: str, path_of: Callable[[Any], str]
    ) -> None:
        original = getattr(owner, name)

        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            if self.errors:
                path = path_of(first)
                what = "index" if kind == "write" and ".index" in path else kind
                code = self.errors.get(what)
                if code is not None and os.path.realpath(path).startswith(self._directory):
                    self.calls[what] = self.calls.get(what, 0) + 1
                    raise OSError(code, os.strerror(code))
            return original(first, *args, **kwargs)

        monkeypatch.setattr(owner, name, call)


def path_of(fd: int) -> str:
    """Path of an open file."""
    return str(Path(f"/proc/self/fd/{fd}").readlink()).removesuffix(" (deleted)")
