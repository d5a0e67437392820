"""Secrets are used, and never shown: not in repr, str, dumps, warnings or errors, nor in what an error carries."""

from __future__ import annotations

import base64
import pickle
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.errors import SpecError
from raycache.spec import Dataset, ResolvedDataset, Secret, TierSpec, load_documents, resolve
from raycache.spec.options import canonical, is_secret

PASSWORD = "hunter2-Tr0ub4dor"
TIERS = [TierSpec(medium="MEM", path="/dev/shm", quota=1 << 30)]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def secret(body: str) -> str:
    return f"apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n{body}\n"


def dataset(mount: str) -> str:
    return (
        f"apiVersion: raycache.io/v1\nkind: Dataset\nmetadata: {{name: d}}\nspec:\n  mounts:\n  - {mount}\n"
    )


def everything_of(error: BaseException) -> str:
    """All that a log, a traceback or a debugger would print of an error, causes and contexts too."""
    text = "".join(traceback.format_exception(error))
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        item = pending.pop()
        if item is None or item in seen:
            continue
        seen.append(item)
        text += repr(item) + str(item) + repr(vars(item)) + repr(item.args)
        pending += [item.__cause__, item.__context__]
    return text


def test_both_parts_of_a_secret_are_read() -> None:
    (document,) = load_documents(
        secret(f"type: Opaque\ndata: {{a: {b64('x')}, b: {b64('old')}}}\nstringData: {{b: new}}")
    )
    assert isinstance(document.model, Secret)
    assert {key: value.get_secret_value() for key, value in document.model.values().items()} == {
        "a": "x",
        "b": "new",
    }
    assert document.warnings == []


def test_a_secret_of_raycache_is_one_too() -> None:
    (document,) = load_documents(secret("stringData: {a: x}").replace("v1", "raycache.io/v1"))
    assert document.kind == "Secret"


def test_a_secret_is_not_shown() -> None:
    encoded = b64(PASSWORD)
    (document,) = load_documents(secret(f"data: {{a: {encoded}}}\nstringData: {{b: {PASSWORD}}}"))
    model = document.model
    assert isinstance(model, Secret)
    for text in (
        repr(document),
        str(model),
        repr(model),
        repr(model.public()),
        repr(model.values()),
        model.model_dump_json(),
    ):
        assert PASSWORD not in text
        assert encoded not in text
    assert model.public()["stringData"] == {"b": "********"}
    assert Secret.from_wire(model.wire()) == model


def test_a_value_that_ends_with_a_line_break_is_told_without_it() -> None:
    (document,) = load_documents(secret(f"data: {{a: {b64(PASSWORD + chr(10))}}}"))
    (warning,) = document.warnings
    assert "<string>:4: data.a" in warning
    assert PASSWORD not in warning


def test_what_kubectl_adds_is_dropped_and_named() -> None:
    applied = f'{{"stringData": {{"a": "{PASSWORD}"}}}}'
    text = f"""\
apiVersion: v1
kind: Secret
metadata:
  name: s
  uid: 1b2c
  creationTimestamp: 2026-01-01T00:00:00Z
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: '{applied}'
immutable: true
stringData: {{a: {PASSWORD}}}
"""
    (document,) = load_documents(text, "f.yaml")
    assert document.model.metadata.annotations == {}
    assert PASSWORD not in repr(document.model.wire()["metadata"])
    places = [warning.split(": ")[1] for warning in document.warnings]
    assert places == [
        'metadata.annotations["kubectl.kubernetes.io/last-applied-configuration"]',
        "immutable",
        "metadata.uid",
        "metadata.creationTimestamp",
    ]


