"""Spec files: what is accepted, and what is said about the rest."""

from __future__ import annotations

import contextlib
import io
import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.errors import NotFoundError, SpecError
from raycache.spec import CacheRuntime, DataLoad, Dataset, Secret, load_documents, load_files
from raycache.spec.yamltree import parse_trees

EXAMPLES = Path(__file__).parents[3] / "examples" / "specs"

HEAD = "apiVersion: raycache.io/v1\n"


def only(text: str):  # type: ignore[no-untyped-def]
    (document,) = load_documents(textwrap.dedent(text), "f.yaml")
    return document


def refusal(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load_documents(textwrap.dedent(text), "f.yaml")
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    return caught.value


def dataset(spec: str) -> str:
    body = textwrap.indent(textwrap.dedent(spec), "  ")
    return f"{HEAD}kind: Dataset\nmetadata: {{name: d}}\nspec:\n{body}"


def runtime(spec: str) -> str:
    body = textwrap.indent(textwrap.dedent(spec), "  ")
    return f"{HEAD}kind: CacheRuntime\nmetadata: {{name: r}}\nspec:\n{body}"


def test_the_examples_load() -> None:
    documents = load_files([EXAMPLES])
    assert [(d.kind, d.name) for d in documents] == [
        ("Secret", "oss-access"),
        ("Dataset", "imagenet"),
        ("CacheRuntime", "imagenet"),
        ("DataLoad", "imagenet-warm-up"),
        ("Secret", "minio-access"),
        ("Dataset", "checkpoints"),
        ("Dataset", "training"),
        ("CacheRuntime", "training"),
        ("DataLoad", "training-warm-up"),
    ]
    warnings = [warning for d in documents for warning in d.warnings]
    assert [w.partition(": ")[2] for w in warnings] == ["spec.fuse: has no meaning here and is ignored"]


def test_a_dataset_with_everything() -> None:
    document = only(
        dataset(
            """\
            runtime: fast
            mounts:
              - mountPoint: s3://bucket/a
                path: /a/
                options: {region: eu-central-1, pathStyle: yes}
              - mountPoint: S3://bucket/b
                name: b
            accessModes: [ReadOnlyMany]
            consistency: {mode: strict, metadataTTL: 1h30m}
            owner: {uid: 1000, gid: 100, mode: "0440"}
            blockSize: 1Mi
            mountPath: /mnt/d/
            """
        )
    )
    spec = document.model.spec
    assert isinstance(document.model, Dataset)
    assert (document.kind, document.name, document.namespace, document.where) == (
        "Dataset",
        "d",
        "default",
        "f.yaml:1",
    )
    assert spec.mount_paths() == ["/a", "/b"]
    assert spec.mounts[0].options == {"region": "eu-central-1", "pathStyle": "true"}
    assert (spec.consistency.mode, spec.consistency.metadata_ttl) == ("strict", 5400.0)
    assert (spec.owner.uid, spec.owner.gid, spec.owner.mode) == (1000, 100, 0o440)
    assert (spec.block_size, spec.mount_path, spec.runtime) == (1 << 20, "/mnt/d", "fast")


def test_defaults() -> None:
    spec = only(dataset("mounts: [{mountPoint: 's3://bucket'}]")).model.spec
    assert spec.mount_paths() == ["/"]
    assert (spec.block_size, spec.runtime, spec.owner, spec.access_modes) == (
        4 << 20,
        None,
        None,
        ["ReadOnlyMany"],
    )
    assert (spec.consistency.mode, spec.consistency.metadata_ttl) == ("ttl", 30.0)
    bare = only(f"{HEAD}kind: CacheRuntime\nmetadata: {{name: r}}").model
    assert isinstance(bare, CacheRuntime)
    assert (bare.spec.replicas, bare.spec.tieredstore, bare.spec.eviction_policy) == ("all", None, "sieve")
    load = only(f"{HEAD}kind: DataLoad\nmetadata: {{name: l}}\nspec: {{dataset: {{name: d}}}}").model
    assert isinstance(load, DataLoad)
    assert [(t.path, t.replicas) for t in load.spec.target] == [("/", 1)]


def test_null_is_not_set_as_in_kubernetes() -> None:
    spec = only(
        dataset("mounts: [{mountPoint: 's3://bucket', options: }]\nconsistency:\nowner: null")
    ).model.spec
    assert (spec.mounts[0].options, spec.owner, spec.consistency.mode) == ({}, None, "ttl")


@pytest.mark.parametrize(
    ("text", "where", "what", "hint"),
    [
        (
            dataset("mounts:\n- mountPont: s3://b"),
            "6: spec.mounts[0].mountPont",
            "unknown field",
            "'mountPoint'",
        ),
        (
            dataset("mounts:\n- mount_point: s3://b"),
            "6: spec.mounts[0].mount_point",
            "unknown field",
            "'mountPoint'",
        ),
        (dataset("mount:\n- mountPoint: s3://b"), "5: spec.mount", "unknown field 'mount'", "'mounts'"),
        (dataset("zebra: 1"), "5: spec.zebra", "unknown field", "known here: accessModes, blockSize"),
        (dataset("mounts: []"), "5: spec.mounts", "at least 1 item", ""),
        (dataset("mounts: s3://b"), "5: spec.mounts", "must be a list", "- "),
        (dataset("mounts: [s3://b]"), "5: spec.mounts[0]", "must be a mapping", ""),
        (dataset("mounts: [{name: x}]"), "5: spec.mounts[0].mountPoint", "is required", ""),
        (dataset("mounts: [{mountPoint: /data}]"), "5: spec.mounts[0].mountPoint", "URI", "file:///data"),
        (
            dataset("mounts: [{mountPoint: 's3:///x'}]"),
            "5: spec.mounts[0].mountPoint",
            "bucket",
            "s3://bucket",
        ),
        (dataset("mounts: [{mountPoint: 's3://b/../c'}]"), "5: spec.mounts[0].mountPoint", "'..'", ""),
        (
            dataset("mounts: [{mountPoint: 's3://b', readOnly: false}]"),
            "5: spec.mounts[0].readOnly",
            "read-only",
            "",
        ),
        (dataset("mounts: [{mountPoint: 's3://b', path: ../x}]"), "5: spec.mounts[0].path", "'..'", ""),
        (
            dataset("mounts:\n- mountPoint: s3://b\n  options:\n    accessKeyId: 0123"),
            "8: spec.mounts[0].options.accessKeyId",
            "must be a string",
            "quotes",
        ),
        (
            dataset("mounts: [{mountPoint: 's3://b', options: {profile: on}}]"),
            "5: spec.mounts[0].options.profile",
            "must be a string",
            "quotes",
        ),
        (
            dataset("mounts:\n- mountPoint: s3://b\n  options:\n    encryptOptions: []"),
            "8: spec.mounts[0].options.encryptOptions",
            "must be a string",
            "one level up",
        ),
        (
            dataset("mounts:\n- mountPoint: s3://a\n  name: x\n- mountPoint: s3://b\n  path: /x"),
            "8: spec.mounts[1]",
            "appears at /x, where mounts[0] is already",
            "own path",
        ),
        (
            dataset("mounts: [{mountPoint: 's3://a'}, {mountPoint: 's3://b'}]"),
            "5: spec.mounts[0]",
            "path or a name",
            "",
        ),
        (
            dataset("mounts: [{mountPoint: 's3://b'}]\nblockSize: 3Mi"),
            "6: spec.blockSize",
            "power of two",
            "",
        ),
        (
            dataset("mounts: [{mountPoint: 's3://b'}]\nblockSize: 128Mi"),
            "6: spec.blockSize",
            "power of two",
            "",
        ),
        (
            dataset("mounts: [{mountPoint: 's3://b'}]\nblockSize: 4MB"),
            "6: spec.blockSize",
            "not a size",
            "4Mi",
        ),
        (
            dataset("mounts: [{mountPoint: 's3://b'}]\nconsistency:\n  mode: immutble"),
            "7: spec.consistency.mode",
            "must be 'ttl', 'strict' or 'immutable'",
            "immutable",
        ),
        (
            dataset("mounts: [{mountPoint: 's3://b'}]\nconsistency: {metadataTTL: 30}"),
            "6: spec.consistency.metadataTTL",
            "not a duration",
            "30s",
        ),
        (
            dataset("mounts: [{mountPoint: 's3://b'}]\nowner: {uid: 1, gid: -1}"),
            "6: spec.owner.gid",
            "at least 0",
            "",
        ),
        (
            dataset("mounts: [{mountPoint: 's3://b'}]\nowner: {uid: 1, gid: 1, mode: 0444}"),
            "6: spec.owner.mode",
            "mode",
            "quotes",
        ),
        (
            dataset("mounts: [{mountPoint: 's3://b'}]\naccessModes: [ReadWriteMany]"),
            "6: spec.accessModes[0]",
            "ReadOnlyMany",
            "",
        ),
        (runtime("replicas: 0"), "5: spec.replicas", "at least 1", ""),
        (runtime("replicas: -1"), "5: spec.replicas", "at least 1", ""),
        (runtime('replicas: "2"'), "5: spec.replicas", "integer", "remove the quotes"),
        (runtime("replicas: every"), "5: spec.replicas", "integer", ""),
        (runtime("replicas: true"), "5: spec.replicas", "integer", ""),
        (runtime("replicas: [1]"), "5: spec.replicas", "integer", ""),
        (runtime("replicas:\n  min: 3\n  max: 2"), "7: spec.replicas.max", "below min", ""),
        (runtime("replicas: {min: -1}"), "5: spec.replicas.min", "at least 0", ""),
        (runtime("replicas: {min: 0, max: 0}"), "5: spec.replicas.max", "at least 1", ""),
        (
            runtime("replicas: {min: 1, askForNodes: true}"),
            "5: spec.replicas.askForNodes",
            "without a max",
            "set max",
        ),
        (runtime("replicas: {mn: 1}"), "5: spec.replicas.mn", "unknown field", "'min'"),
        (runtime("nodeSelector: {'-bad': x}"), '5: spec.nodeSelector["-bad"]', "label key", ""),
        (runtime("nodeSelector: {zone: in(a)}"), "5: spec.nodeSelector.zone", "label value", ""),
        (runtime("evictionPolicy: LRU"), "5: spec.evictionPolicy", "'sieve' or 'lru'", "lru"),
        (runtime("tieredStore: {}"), "5: spec.tieredStore", "unknown field", "'tieredstore'"),
        (runtime("tieredstore: {levels: []}"), "5: spec.tieredstore.levels", "at least 1", ""),
        (
            runtime("tieredstore: {levels: [{mediumtype: mem, path: /a, quota: 1Gi}]}"),
            "5: spec.tieredstore.levels[0].mediumtype",
            "'MEM', 'SSD' or 'HDD'",
            "MEM",
        ),
        (
            runtime("tieredstore: {levels: [{mediumtype: MEM, path: /a}]}"),
            "5: spec.tieredstore.levels[0].quota",
            "required",
            "",
        ),
        (
            runtime("tieredstore: {levels: [{mediumtype: MEM, path: a/b, quota: 1Gi}]}"),
            "5: spec.tieredstore.levels[0].path",
            "absolute",
            "",
        ),
        (
            runtime("tieredstore: {levels: [{mediumtype: SSD, path: '/a,/b', quota: 20%}]}"),
            "5: spec.tieredstore.levels[0].quota",
            "one device",
            "one level per path",
        ),
        (
            runtime("tieredstore: {levels: [{mediumtype: SSD, path: /a, quota: 1Gi, high: 0.5, low: 0.7}]}"),
            "5: spec.tieredstore.levels[0].low",
            "below high",
            "",
        ),
        (
            runtime(
                "tieredstore:\n  levels:\n  - {mediumtype: MEM, path: /a, quota: 1Gi}\n"
                "  - {mediumtype: SSD, path: /a/, quota: 1Gi}"
            ),
            "8: spec.tieredstore.levels[1].path",
            "already used by levels[0]",
            "",
        ),
        (f"{HEAD}kind: DataLoad\nmetadata: {{name: l}}\nspec: {{}}", "4: spec.dataset", "is required", ""),
        (
            f"{HEAD}kind: DataLoad\nmetadata: {{name: l}}\nspec: {{dataset: {{name: d}}, target: [{{path: /a/../b}}]}}",
            "4: spec.target[0].path",
            "'..'",
            "",
        ),
    ],
)
def test_bad_fields_are_named_with_their_place(text: str, where: str, what: str, hint: str) -> None:
    error = refusal(text)
    assert error.where == f"f.yaml:{where}"
    assert what in error.what
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "where", "what", "hint"),
    [
        ("kind: Dataset", "1: apiVersion", "is required", "raycache.io/v1"),
        ("apiversion: raycache.io/v1", "1: apiVersion", "is required", "'apiversion' is spelt"),
        (HEAD, "1: kind", "is required", "Dataset"),
        (f"{HEAD}kind: Datset", "2: kind", "unknown kind", "'Dataset'"),
        (f"{HEAD}kind: [Dataset]", "2: kind", "must be a string", ""),
        (f"{HEAD}kind: JindoRuntime", "2: kind", "unknown kind", "data.fluid.io/v1alpha1"),
        (
            "apiVersion: raycache.io/v2\nkind: Dataset",
            "1: apiVersion",
            "unknown apiVersion",
            "'raycache.io/v1'",
        ),
        ("apiVersion: v1\nkind: Pod", "2: kind", "unknown kind 'Pod' of v1", "Secret"),
        ("- a\n- b", "1", "a list", "---"),
        ("just text", "1", "a single value", ""),
        (
            f"{HEAD}kind: Dataset\nspec: {{mounts: [{{mountPoint: 's3://b'}}]}}",
            "1: metadata",
            "is required",
            "",
        ),
        (f"{HEAD}kind: CacheRuntime\nmetadata: {{}}", "3: metadata.name", "is required", ""),
        (
            f"{HEAD}kind: CacheRuntime\nmetadata: {{name: yes}}",
            "3: metadata.name",
            "must be a string",
            "quotes",
        ),
        (
            f"{HEAD}kind: CacheRuntime\nmetadata: {{name: 7}}",
            "3: metadata.name",
            "must be a string",
            "quotes",
        ),
        (
            f"{HEAD}kind: CacheRuntime\nmetadata: {{name: My_Data}}",
            "3: metadata.name",
            "not a valid name",
            "'my-data'",
        ),
        (
            f"{HEAD}kind: CacheRuntime\nmetadata: {{name: {'a' * 254}}}",
            "3: metadata.name",
            "not a valid name",
            "",
        ),
        (
            f"{HEAD}kind: CacheRuntime\nmetadata: {{name: a, namespace: a.b}}",
            "3: metadata.namespace",
            "namespace",
            "'a-b'",
        ),
        (f"{HEAD}kind: CacheRuntime\nmetadata: {{name: a, uid: x}}", "3: metadata.uid", "unknown field", ""),
    ],
)
def test_what_an_object_must_begin_with(text: str, where: str, what: str, hint: str) -> None:
    error = refusal(text)
    assert error.where == f"f.yaml:{where}"
    assert what in error.what
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: b\n\tc: d", "f.yaml:2", "not valid YAML"),
        ("a: [1, 2", "f.yaml:1", "not valid YAML"),
        ("a: *nope", "f.yaml:1", "undefined alias"),
        ("a: &x [*x]", "f.yaml:1: a[0]", "contains itself"),
        ("a: 1\nb: 2\na: 3", "f.yaml:3: a", "key given twice (first on line 1)"),
        ("a:\n  b.c: 1\n  b.c: 2", 'f.yaml:3: a["b.c"]', "key given twice"),
        ("1: x", "f.yaml:1", "a key must be a string"),
        ("true: x", "f.yaml:1", "a key must be a string"),
        ("2024-01-01: x", "f.yaml:1", "a key must be a string"),
        ("{{ name }}: x", "f.yaml:1", "a key must be a string"),
        ("? [a]\n: b", "f.yaml:1", "a key must be a string"),
        ("a: !!python/object:os.system {}", "f.yaml:1: a", "tag"),
        ("a: !custom x", "f.yaml:1: a", "tag"),
        ("a: !!set {x}", "f.yaml:1: a", "tag"),
        ("a: !!int x", "f.yaml:1: a", "not a valid integer"),
        ("a: " + "9" * 5000, "f.yaml:1: a", "not a valid integer"),
        ("<<: 1", "f.yaml:1", "must merge a mapping"),
        ("[" * 3000, "f.yaml", "nested too deeply"),
        ("a: b\nc: \x00", "f.yaml:2", "a character that may not appear"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(6)
            ),
            "f.yaml:1",
            "expands to too many values",
        ),
    ],
)
def test_yaml_that_is_no_spec(text: str, where: str, what: str) -> None:
    error = refusal(text)
    assert error.where.startswith(where)
    assert what in error.what


