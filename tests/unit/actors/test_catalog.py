"""The catalog: what an apply changes, what may be deleted, and that it survives a restart."""

from __future__ import annotations

import json

import pytest

from raycache.actors.catalog import Catalog, document_from_wire, document_to_wire
from raycache.errors import DatasetNotFoundError, NotFoundError, SpecError
from raycache.spec import TierSpec, load_documents

TIERS = (TierSpec(medium="SSD", path="/var/cache", quota=1 << 30),)
SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {id: AKIDEXAMPLE, key: hunter2-hunter2}
"""
DATASET = """
apiVersion: raycache.io/v1
kind: Dataset
metadata: {name: ds}
spec:
  mounts:
    - mountPoint: s3://bucket
      encryptOptions:
        - {name: accessKeyId, valueFrom: {secretKeyRef: {name: keys, key: id}}}
        - {name: secretAccessKey, valueFrom: {secretKeyRef: {name: keys, key: key}}}
"""
RUNTIME = """
apiVersion: raycache.io/v1
kind: CacheRuntime
metadata: {name: ds}
spec:
  tieredstore: {levels: [{mediumtype: MEM, path: /dev/shm, quota: 1Gi}]}
"""
ALL = "---".join((SECRET, DATASET, RUNTIME))


def applied(text: str, catalog: Catalog | None = None) -> tuple[Catalog, list[str]]:
    before = catalog if catalog is not None else Catalog(default_tiers=TIERS)
    after, changes = before.applied(load_documents(text), now=1000.0)
    return after, [change.action for change in changes]


def test_actions_are_created_configured_and_unchanged() -> None:
    catalog, actions = applied(ALL)
    assert actions == ["created"] * 3
    catalog, actions = applied(ALL, catalog)
    assert actions == ["unchanged"] * 3
    catalog, actions = applied(ALL.replace("1Gi", "2Gi"), catalog)
    assert actions == ["unchanged", "unchanged", "configured"]


def test_generation_counts_changes_of_what_a_dataset_resolves_to() -> None:
    catalog, _ = applied(SECRET + "---" + DATASET)
    assert catalog.datasets()["ds"].generation == 1
    assert catalog.datasets()["ds"].tiers == list(TIERS)
    catalog, _ = applied(ALL, catalog)  # a runtime of its name, and no default tiers any more
    assert catalog.datasets()["ds"].generation == 2
    assert catalog.datasets()["ds"].tiers[0].medium == "MEM"
    catalog, _ = applied(SECRET.replace("hunter2-hunter2", "rotated"), catalog)
    assert catalog.datasets()["ds"].generation == 3
    catalog, _ = applied(ALL.replace("hunter2-hunter2", "rotated"), catalog)
    assert catalog.datasets()["ds"].generation == 3
    assert catalog.with_default_tiers([]).datasets()["ds"].generation == 3


def test_an_apply_that_cannot_be_resolved_changes_nothing() -> None:
    catalog, _ = applied(ALL)
    with pytest.raises(SpecError, match="has no key"):
        applied(SECRET.replace("key:", "other:"), catalog)
    with pytest.raises(SpecError, match="no Secret"):
        applied(DATASET)
    assert catalog.datasets()["ds"].generation == 1


def test_what_a_dataset_uses_is_not_deleted() -> None:
    catalog, _ = applied(ALL)
    for kind, name in (("Secret", "keys"), ("CacheRuntime", "ds")):
        with pytest.raises(SpecError, match="is used by dataset ds"):
            catalog.without(kind, name)
    without = catalog.without("Dataset", "ds").without("Secret", "keys").without("CacheRuntime", "ds")
    assert not without.entries
    assert catalog.datasets(), "a catalog is a value"


def test_what_is_not_there_is_said_so() -> None:
    catalog, _ = applied(ALL)
    with pytest.raises(DatasetNotFoundError, match="applied are: ds"):
        catalog.without("Dataset", "sd")
    with pytest.raises(NotFoundError, match="no such Secret"):
        catalog.without("Secret", "ds")


def test_catalog_survives_the_store_and_shows_no_secret() -> None:
    catalog, _ = applied(ALL)
    again = Catalog.from_wire(json.loads(json.dumps(catalog.to_wire())))
    assert again == catalog
    assert again.datasets() == catalog.datasets()
    assert "hunter2" not in repr(catalog)
    assert "hunter2" not in repr(catalog.datasets())


def test_documents_cross_to_the_coordinator() -> None:
    for document in load_documents(ALL):
        assert document_from_wire(json.loads(json.dumps(document_to_wire(document)))) == document


def test_a_dataset_is_scaled_and_the_rest_of_its_runtime_stays() -> None:
    catalog, _ = applied(ALL)
    scaled, change = catalog.scaled("ds", 3, now=2000.0)
    assert (change.kind, change.name, change.action) == ("CacheRuntime", "ds", "configured")
    before, after = catalog.datasets()["ds"], scaled.datasets()["ds"]
    assert after.replica_bounds == (3, 3)
    assert after.tiers == before.tiers
    assert after.generation == before.generation + 1
    assert scaled.scaled("ds", 3, now=2000.0)[1].action == "unchanged"
    assert scaled.scaled("ds", {"min": 1, "max": 4}, now=2000.0)[0].datasets()["ds"].replica_bounds == (1, 4)
    assert scaled.scaled("ds", "all", now=2000.0)[0].datasets()["ds"].replica_bounds == (1, None)
    assert applied(ALL, scaled)[1] == ["unchanged", "unchanged", "configured"], "the file says what holds"


def test_what_cannot_be_scaled_is_said() -> None:
    catalog, _ = applied(ALL)
    for nonsense in (0, -1, "some", {"min": 3, "max": 1}):
        with pytest.raises(SpecError):
            catalog.scaled("ds", nonsense, now=2000.0)
    with pytest.raises(DatasetNotFoundError):
        catalog.scaled("other", 1, now=2000.0)
    alone, _ = applied(SECRET + "---" + DATASET)
    with pytest.raises(SpecError, match="no CacheRuntime"):
        alone.scaled("ds", 1, now=2000.0)
