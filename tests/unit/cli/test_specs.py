"""`apply`, `validate`, `delete`, and how commands take files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.fakes import FakeBackend, invoke

DATASET = """\
apiVersion: raycache.io/v1
kind: Dataset
metadata: {name: imagenet}
spec:
  mounts:
    - mountPoint: s3://bucket/imagenet
      encryptOptions:
        - {name: accessKeyId, valueFrom: {secretKeyRef: {name: keys, key: id}}}
"""
SECRET = """\
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {id: "hush-hush"}
"""
LOAD = """\
apiVersion: raycache.io/v1
kind: DataLoad
metadata: {name: warm-up}
spec:
  dataset: {name: imagenet}
"""


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    texts = {"dataset": DATASET, "secret": SECRET, "load": LOAD}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return {name: str(tmp_path / f"{name}.yaml") for name in texts} | {"all": str(tmp_path)}


def test_apply_says_what_became_of_each(backend: FakeBackend, files: dict[str, str]) -> None:
    result = invoke(backend, "apply", "-f", files["dataset"], "-f", files["load"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["dataset/imagenet created", "dataload/warm-up created"]


def test_files_may_follow_as_a_shell_expands_them(backend: FakeBackend, files: dict[str, str]) -> None:
    invoke(backend, "apply", "-f", files["dataset"], files["load"], files["secret"])
    assert backend.fake.calls == [("apply", ["imagenet", "warm-up", "keys"])]


def test_apply_from_standard_input(backend: FakeBackend) -> None:
    result = invoke(backend, "apply", "-f", "-", input=DATASET)
    assert result.stdout == "dataset/imagenet created\n"


def test_apply_needs_a_file(backend: FakeBackend) -> None:
    result = invoke(backend, "apply")
    assert result.exit_code == 2
    assert "no spec file given" in result.stderr


def test_a_bad_spec_reaches_no_cluster(backend: FakeBackend, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(DATASET.replace("mountPoint", "mountpoint"))
    result = invoke(backend, "apply", "-f", str(path))
    assert result.exit_code == 2
    assert backend.addresses == []
    what, where, *_ = result.stderr.splitlines()
    assert what.startswith("error: ")
    assert f"{path}:6: spec.mounts[0]" in where
    assert "Traceback" not in result.stderr


def test_a_file_that_is_not_there(backend: FakeBackend) -> None:
    result = invoke(backend, "apply", "-f", "/nowhere/spec.yaml")
    assert result.exit_code == 4
    assert "/nowhere/spec.yaml" in result.stderr


def test_warnings_go_to_standard_error(backend: FakeBackend) -> None:
    text = DATASET.replace("raycache.io/v1", "data.fluid.io/v1alpha1").replace(
        "spec:\n", "spec:\n  tolerations: [{key: a}]\n"
    )
    result = invoke(backend, "apply", "-f", "-", input=text)
    assert result.stdout == "dataset/imagenet created\n"
    assert result.stderr.startswith("warning: ")
    assert "spec.tolerations" in result.stderr


def test_validate_needs_no_cluster(backend: FakeBackend, files: dict[str, str]) -> None:
    result = invoke(backend, "validate", "-f", files["all"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "dataset/imagenet valid",
        "dataload/warm-up valid",
        "secret/keys valid",
    ]
    assert result.stderr == ""
    assert backend.addresses == []
    assert "hush" not in result.output


def test_validate_says_what_must_be_on_the_cluster(backend: FakeBackend, files: dict[str, str]) -> None:
    result = invoke(backend, "validate", "-f", files["dataset"])
    assert (result.exit_code, result.stderr) == (
        0,
        f"warning: {files['dataset']}:1: secret 'keys' is not in these files\n",
    )
    result = invoke(backend, "validate", "-f", files["load"])
    assert "dataset 'imagenet' is not in these files" in result.stderr


def test_validate_resolves(backend: FakeBackend) -> None:
    result = invoke(backend, "validate", "-f", "-", input=f"{DATASET}---\n{SECRET.replace('id:', 'ID:')}")
    assert result.exit_code == 2
    assert "no key 'id'" in result.stderr


def test_delete_by_name(backend: FakeBackend) -> None:
    result = invoke(backend, "delete", "dataset", "a", "b")
    assert result.stdout.splitlines() == ["dataset/a deleted", "dataset/b deleted"]
    assert backend.fake.calls == [("delete", "datasets", "a"), ("delete", "datasets", "b")]


def test_delete_by_file_begins_with_what_refers_to_others(
    backend: FakeBackend, files: dict[str, str]
) -> None:
    result = invoke(backend, "delete", "-f", files["secret"], files["load"], files["dataset"])
    assert result.stdout.splitlines() == [
        "dataload/warm-up deleted",
        "dataset/imagenet deleted",
        "secret/keys deleted",
    ]


def test_delete_goes_on_after_what_is_not_there(backend: FakeBackend) -> None:
    result = invoke(backend, "delete", "dataset", "no-such", "b")
    assert result.exit_code == 4
    assert result.stdout == "dataset/b deleted\n"
    assert result.stderr == "error: no dataset 'no-such'\n"
    assert invoke(backend, "delete", "--ignore-not-found", "dataset", "no-such").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "what is to be deleted?"), (["dataset"], "which dataset?"), (["worker", "w"], "cannot be deleted")],
)
def test_delete_needs_to_know_what(backend: FakeBackend, words: list[str], message: str) -> None:
    result = invoke(backend, "delete", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert backend.addresses == []