def test_tabs_get_a_hint() -> None:
    assert "spaces" in refusal("a:\n\tb: 1").hint


@pytest.mark.parametrize("text", ["", "\n\n", "---\n---\n", "# nothing\n", "---\nnull\n...\n", "\ufeff"])
def test_empty_documents_are_skipped(text: str) -> None:
    assert load_documents(text) == []


def test_anchors_and_merge_keys() -> None:
    document = only(
        f"""\
        {HEAD.strip()}
        kind: CacheRuntime
        metadata: {{name: r}}
        spec:
          tieredstore:
            levels:
              - &level
                mediumtype: MEM
                path: /dev/shm
                quota: &q 1Gi
              - path: /mnt/ssd
                <<: *level
                mediumtype: SSD
                quota: *q
        """
    )
    levels = document.model.spec.tieredstore.levels
    assert [(level.mediumtype, level.path, level.quota.size) for level in levels] == [
        ("MEM", "/dev/shm", 1 << 30),
        ("SSD", "/mnt/ssd", 1 << 30),
    ]


def test_numbers_where_kubernetes_takes_them() -> None:
    level = only(
        runtime(
            "tieredstore: {levels: [{mediumtype: MEM, path: /a, quota: 1073741824, high: 0.9, low: 0.5}]}"
        )
    )
    first = level.model.spec.tieredstore.levels[0]
    assert (first.quota.size, first.high, first.low) == (1 << 30, 0.9, 0.5)


