"""What `raycache mount` is to mount, from the words of a command line: checked by the spec's own models."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import yaml

from raycache.cli.cluster import tier_of
from raycache.errors import SpecError
from raycache.settings import Settings
from raycache.spec import Dataset, Owner, ResolvedDataset, TierSpec, load_documents, resolve
from raycache.spec import options as option_names
from raycache.spec.quantities import parse_quota

DEFAULT_SIZE = "10%"
"""Of the disk that holds the cache directory."""

_NAME_LENGTH = 40
"""Characters of a bucket and prefix that are kept in a name; what tells two of them apart follows."""

_FLAGS = {
    "spec.blockSize": "--block-size",
    "spec.consistency.metadataTTL": "--metadata-ttl",
    "spec.owner.uid": "--uid",
    "spec.owner.gid": "--gid",
    "spec.owner.mode": "--mode",
    "metadata.name": "--name",
}
"""Where a value of the spec is on the command line."""


@dataclass(frozen=True)
class Wishes:
    """The options of a mount that are about a dataset, as they were given; None, or nothing, where they were not.

    Args:
        options: `KEY=VALUE`, as of `options` of the spec.
        name: of the dataset.
        block_size: quantity.
        metadata_ttl: duration.
        immutable: mode of consistency.
        strict: mode of consistency.
        cache_dir: directory of the cache.
        cache_size: quantity or percentage, of the cache.
        tiers: `MEDIUM:PATH:QUOTA`.
        uid: owner shown.
        gid: group shown.
        mode: permission bits shown, octal.
    """

    options: tuple[str, ...] = ()
    name: str | None = None
    block_size: str | None = None
    metadata_ttl: str | None = None
    immutable: bool = False
    strict: bool = False
    cache_dir: str | None = None
    cache_size: str | None = None
    tiers: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None
    mode: str | None = None

    def of_the_spec(self) -> list[str]:
        """Flags that say what a dataset's spec says, if there is one."""
        given = {
            "-o": self.options,
            "--name": self.name,
            "--block-size": self.block_size,
            "--metadata-ttl": self.metadata_ttl,
            "--immutable": self.immutable,
            "--strict": self.strict,
        }
        return [flag for flag, value in given.items() if value]

    def of_the_cache(self) -> list[str]:
        """Flags that say where to cache, where there is no cluster to do it."""
        given = {"--cache-dir": self.cache_dir, "--cache-size": self.cache_size, "--tier": self.tiers}
        return [flag for flag, value in given.items() if value]


def dataset_at(uri: str, wishes: Wishes) -> ResolvedDataset:
    """A dataset of one place in an object store.

    Raises:
        SpecError: something given cannot be accepted; says which flag.
    """
    if wishes.immutable and wishes.strict:
        raise SpecError("immutable or strict?", where="--immutable --strict", hint="give one of them")
    if wishes.metadata_ttl and (wishes.immutable or wishes.strict):
        raise SpecError(
            "there is nothing to live for so long: immutable is for ever, and strict is not at all",
            where="--metadata-ttl",
            hint="give only one of --metadata-ttl, --immutable and --strict",
        )
    mode = "immutable" if wishes.immutable else "strict" if wishes.strict else "ttl"
    consistency = {"mode": mode, "metadataTTL": wishes.metadata_ttl}
    options = dict(_options(wishes.options))
    spec = {
        "mounts": [{"mountPoint": uri, "options": options}],
        "consistency": consistency,
        "blockSize": wishes.block_size,
        "owner": _owner(wishes),
    }
    name = wishes.name or _name_of(uri, options)
    with _told_by_flags(uri):
        dataset = _dataset(name, spec)
        return resolve(dataset, None, {}, tiers_of(wishes))


def as_wished(dataset: ResolvedDataset, wishes: Wishes) -> ResolvedDataset:
    """A dataset that has a spec, with what may be said for one mount of it: owner and cache.

    Raises:
        SpecError: as `dataset_at`; or something was given that the spec says.
    """
    if wishes.of_the_spec():
        raise SpecError(
            "that is for a mount of a URI: here, the dataset's spec says it",
            where=", ".join(wishes.of_the_spec()),
            hint=f"change the spec of dataset {dataset.name}",
        )
    changes: dict[str, Any] = {}
    owner = _owner(wishes)
    if owner is not None:
        changes["owner"] = _checked_owner(owner)
    if wishes.of_the_cache():
        changes["tiers"] = tiers_of(wishes)
    return dataset.model_copy(update=changes)


