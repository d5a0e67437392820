"""Fluid's documents are accepted as they are."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest

from raycache.errors import SpecError
from raycache.spec import CacheRuntime, DataLoad, Dataset, Document, TierSpec, load_documents, resolve

HEAD = "apiVersion: data.fluid.io/v1alpha1\n"


def only(kind: str, spec: str, metadata: str = "{name: hbase}") -> Document:
    body = textwrap.indent(textwrap.dedent(spec), "  ")
    (document,) = load_documents(f"{HEAD}kind: {kind}\nmetadata: {metadata}\nspec:\n{body}", "f.yaml")
    return document


def refusal(kind: str, spec: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        only(kind, spec)
    assert caught.value.__context__ is None
    return caught.value


def ignored(document: Document) -> list[str]:
    return [warning.removeprefix("f.yaml:").split(":")[1].strip() for warning in document.warnings]


def test_a_dataset() -> None:
    document = only(
        "Dataset",
        """\
        mounts:
          - mountPoint: s3://bucket/hbase/
            name: hbase
            readOnly: false
            shared: true
            options: {alluxio.underfs.s3.endpoint: "https://s3.example.com", own: a}
          - mountPoint: s3://bucket/spark
            name: spark
            path: /data/spark
          - mountPoint: local:///mnt/nfs
            path: relative
            name: nfs
        sharedOptions: {alluxio.underfs.s3.region: eu-central-1, own: b}
        sharedEncryptOptions:
          - name: aws.accessKeyId
            valueFrom: {secretKeyRef: {name: s, key: k}}
        accessModes: [ReadWriteMany, ReadOnlyMany]
        owner: {uid: 1000, gid: 1000, user: u, group: g}
        placement: Exclusive
        tolerations: [{key: a, operator: Exists}]
        nodeAffinity: {required: {nodeSelectorTerms: []}}
        runtimes: [{name: other, namespace: n, category: Accelerate, type: alluxio}]
        dataRestoreLocation: {path: x}
        """,
        metadata="{name: hbase, namespace: ml, labels: {a: b}, generation: 3}",
    )
    model = document.model
    assert isinstance(model, Dataset)
    assert (document.kind, document.name, document.namespace) == ("Dataset", "hbase", "ml")
    assert model.api_version == "raycache.io/v1"
    assert model.metadata.labels == {"a": "b"}
    assert model.spec.mount_paths() == ["/hbase", "/data/spark", "/nfs"]
    assert [mount.mount_point for mount in model.spec.mounts][2] == "file:///mnt/nfs"
    assert model.spec.mounts[0].options["own"] == "a"
    assert model.spec.mounts[1].options == {"alluxio.underfs.s3.region": "eu-central-1", "own": "b"}
    assert [option.name for option in model.spec.mounts[1].encrypt_options] == ["aws.accessKeyId"]
    assert model.spec.runtime == "other"
    assert model.spec.placement == "Exclusive"
    assert model.spec.owner is not None
    assert model.spec.owner.uid == 1000
    assert sorted(ignored(document)) == [
        "metadata.generation",
        "spec.accessModes[0]",
        "spec.dataRestoreLocation",
        "spec.mounts[0].readOnly",
        "spec.mounts[0].shared",
        "spec.mounts[2].mountPoint",
        "spec.mounts[2].path",
        "spec.nodeAffinity",
        "spec.owner.group",
        "spec.owner.user",
        "spec.runtimes[0].category",
        "spec.runtimes[0].namespace",
        "spec.runtimes[0].type",
        "spec.tolerations",
    ]
    resolved = resolve(
        model,
        None,
        {
            "s": load_documents("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {k: KEY}")[
                0
            ].model
        },  # type: ignore[dict-item]
        [TierSpec(medium="MEM", path="/dev/shm", quota=1 << 30)],
    )
    assert [mount.path for mount in resolved.mounts] == ["hbase", "data/spark", "nfs"]
    assert resolved.mounts[0].options == {
        "endpoint": "https://s3.example.com",
        "region": "eu-central-1",
        "own": "a",
    }
    assert resolved.mounts[0].all_options()["access_key_id"] == "KEY"


def test_the_only_mount_appears_under_its_name_unlike_raycaches_own() -> None:
    assert only("Dataset", "mounts: [{mountPoint: 's3://b', name: n}]").model.spec.mount_paths() == ["/n"]
    assert only("Dataset", "mounts: [{mountPoint: 's3://b', name: n, path: /}]").model.spec.mount_paths() == [
        "/"
    ]
    assert only("Dataset", "mounts: [{mountPoint: 's3://b'}]").model.spec.mount_paths() == ["/"]


@pytest.mark.parametrize(
    "kind",
    ["AlluxioRuntime", "JindoRuntime", "JuiceFSRuntime", "ThinRuntime", "GooseFSRuntime", "EFCRuntime"],
)
def test_any_runtime_with_a_tiered_store(kind: str) -> None:
    document = only(
        kind,
        """\
        replicas: 2
        tieredstore:
          levels:
            - {mediumtype: SSD, path: "/mnt/a,/mnt/b", quota: 20Gi, volumeType: hostPath}
            - {mediumtype: MEM, path: /dev/shm, quota: 2Gi, high: "0.95", low: "0.7"}
            - {mediumtype: HDD, path: "/d1, /d2", quotaList: "1Gi,2Gi", quota: 3Gi}
        worker: {nodeSelector: {a: b}}
        fuse: {cleanPolicy: OnDemand}
        """,
    )
    model = document.model
    assert document.kind == "CacheRuntime"
    assert isinstance(model, CacheRuntime)
    assert (model.name, model.spec.replicas) == ("hbase", 2)
    assert sorted(ignored(document)) == [
        "spec.fuse",
        "spec.tieredstore.levels[0].volumeType",
        "spec.tieredstore.levels[2].quota",
        "spec.worker",
    ]
    dataset = only("Dataset", "mounts: [{mountPoint: 's3://b'}]").model
    assert isinstance(dataset, Dataset)
    tiers = resolve(dataset, model, {}, []).tiers
    assert [(tier.medium, tier.path, tier.quota) for tier in tiers] == [
        ("MEM", "/dev/shm", 2 << 30),
        ("SSD", "/mnt/a", 10 << 30),
        ("SSD", "/mnt/b", 10 << 30),
        ("HDD", "/d1", 1 << 30),
        ("HDD", "/d2", 2 << 30),
    ]


def test_a_runtime_without_replicas_or_tiers_says_what_that_means() -> None:
    document = only("ThinRuntime", "profileName: nfs")
    assert document.model.spec.replicas == "all"
    assert document.model.spec.tieredstore is None
    assert len(document.warnings) == 3
    assert load_documents(f"{HEAD}kind: JindoRuntime\nmetadata: {{name: a}}")[0].model.spec.replicas == "all"


def test_a_dataload() -> None:
    document = only(
        "DataLoad",
        """\
        dataset: {name: hbase, namespace: default}
        loadMetadata: true
        target: [{path: /hbase, replicas: 2}, {path: /spark}]
        policy: Once
        options: {a: b}
        """,
    )
    model = document.model
    assert isinstance(model, DataLoad)
    assert model.spec.dataset.name == "hbase"
    assert model.spec.load_metadata is True
    assert [(target.path, target.replicas) for target in model.spec.target] == [("/hbase", 2), ("/spark", 1)]
    assert ignored(document) == ["spec.options"]


def test_a_load_that_would_run_again_runs_once_and_says_so() -> None:
    document = only(
        "DataLoad",
        "dataset: {name: d}\npolicy: Cron\nschedule: '* * * * *'\nrunAfter: {kind: DataLoad, name: x}",
    )
    assert ignored(document) == ["spec.policy", "spec.schedule", "spec.runAfter"]
    assert all("ignored: the load" in warning for warning in document.warnings)


def test_status_and_server_fields_are_named() -> None:
    spec = "{mounts: [{mountPoint: 's3://b'}]}"
    text = f"{HEAD}kind: Dataset\nmetadata: {{name: d, uid: x}}\nspec: {spec}\nstatus: {{phase: Bound}}"
    (document,) = load_documents(text, "f.yaml")
    assert sorted(ignored(document)) == ["metadata.uid", "status"]


@pytest.mark.parametrize(
    ("kind", "spec", "where", "what", "hint"),
    [
        (
            "Dataset",
            "mounts:\n- mountPont: s3://b",
            "6: spec.mounts[0].mountPont",
            "unknown field",
            "'mountPoint'",
        ),
        (
            "Dataset",
            "mounts:\n- mountPoint: s3://b\nowner: {uid: 1, grp: 2}",
            "7: spec.owner.grp",
            "unknown field",
            "'group'",
        ),
        ("Dataset", "mounts: []", "5: spec.mounts", "at least 1", ""),
        ("Dataset", "{}", "4: spec.mounts", "required", ""),
        (
            "Dataset",
            "sharedOptions: {region: 7}\nmounts: [{mountPoint: 's3://b'}]",
            "5: spec.sharedOptions.region",
            "string",
            "",
        ),
        ("Dataset", "mounts: [{mountPoint: 's3://b', name: ../x}]", "5: spec.mounts[0].name", "'..'", ""),
        (
            "Dataset",
            "mounts: [{mountPoint: 'pvc://x'}]",
            "5: spec.mounts[0].mountPoint",
            "pvc://",
            "file:///",
        ),
        (
            "Dataset",
            "mounts: [{mountPoint: 'juicefs:///'}]",
            "5: spec.mounts[0].mountPoint",
            "juicefs://",
            "object store",
        ),
        (
            "Dataset",
            "mounts: [{mountPoint: 's3://b'}]\naccessModes: [ReadManyOnly]",
            "6: spec.accessModes[0]",
            "unknown",
            "",
        ),
        (
            "Dataset",
            "mounts: [{mountPoint: 's3://b'}]\nruntimes: [{name: A_B}]",
            "6: spec.runtimes[0].name",
            "not a valid name",
            "",
        ),
        ("AlluxioRuntime", "replica: 1", "5: spec.replica", "unknown field", "'replicas'"),
        ("AlluxioRuntime", "tieredStore: {}", "5: spec.tieredStore", "unknown field", "'tieredstore'"),
        ("AlluxioRuntime", "master: {replcas: 1}", "5: spec.master.replcas", "unknown field", "'replicas'"),
        ("JindoRuntime", "networkMode: HostNetwork", "5: spec.networkMode", "unknown field", "'networkmode'"),
        ("GooseFSRuntime", "wroker: {}", "5: spec.wroker", "unknown field", "'worker'"),
        ("AlluxioRuntime", "replicas: 0", "5: spec.replicas", "at least 1", ""),
        (
            "AlluxioRuntime",
            "tieredstore:\n  levels:\n  - {mediumtype: MEM, path: /a}",
            "7: spec.tieredstore.levels[0].quota",
            "required",
            "",
        ),
        (
            "AlluxioRuntime",
            "tieredstore:\n  levels:\n  - {mediumtype: MEM, path: /a, quotalist: 1}",
            "7: spec.tieredstore.levels[0].quotalist",
            "unknown",
            "'quotaList'",
        ),
        (
            "AlluxioRuntime",
            "tieredstore:\n  levels:\n  - {mediumtype: MEM, path: /a, quotaList: '1,2'}",
            "7: spec.tieredstore.levels[0].quotaList",
            "2 quotas for 1 paths",
            "",
        ),
        (
            "AlluxioRuntime",
            "tieredstore: {levels: [{mediumtype: SSD, path: '/a,/b', quotaList: '1Gi,2Gi'},\n  {path: /c, quota: 1G}]}",
            "6: spec.tieredstore.levels[1].mediumtype",
            "is required",
            "",
        ),
        ("AlluxioRuntime", "tieredstore: []", "5: spec.tieredstore", "must be a mapping", ""),
        ("DataLoad", "dataset: {nam: x}", "5: spec.dataset.nam", "unknown field", "'name'"),
        ("DataLoad", "target: []", "4: spec.dataset", "required", ""),
    ],
)
def test_misspelt_fields_and_bad_values(kind: str, spec: str, where: str, what: str, hint: str) -> None:
    error = refusal(kind, spec)
    assert error.where == f"f.yaml:{where}"
    assert what in error.what
    assert hint in error.hint


def test_a_field_of_a_runtime_that_is_not_known_is_ignored_with_a_warning() -> None:
    document = only("ShinyRuntime", "replicas: 1\nsparkle: {a: 1}")
    assert ignored(document)[0] == "spec.sparkle"


@pytest.mark.parametrize(
    ("kind", "what", "hint"),
    [
        ("AluxioRuntime", "unknown kind", "'AlluxioRuntime'"),
        ("DataSet", "unknown kind", "'Dataset'"),
        ("Runtime", "unknown kind", ""),
        ("DataBackup", "no counterpart", "remove it"),
        ("CacheRuntime", "no counterpart", "raycache.io/v1"),
    ],
)
def test_kinds_that_cannot_be_mapped(kind: str, what: str, hint: str) -> None:
    error = refusal(kind, "{}")
    assert error.where == "f.yaml:2: kind"
    assert what in error.what
    assert hint in error.hint


@pytest.mark.parametrize(
    "value", [None, 7, "x", [], [[]], {"mounts": 3}, {"mounts": [None]}, {"owner": 3}, {"runtimes": [1]}]
)
@pytest.mark.parametrize("kind", ["Dataset", "AlluxioRuntime", "DataLoad"])
def test_shapes_that_make_no_sense(kind: str, value: Any) -> None:
    document = {
        "apiVersion": "data.fluid.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": "a"},
        "spec": value,
    }
    if kind == "AlluxioRuntime" and value is None:
        return
    with pytest.raises(SpecError):
        load_documents(json.dumps(document))