def test_a_date_is_text() -> None:
    (tree,) = parse_trees("a: 2024-01-01", "f")
    assert tree.value == {"a": "2024-01-01"}


def test_a_list_is_opened_and_its_items_have_places() -> None:
    text = f"""\
    apiVersion: v1
    kind: List
    items:
      - {HEAD.strip()}
        kind: CacheRuntime
        metadata: {{name: a}}
      - {HEAD.strip()}
        kind: CacheRuntime
        metadata: {{name: b}}
        spec: {{replicas: %s}}
    """
    assert [(d.name, d.line) for d in load_documents(textwrap.dedent(text % 1))] == [("a", 4), ("b", 7)]
    assert refusal(text % 0).where == "f.yaml:10: items[1].spec.replicas"
    assert load_documents("apiVersion: v1\nkind: List\nitems: []") == []
    assert "must be a list" in refusal("apiVersion: v1\nkind: List\nitems: x").what


def test_the_same_object_twice() -> None:
    one = f"{HEAD}kind: CacheRuntime\nmetadata: {{name: a}}\n"
    error = refusal(f"{one}---\n{one.replace('name: a', 'name: a, namespace: other')}")
    assert "already defined at f.yaml:1" in error.what
    assert error.where == "f.yaml:5"


def test_the_first_wrong_thing_in_the_file_is_told() -> None:
    error = refusal(dataset("blockSize: 3Mi\nmounts: [{mountPoint: x}]\nconsistency: {mode: x}"))
    assert error.where == "f.yaml:5: spec.blockSize"


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = f"{HEAD}kind: CacheRuntime\nmetadata: {{name: NAME}}\n"
    (tmp_path / "b.yml").write_text(one.replace("NAME", "b"))
    (tmp_path / "a.yaml").write_text(one.replace("NAME", "a"))
    (tmp_path / "c.json").write_text('{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "c"}}')
    (tmp_path / "notes.txt").write_text("not: read")
    assert [d.name for d in load_files([tmp_path])] == ["a", "b", "c"]
    with pytest.raises(SpecError, match=r"already defined at .*a\.yaml:1"):
        load_files([tmp_path / "a.yaml", str(tmp_path / "a.yaml")])
    with pytest.raises(NotFoundError, match=r"gone\.yaml"):
        load_files([tmp_path / "gone.yaml"])
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(SpecError, match="no objects"):
        load_files([tmp_path / "empty.yaml"])
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(SpecError, match="UTF-8"):
        load_files([tmp_path / "latin.yaml"])
    monkeypatch.setattr("sys.stdin", io.StringIO((tmp_path / "a.yaml").read_text()))
    assert load_files(["-"])[0].source == "<stdin>"


@given(st.text(max_size=60))
def test_any_text_loads_or_is_a_spec_error(text: str) -> None:
    with contextlib.suppress(SpecError):
        load_documents(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["mounts", "mountPoint", "options", "replicas", "levels", "quota", "name", "path", "min", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from(["Dataset", "CacheRuntime", "DataLoad", "Secret"]))
def test_any_spec_loads_or_is_a_spec_error(spec: object, kind: str) -> None:
    for api_version in ("raycache.io/v1", "data.fluid.io/v1alpha1", "v1"):
        document = {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {"name": "a"},
            "spec": spec,
            "data": spec,
        }
        with contextlib.suppress(SpecError):
            load_documents(json.dumps(document))


def test_models_read_back_what_they_write() -> None:
    for document in load_files([EXAMPLES]):
        model = document.model
        assert type(model).from_wire(model.wire()) == model
        assert isinstance(model, Dataset | CacheRuntime | DataLoad | Secret)
