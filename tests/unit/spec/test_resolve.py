"""A dataset with everything it refers to filled in."""

from __future__ import annotations

import json

import pytest

from raycache.errors import SpecError
from raycache.spec import (
    CacheRuntime,
    Dataset,
    ReplicaRange,
    ResolvedDataset,
    Secret,
    TierSpec,
    load_documents,
    resolve,
    runtime_for,
)

MEM = TierSpec(medium="MEM", path="/dev/shm", quota=1 << 30)


def dataset(mounts: str = "[{mountPoint: 's3://b'}]", rest: str = "") -> Dataset:
    text = (
        f"apiVersion: raycache.io/v1\nkind: Dataset\nmetadata: {{name: d}}\nspec: {{mounts: {mounts}{rest}}}"
    )
    model = load_documents(text)[0].model
    assert isinstance(model, Dataset)
    return model


def runtime(spec: str, name: str = "d") -> CacheRuntime:
    text = f"apiVersion: raycache.io/v1\nkind: CacheRuntime\nmetadata: {{name: {name}}}\nspec: {spec}"
    model = load_documents(text)[0].model
    assert isinstance(model, CacheRuntime)
    return model


def secret(body: str = "{id: ID, key: KEY}") -> dict[str, Secret]:
    model = load_documents(f"apiVersion: v1\nkind: Secret\nmetadata: {{name: s3}}\nstringData: {body}")[
        0
    ].model
    assert isinstance(model, Secret)
    return {"s3": model}


def with_secret(name: str = "s3", key: str = "key", options: str = "{}") -> Dataset:
    ref = f"{{name: secretAccessKey, valueFrom: {{secretKeyRef: {{name: {name}, key: {key}}}}}}}"
    return dataset(f"[{{mountPoint: 's3://b', options: {options}, encryptOptions: [{ref}]}}]")


def options_of(options: str, uri: str = "s3://b") -> dict[str, str]:
    resolved = resolve(dataset(f"[{{mountPoint: '{uri}', options: {options}}}]"), None, {}, [MEM])
    return resolved.mounts[0].all_options()


def test_everything_in_one_value() -> None:
    model = dataset(
        "[{mountPoint: 'S3://b/x//', name: x}, {mountPoint: 'file:///data/', path: a/b}]",
        ", owner: {uid: 1, gid: 2, mode: '0440'}, blockSize: 1Mi, consistency: {mode: immutable}, mountPath: /mnt/d",
    )
    held_by = runtime(
        "{replicas: {min: 2}, nodeSelector: {zone: a}, evictionPolicy: lru, tieredstore: {levels: ["
        "{mediumtype: HDD, path: /hdd, quota: 20%, high: 0.9, low: 0.5},"
        " {mediumtype: MEM, path: /dev/shm, quota: 1Gi}]}}"
    )
    resolved = resolve(model, held_by, {}, [])
    assert [(mount.path, mount.uri) for mount in resolved.mounts] == [
        ("x", "s3://b/x"),
        ("a/b", "file:///data"),
    ]
    assert [(t.medium, t.quota, t.quota_ratio, t.high, t.low, t.huge_pages) for t in resolved.tiers] == [
        ("MEM", 1 << 30, None, 0.95, 0.7, True),
        ("HDD", None, 0.2, 0.9, 0.5, False),
    ]
    assert (resolved.block_size, resolved.consistency_mode, resolved.metadata_ttl) == (
        1 << 20,
        "immutable",
        30.0,
    )
    assert resolved.owner is not None
    assert resolved.owner.mode == 0o440
    assert (resolved.eviction_policy, resolved.node_selector, resolved.mount_path) == (
        "lru",
        {"zone": "a"},
        "/mnt/d",
    )
    assert resolved.replicas == ReplicaRange(min=2, max=None)
    wired = json.loads(json.dumps(resolved.wire()))
    assert ResolvedDataset.from_wire(wired) == resolved
    assert json.dumps(resolved.public())


@pytest.mark.parametrize(
    ("spec", "bounds"),
    [
        ("{}", (1, None)),
        ("{replicas: 3}", (3, 3)),
        ("{replicas: {min: 2, max: 5}}", (2, 5)),
        ("{replicas: {max: 2}}", (1, 2)),
    ],
)
def test_bounds_of_replicas(spec: str, bounds: tuple[int, int | None]) -> None:
    resolved = resolve(dataset(), runtime(spec), {}, [MEM])
    assert resolved.replica_bounds == bounds
    assert ResolvedDataset.from_wire(resolved.wire()).replica_bounds == bounds


def test_the_clusters_tiers_are_the_default() -> None:
    assert resolve(dataset(), None, {}, [MEM]).tiers == [MEM]
    assert resolve(dataset(), runtime("{replicas: 1}"), {}, [MEM]).tiers == [MEM]
    with pytest.raises(SpecError, match="no tier"):
        resolve(dataset(), None, {}, [])