@pytest.mark.parametrize(
    "text",
    [
        secret(f"data: {{a: '{PASSWORD}'}}"),  # not base64
        secret(f"data: {{a: '{base64.b64encode(PASSWORD.encode() + bytes([255])).decode()}'}}"),  # not UTF-8
        secret(f"data: '{PASSWORD}'"),
        secret(f"data: ['{PASSWORD}']"),
        secret(f"stringData: {{a: ['{PASSWORD}']}}"),
        secret(f"stringData: {{a: {{b: '{PASSWORD}'}}}}"),
        secret(f"stringdata: {{a: '{PASSWORD}'}}"),
        secret(f"type: ['{PASSWORD}']\nstringData: {{a: '{PASSWORD}'}}"),
        secret(f"stringData:\n  a: *{PASSWORD}"),
        secret(f"stringData:\n  a: !{PASSWORD} x"),
        secret(f"stringData:\n  a: !!int {PASSWORD}"),
        secret(f"stringData:\n  a: '{PASSWORD}\n"),
        secret(f'stringData:\n  a: "{PASSWORD}\\q"'),
        secret(f"stringData:\n  a: {PASSWORD}\n b: x"),
        secret(f"stringData:\n  a: {PASSWORD}: x"),
        secret(f"stringData:\n  a: |9{PASSWORD}"),
        secret(f"stringData:\n  a: `{PASSWORD}"),
        secret(f"stringData:\n  a: %{PASSWORD}\n\x00"),
        secret(f"stringData: {{a: '{PASSWORD}'}}\nstringData: {{a: '{PASSWORD}'}}"),
        secret(f"stringData: {{a: '{PASSWORD}'}}").replace("name: s", "name: S_"),
        dataset(f"{{mountPoint: 's3://key:{PASSWORD}@bucket'}}"),
        dataset(f"{{mountPoint: 'https://{PASSWORD}@host/x'}}"),
        dataset(f"{{mountPoint: 'abfs://key:{PASSWORD}@bucket'}}"),
        dataset(f"{{mountPoint: '/{PASSWORD}@bucket'}}"),
        dataset(f"{{mountPoint: 's3://b', options: {{secretAccessKey: ['{PASSWORD}']}}}}"),
        dataset(f"{{mountPoint: 's3://b', options: '{PASSWORD}'}}"),
        dataset(f"{{mountPoint: 's3://b', option: {{secretAccessKey: '{PASSWORD}'}}}}"),
        dataset(f"{{mountPoint: 's3://b', encryptOptions: [{{name: a, value: '{PASSWORD}'}}]}}"),
        dataset(f"{{mountPoint: 's3://b', path: ../x, options: {{secretAccessKey: '{PASSWORD}'}}}}"),
        dataset(f"{{mountPoint: ['{PASSWORD}'], options: {{secretAccessKey: '{PASSWORD}'}}}}"),
    ],
)
def test_no_error_shows_or_carries_a_secret(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_documents(text, "f.yaml")
    assert PASSWORD not in everything_of(caught.value)
    assert b64(PASSWORD) not in everything_of(caught.value)
    assert caught.value.where.startswith("f.yaml:")


def plain_credentials() -> tuple[Dataset, ResolvedDataset]:
    (document,) = load_documents(
        dataset(
            "{mountPoint: 'oss://b', options: {fs.oss.endpoint: oss.example.com, fs.oss.accessKeyId: KEYID-1,"
            f" fs.oss.accessKeySecret: {PASSWORD}, proxy: 'http://u:{PASSWORD}@host', someToken: {PASSWORD}}}}}"
        )
    )
    assert isinstance(document.model, Dataset)
    return document.model, resolve(document.model, None, {}, TIERS)


def test_credentials_written_as_plain_options_are_secrets_all_the_same() -> None:
    model, resolved = plain_credentials()
    for shown in (model, model.public(), resolved, resolved.public(), resolved.mounts, model.model_dump()):
        assert PASSWORD not in repr(shown)
        assert "KEYID-1" not in repr(shown)
        assert "oss.example.com" in repr(shown)
    assert PASSWORD not in resolved.model_dump_json()
    assert resolved.mounts[0].all_options()["secret_access_key"] == PASSWORD
    assert resolved.public()["mounts"][0]["secret_options"]["secret_access_key"] == "********"
    assert Dataset.from_wire(model.wire()) == model
    assert ResolvedDataset.from_wire(resolved.wire()) == resolved
    assert pickle.loads(pickle.dumps(resolved)) == resolved


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, "endpoint")
            for name in ("endpoint", "fs.oss.endpoint", "alluxio.underfs.s3.endpoint", "fs.s3a.endpoint")
        ),
        *(
            (name, "endpoint")
            for name in ("fs.s3.endpoint", "aws-endpoint", "minio-url", "AWS_ENDPOINT_URL", "fs.cos.endpoint")
        ),
        *(
            (name, "region")
            for name in ("region", "alluxio.underfs.s3.region", "alluxio.underfs.s3.endpoint.region")
        ),
        *(
            (name, "region")
            for name in ("fs.s3.region", "aws_region", "fs.cosn.bucket.region", "fs.s3a.endpoint.region")
        ),
        *(
            (name, "access_key_id")
            for name in ("accessKeyId", "fs.oss.accessKeyId", "aws.accessKeyId", "minio-access-key")
        ),
        *(
            (name, "access_key_id")
            for name in ("AWS_ACCESS_KEY_ID", "s3a.accessKeyId", "fs.s3a.access.key", "access_key_id")
        ),
        *(
            (name, "secret_access_key")
            for name in ("secretAccessKey", "fs.oss.accessKeySecret", "aws.secretKey")
        ),
        *(
            (name, "secret_access_key")
            for name in ("minio-access-secret", "fs.s3a.secret.key", "aws_secret_access_key")
        ),
        *((name, "session_token") for name in ("sessionToken", "fs.oss.securityToken", "AWS_SESSION_TOKEN")),
        *(
            (name, "path_style")
            for name in ("pathStyle", "fs.s3a.path.style.access", "alluxio.underfs.s3.disable.dns.buckets")
        ),
        *((name, "allow_http") for name in ("allowHttp", "allow_http")),
        ("fs.s3a.connection.ssl.enabled", "tls"),
        ("anonymous", "anonymous"),
        ("profile", "profile"),
        ("url", "url"),
        ("fs.oss.impl", "fs.oss.impl"),
        ("requester_pays", "requester_pays"),
    ],
)
def test_names_of_options(name: str, expected: str) -> None:
    assert canonical(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "fs.azure.account.key.x",
        "sasToken",
        "sas",
        "account_key",
        "client-secret",
        "metaurl",
        "apiKey",
    ],
)
def test_names_that_are_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["endpoint", "region", "profile", "path_style", "anonymous", "project", "bucketName"]
)
def test_names_that_are_not(name: str) -> None:
    assert not is_secret(name)


@given(st.text(max_size=30))
def test_a_canonical_name_stays_as_it_is(name: str) -> None:
    assert canonical(canonical(name)) in (canonical(name), "allow_http")


def test_models_built_in_python_hide_their_input_too() -> None:
    def build(**options: Any) -> None:
        Dataset.model_validate(
            {"metadata": {"name": "d"}, "spec": {"mounts": [{"mountPoint": 1, "options": options}]}}
        )

    with pytest.raises(ValueError, match="mountPoint") as caught:
        build(secretAccessKey=PASSWORD)
    assert PASSWORD not in str(caught.value) + repr(caught.value)
