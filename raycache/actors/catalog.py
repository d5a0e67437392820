"""What has been applied: documents, what an apply changes, what may be deleted, the datasets they resolve to.

A catalog is a value: each step returns a new one, so that an apply can be validated in full, against the object
stores and the nodes, before anything changes. No Ray, no clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import ValidationError

from raycache.errors import DatasetNotFoundError, NotFoundError, SpecError
from raycache.spec import (
    CacheRuntime,
    DataLoad,
    Dataset,
    Document,
    ResolvedDataset,
    Resource,
    Secret,
    TierSpec,
    resolve,
    runtime_for,
)

Replicas = int | str | Mapping[str, int]
_REPLICAS = "give an integer >= 1, `all`, or both bounds"

Action = Literal["created", "configured", "unchanged"]
Key = tuple[str, str]

MODELS: Mapping[str, type[Resource]] = {
    "Dataset": Dataset,
    "CacheRuntime": CacheRuntime,
    "Secret": Secret,
    "DataLoad": DataLoad,
}
"""Models by kind."""


@dataclass(frozen=True)
class Entry:
    """One applied object.

    Args:
        model: the object.
        created: when it was first applied, seconds since the epoch.
        warnings: what in its file has no effect.
        generation: of a Dataset: grows whenever what it resolves to changes.
        digest: of a Dataset: hash of what it resolved to at that generation.
    """

    model: Resource
    created: float
    warnings: tuple[str, ...] = ()
    generation: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Change:
    """What an apply did to one object."""

    kind: str
    name: str
    action: Action
    warnings: tuple[str, ...]

    def to_wire(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "kind": self.kind,
            "name": self.name,
            "action": self.action,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Catalog:
    """Everything that is applied, but for loads, which are operations.

    Args:
        entries: by kind and name.
        default_tiers: for datasets whose runtime has none.
    """

    entries: Mapping[Key, Entry] = field(default_factory=dict)
    default_tiers: tuple[TierSpec, ...] = ()

    def applied(self, documents: Sequence[Document], now: float) -> tuple[Catalog, list[Change]]:
        """The catalog with documents taken in, and what each of them changed.

        Raises:
            SpecError: some dataset, of these or of those applied before, could not be resolved any more.
        """
        entries = dict(self.entries)
        changes = []
        for document in documents:
            key = (document.kind, document.name)
            former = entries.get(key)
            action: Action = "created"
            if former is not None:
                action = "unchanged" if former.model == document.model else "configured"
            changes.append(Change(*key, action, tuple(document.warnings)))
            entries[key] = (
                replace(former, model=document.model, warnings=tuple(document.warnings))
                if former is not None
                else Entry(document.model, now, tuple(document.warnings))
            )
        return replace(self, entries=entries)._numbered(), changes

    def with_default_tiers(self, tiers: Sequence[TierSpec]) -> Catalog:
        """The catalog with other default tiers. Raises SpecError as `applied`."""
        return replace(self, default_tiers=tuple(tiers))._numbered()

    def scaled(self, name: str, replicas: Replicas, now: float) -> tuple[Catalog, Change]:
        """The catalog with another number of nodes for a dataset, and the change of its CacheRuntime.

        Args:
            name: of the dataset.
            replicas: a number, `all`, or `{min, max}`.
            now: seconds since the epoch.

        Raises:
            DatasetNotFoundError: there is no such dataset.
            SpecError: no such number; or there is no CacheRuntime of it alone, whose number it would be.
        """
        dataset = self.entry("Dataset", name).model
        assert isinstance(dataset, Dataset)
        runtimes = {n: e.model for n, e in self.of_kind("CacheRuntime").items()}
        runtime = runtime_for(dataset, runtimes)  # type: ignore[arg-type]
        if runtime is None:
            raise SpecError(
                "the dataset has no CacheRuntime", where=name, hint="apply one, with `spec.replicas`"
            )
        others = [user for user in self._users("CacheRuntime", runtime.name) if user != name]
        if others:
            raise SpecError(
                f"its CacheRuntime {runtime.name} is used by {', '.join(others)}, too",
                where=name,
                hint="change `spec.replicas` in its file and apply that",
            )
        try:
            spec = type(runtime.spec).model_validate({**runtime.wire()["spec"], "replicas": replicas})
        except ValidationError as error:
            raise SpecError("not a number of nodes", where=str(replicas), hint=_REPLICAS) from error
        model = runtime.model_copy(update={"spec": spec})
        catalog, (change,) = self.applied(
            [Document("CacheRuntime", runtime.name, model.metadata.namespace, model, "", 0, [])], now
        )
        return catalog, change

    def without(self, kind: str, name: str) -> Catalog:
        """The catalog after an object was deleted.

        Raises:
            NotFoundError: there is none.
            SpecError: a dataset needs it.
        """
        entry = self.entry(kind, name)
        if not isinstance(entry.model, Dataset):
            users = self._users(kind, name)
            if users:
                raise SpecError(
                    f"it is used by dataset {', '.join(users)}",
                    where=f"{kind} {name}",
                    hint="delete the dataset first",
                )
        return replace(self, entries={key: e for key, e in self.entries.items() if key != (kind, name)})

    def entry(self, kind: str, name: str) -> Entry:
        """An applied object. Raises NotFoundError (DatasetNotFoundError for a dataset)."""
        entry = self.entries.get((kind, name))
        if entry is not None:
            return entry
        known = ", ".join(sorted(n for k, n in self.entries if k == kind)) or "none"
        if kind == "Dataset":
            raise DatasetNotFoundError(
                "no such dataset",
                where=name,
                hint=f"apply its spec with `raycache apply -f`; applied are: {known}",
            )
        raise NotFoundError(f"no such {kind}", where=name, hint=f"applied are: {known}")

    def of_kind(self, kind: str) -> dict[str, Entry]:
        """All objects of a kind, by name, sorted."""
        return {name: self.entries[kind, name] for k, name in sorted(self.entries) if k == kind}

    def datasets(self) -> dict[str, ResolvedDataset]:
        """Every dataset, resolved, with its generation."""
        return {
            name: self._resolved(entry.model).model_copy(update={"generation": entry.generation})
            for name, entry in self.of_kind("Dataset").items()
            if isinstance(entry.model, Dataset)
        }

    def to_wire(self) -> dict[str, Any]:
        """Plain data WITH secrets, for the GCS."""
        return {
            "default_tiers": [tier.model_dump(mode="json") for tier in self.default_tiers],
            "entries": [
                {
                    "kind": kind,
                    "model": entry.model.wire(),
                    "created": entry.created,
                    "warnings": list(entry.warnings),
                    "generation": entry.generation,
                    "digest": entry.digest,
                }
                for (kind, _), entry in self.entries.items()
            ],
        }

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Catalog:
        """The catalog that `to_wire` described."""
        entries = {}
        for item in data["entries"]:
            model = MODELS[item["kind"]].from_wire(item["model"])
            entries[item["kind"], model.name] = Entry(
                model, item["created"], tuple(item["warnings"]), item["generation"], item["digest"]
            )
        return cls(entries, tuple(TierSpec.model_validate(tier) for tier in data["default_tiers"]))

    def _resolved(self, dataset: Dataset) -> ResolvedDataset:
        models = {key: entry.model for key, entry in self.entries.items()}
        runtimes = {n: m for (_, n), m in models.items() if isinstance(m, CacheRuntime)}
        secrets = {n: m for (_, n), m in models.items() if isinstance(m, Secret)}
        return resolve(dataset, runtime_for(dataset, runtimes), secrets, self.default_tiers)

    def _numbered(self) -> Catalog:
        """With the generation of each dataset raised whose resolved form has changed."""
        entries = dict(self.entries)
        for key, entry in self.entries.items():
            if isinstance(entry.model, Dataset):
                digest = _digest(self._resolved(entry.model))
                if digest != entry.digest:
                    entries[key] = replace(entry, generation=entry.generation + 1, digest=digest)
        return replace(self, entries=entries)

    def _users(self, kind: str, name: str) -> list[str]:
        """Names of the datasets that a CacheRuntime or Secret is used by."""
        runtimes = {n: e.model for n, e in self.of_kind("CacheRuntime").items()}
        users = []
        for dataset, entry in self.of_kind("Dataset").items():
            model = entry.model
            assert isinstance(model, Dataset)
            if kind == "CacheRuntime":
                runtime = runtime_for(model, runtimes)  # type: ignore[arg-type]
                used = runtime is not None and runtime.name == name
            else:
                used = any(
                    option.value_from.secret_key_ref.name == name
                    for mount in model.spec.mounts
                    for option in mount.encrypt_options
                )
            if used:
                users.append(dataset)
        return users


def _digest(dataset: ResolvedDataset) -> str:
    data = json.dumps(dataset.wire(), sort_keys=True).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def document_to_wire(document: Document) -> dict[str, Any]:
    """A document as plain data WITH secrets, for the call to the coordinator."""
    return {
        "kind": document.kind,
        "model": document.model.wire(),
        "source": document.source,
        "line": document.line,
        "warnings": list(document.warnings),
    }


def document_from_wire(data: Mapping[str, Any]) -> Document:
    """The document that `document_to_wire` described."""
    model = MODELS[data["kind"]].from_wire(data["model"])
    return Document(
        data["kind"],
        model.name,
        model.metadata.namespace,
        model,
        data["source"],
        data["line"],
        list(data["warnings"]),
    )