def tiers_of(wishes: Wishes) -> list[TierSpec]:
    """Where to cache. Raises SpecError."""
    if wishes.tiers:
        if wishes.cache_dir or wishes.cache_size:
            raise SpecError(
                "--tier says both where to cache and how much",
                where="--cache-dir, --cache-size",
                hint="give either of them",
            )
        return [tier_of(text) for text in wishes.tiers]
    settings = Settings.from_environ()
    directory = os.path.abspath(wishes.cache_dir or settings.cache_dir or settings.cache_home)
    try:
        quota = parse_quota(wishes.cache_size or DEFAULT_SIZE)
    except SpecError as error:
        raise SpecError(error.what, where=f"--cache-size {wishes.cache_size}", hint=error.hint) from None
    if quota.auto:
        raise SpecError(
            "auto is for memory only",
            where=f"--cache-size {wishes.cache_size}",
            hint="give a size, or a percentage of the disk",
        )
    return [TierSpec(medium="SSD", path=directory, quota=quota.size, quota_ratio=quota.ratio)]


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, equals, value = word.partition("=")
        if option_names.is_secret(name, value):
            # Not shown: it is one that should not have been typed.
            raise SpecError(
                "credentials do not belong on a command line, where every user of the machine sees them",
                where=f"-o {name}",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name an AWS profile with -o profile=NAME,"
                " or write a spec with a Secret and use -f",
            )
        if not equals and option_names.canonical(name) in option_names.FLAGS:
            value = "true"
        elif not equals or not name:
            raise SpecError(
                "not an option of the object store", where=f"-o {word}", hint="write -o endpoint=https://host"
            )
        yield name, value


def _owner(wishes: Wishes) -> dict[str, Any] | None:
    if wishes.uid is None and wishes.gid is None and wishes.mode is None:
        return None
    return {
        "uid": os.geteuid() if wishes.uid is None else wishes.uid,
        "gid": os.getegid() if wishes.gid is None else wishes.gid,
        "mode": wishes.mode,
    }


def _checked_owner(owner: dict[str, Any]) -> Owner:
    with _told_by_flags(""):
        found = _dataset("owner", {"mounts": [{"mountPoint": "file:///"}], "owner": owner}).spec.owner
    assert found is not None
    return found


def _dataset(name: str, spec: dict[str, Any]) -> Dataset:
    document = {
        "apiVersion": "raycache.io/v1",
        "kind": "Dataset",
        "metadata": {"name": name},
        "spec": spec,
    }
    return cast("Dataset", load_documents(yaml.safe_dump(document))[0].model)


@contextmanager
def _told_by_flags(uri: str) -> Iterator[None]:
    """Say of the spec's errors where they are on the command line, not in a file that nobody wrote."""
    try:
        yield
    except SpecError as error:
        path = re.sub(r"^(<string>:\d+|Dataset [^:]*)(: )?", "", error.where)
        option = re.search(r"options\.([^.]+)$", path)
        flag = next((flag for place, flag in _FLAGS.items() if place in path), path)
        if option is not None:
            flag = f"-o {option[1]}"
        elif path.startswith("spec.mounts[0]"):
            # What stands before an @ may be a password.
            flag = "-o" if not path.endswith("mountPoint") else uri.partition("@")[2] or uri
        raise SpecError(error.what, where=flag or "--cache-size", hint=error.hint) from None


def _name_of(uri: str, options: dict[str, str]) -> str:
    """A name for a place: the same for the same one, so that its cache is found again, and no other's."""
    place = re.sub(r"[^a-z0-9]+", "-", uri.partition("://")[2].lower()).strip("-")
    endpoint = next((v for name, v in options.items() if option_names.canonical(name) == "endpoint"), "")
    mark = hashlib.sha256(f"{uri.rstrip('/')}\0{endpoint}".encode()).hexdigest()[:8]
    return f"{place[:_NAME_LENGTH].strip('-') or 'root'}-{mark}"
