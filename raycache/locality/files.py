"""What URLs mean: the files at and below `raycache://dataset/path`, a directory or a pattern, with their versions."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from fsspec.utils import glob_translate

from raycache.blocks import ObjectVersion, clean_path
from raycache.client import Client
from raycache.errors import NotFoundError, ObjectNotFoundError, PathError, SpecError

Urls = str | Sequence[str]

SCHEMES = ("fsspec+raycache://", "raycache://")

LISTED = 8
"""Files named one by one in a directory from which on its listing is asked for instead of each of them."""

_MAGIC = re.compile(r"[*?\[]")


def paths_of(urls: Urls) -> list[tuple[str, str]]:
    """Dataset, and path inside it, of each URL or `dataset/path`.

    Raises:
        SpecError: a URL of something else, or none at all.
        PathError: it climbs with `..`.
    """
    given = [urls] if isinstance(urls, str) else [str(url) for url in urls]
    if not given:
        raise SpecError("no paths are given", hint="write raycache://dataset/path")
    split = []
    for url in given:
        path = url
        for scheme in SCHEMES:
            path = path.removeprefix(scheme)
        dataset, _, inner = clean_path(path).partition("/")
        if "://" in path or not dataset:
            raise SpecError("not a path of raycache", where=url, hint="write raycache://dataset/path")
        split.append((dataset, inner))
    return split


def files_of(client: Client, urls: Urls, hidden: bool = True) -> list[ObjectVersion]:
    """The files that URLs mean, in their order; those of a directory sorted by path.

    Args:
        client: lists them.
        urls: URLs, or `dataset/path`, of files and directories, or patterns (`*`, `?`, `[…]`, `**`) of them.
        hidden: whether what begins with `.` or `_` in a directory counts; Ray Data and pyarrow leave it out.

    Raises:
        SpecError, PathError: not URLs of raycache.
        DatasetNotFoundError, ObjectNotFoundError: there is nothing of that name.
        AccessDeniedError, UnderStoreError: it cannot be listed.
    """
    split = paths_of(urls)
    _list_parents(client, split)
    found: list[ObjectVersion] = []
    for dataset, path in split:
        if _MAGIC.search(path) and not _exists(client, dataset, path):
            matches = sorted(_matching(client, dataset, path))
            if not matches:
                raise ObjectNotFoundError("nothing matches", where=f"{dataset}/{path}")
        else:
            matches = [path]
        for match in matches:
            found += _at(client, dataset, match, hidden)
    return found


def _list_parents(client: Client, split: Sequence[tuple[str, str]]) -> None:
    """Have the directories listed in which many files are named: one question instead of one for each file."""
    named = Counter((dataset, posixpath.dirname(path)) for dataset, path in split if path)
    for (dataset, directory), count in named.items():
        if count >= LISTED:
            try:
                client.list(dataset, directory)
            except NotFoundError:
                pass  # whoever asks for the file hears it


def _at(client: Client, dataset: str, path: str, hidden: bool) -> list[ObjectVersion]:
    infos = sorted(client.walk(dataset, path), key=lambda info: info.path)
    start = len(path) + 1 if path else 0
    return [
        info.version
        for info in infos
        if info.version is not None and (hidden or info.path == path or info.path[start] not in "._")
    ]


def _exists(client: Client, dataset: str, path: str) -> bool:
    try:
        client.info(dataset, path)
    except (ObjectNotFoundError, PathError):
        return False
    return True


def _matching(client: Client, dataset: str, pattern: str) -> Iterator[str]:
    """Files and directories that match; what lies below a match is not looked at."""
    fixed = pattern[: _MAGIC.search(pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]  # it has magic
    matches = re.compile(glob_translate(pattern)).match
    depth = None if "**" in pattern else pattern.count("/")
    todo = [fixed]
    while todo:
        for info in client.list(dataset, todo.pop()):
            if matches(info.path):
                yield info.path
            elif info.kind == "directory" and (depth is None or info.path.count("/") < depth):
                todo.append(info.path)