def test_a_quota_holds_at_least_a_block() -> None:
    small = runtime("{tieredstore: {levels: [{mediumtype: SSD, path: '/a,/b', quota: 6Mi}]}}")
    with pytest.raises(SpecError, match=r"CacheRuntime d: .*/a \(3Mi\) is smaller than one block \(4Mi\)"):
        resolve(dataset(), small, {}, [])
    assert resolve(dataset(rest=", blockSize: 1Mi"), small, {}, []).tiers[0].quota == 3 << 20


def test_auto_is_half_of_the_memory_at_most_and_for_memory_only() -> None:
    def of(medium: str, path: str = "/a") -> CacheRuntime:
        return runtime(
            f"{{tieredstore: {{levels: [{{mediumtype: {medium}, path: '{path}', quota: auto}}]}}}}"
        )

    (tier,) = resolve(dataset(), of("MEM"), {}, []).tiers
    assert (tier.quota, tier.quota_ratio, tier.auto) == (None, 0.5, True)
    with pytest.raises(SpecError, match="auto is for MEM only"):
        of("SSD")
    with pytest.raises(SpecError, match="auto is of one device"):
        of("MEM", "/a,/b")


def test_secrets_are_looked_up() -> None:
    resolved = resolve(with_secret(), None, secret(), [MEM])
    assert resolved.mounts[0].options == {}
    assert resolved.mounts[0].all_options() == {"secret_access_key": "KEY"}


def test_a_secret_wins_over_an_option_of_the_same_meaning() -> None:
    resolved = resolve(with_secret(options="{aws.secretKey: other}"), None, secret(), [MEM])
    assert resolved.mounts[0].all_options() == {"secret_access_key": "KEY"}


def test_a_missing_secret_or_key_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        resolve(with_secret(name="s4"), None, secret(), [MEM])
    assert caught.value.where == "Dataset d: spec.mounts[0].encryptOptions[0]"
    assert (caught.value.what, caught.value.hint) == ("no Secret 's4'", "known here: s3")
    with pytest.raises(SpecError, match=r"Secret 's3' has no key 'keys' \(did you mean 'key'\?\)"):
        resolve(with_secret(key="keys"), None, secret(), [MEM])
    with pytest.raises(SpecError, match="apply it first"):
        resolve(with_secret(), None, {}, [MEM])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "{fs.oss.endpoint: oss-cn-hangzhou.aliyuncs.com}",
            {"endpoint": "https://oss-cn-hangzhou.aliyuncs.com"},
        ),
        ("{endpoint: 'http://minio:9000/'}", {"endpoint": "http://minio:9000", "allow_http": "true"}),
        (
            "{endpoint: 'minio:9000', allowHttp: true}",
            {"endpoint": "http://minio:9000", "allow_http": "true"},
        ),
        (
            "{fs.s3a.endpoint: 'h:1', fs.s3a.connection.ssl.enabled: 'false'}",
            {"endpoint": "http://h:1", "allow_http": "true"},
        ),
        ("{alluxio.underfs.s3.disable.dns.buckets: 'true'}", {"path_style": "true"}),
        ("{pathStyle: no, anonymous: True}", {"path_style": "false", "anonymous": "true"}),
        ("{region: a, alluxio.underfs.s3.endpoint.region: a}", {"region": "a"}),
        ("{requesterPays: 'x'}", {"requesterPays": "x"}),
    ],
)
def test_options_become_canonical(options: str, expected: dict[str, str]) -> None:
    assert options_of(options) == expected


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("{region: a, aws-region: b}", "'region' and 'aws-region' mean the same and differ"),
        ("{pathStyle: perhaps}", "path_style must be true or false"),
        ("{endpoint: 'ftp://x'}", "endpoint must be"),
        ("{endpoint: ''}", "endpoint must be"),
    ],
)
def test_options_that_make_no_sense(options: str, what: str) -> None:
    with pytest.raises(SpecError, match=what) as caught:
        options_of(options)
    assert caught.value.where.startswith("Dataset d: spec.mounts[0]")


def test_which_runtime_holds_a_dataset() -> None:
    mine, other = runtime("{}", "d"), runtime("{}", "fast")
    assert runtime_for(dataset(), {"d": mine, "fast": other}) is mine
    assert runtime_for(dataset(), {"fast": other}) is None
    assert runtime_for(dataset(rest=", runtime: fast"), {"d": mine, "fast": other}) is other
    with pytest.raises(SpecError, match=r"no CacheRuntime 'fats' \(did you mean 'fast'\?\)"):
        runtime_for(dataset(rest=", runtime: fats"), {"fast": other})
