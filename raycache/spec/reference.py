"""The spec's reference, `docs/spec.md`, written from the models: `python -m raycache.spec.reference > docs/spec.md`."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, PlainSerializer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raycache.spec import fluid, fluid_fields, models
from raycache.spec.checks import submodel
from raycache.spec.fields import SpecModel, TypeName

_INTRO = """\
# The spec

<!-- Written by `python -m raycache.spec.reference > docs/spec.md`. A test fails when it is out of date. -->

A spec says what to cache, where, and what to fetch ahead of use. It is YAML, several documents in one file,
read by `raycache apply -f FILE` and `raycache run -f FILE`. Examples are in `examples/specs/`. Documents
written for Fluid are [accepted as they are](#documents-written-for-fluid).

Reading is strict. A field that does not exist is an error that names the file, the line, the path and the
nearest right name; so are a key given twice and an object defined twice. A field that is null counts as not
set. `kind: List`, as `kubectl get -o yaml` writes it, is opened.

## Values

- **quantity**: bytes as in Kubernetes: `10Gi` (1024-based), `10G` (1000-based), `12e6`, a plain number.
  Fractions of a byte are rounded up. Negative quantities, and any above 2^63-1, are refused.
- **percentage**: `20%`.
- **ratio**: `"0.95"`, `0.95` or `95%`.
- **duration**: as in Go: `500ms`, `30s`, `5m`, `1h30m`. A number needs a unit.
- **names** are DNS-1123 subdomains: lower-case letters, digits, `-` and `.`, at most 253 characters. Labels
  follow Kubernetes' rules.
- YAML reads `yes`, `no`, `on` and `off` as booleans and `0123` as an octal number. Put such a value in quotes
  where text is meant; it is never converted in silence.
"""

_OPTIONS = """\
## Options of a mount

One setting has one meaning under all its names; case and punctuation don't matter. Two names of one setting
with different values are an error. Names that are not listed go to the store's client as they are.

| Option | Also written | Value |
| --- | --- | --- |
| `endpoint` | `fs.oss.endpoint`, `fs.s3.endpoint`, `fs.s3a.endpoint`, `fs.cos.endpoint`, `fs.obs.endpoint`, \
`alluxio.underfs.s3.endpoint`, `aws-endpoint`, `minio-url` | URL or host of an S3-compatible store. A host \
without a scheme gets `https://`, unless `allowHttp` is true. |
| `region` | `fs.s3.region`, `fs.s3a.endpoint.region`, `alluxio.underfs.s3.region`, \
`alluxio.underfs.s3.endpoint.region`, `fs.cosn.bucket.region`, `aws-region` | Region of the bucket. |
| `accessKeyId` | `fs.oss.accessKeyId`, `fs.s3.accessKeyId`, `fs.s3a.access.key`, `aws.accessKeyId`, \
`minio-access-key` | Secret. |
| `secretAccessKey` | `fs.oss.accessKeySecret`, `fs.s3.accessKeySecret`, `fs.s3a.secret.key`, \
`aws.secretKey`, `minio-access-secret` | Secret. |
| `sessionToken` | `fs.oss.securityToken`, `fs.s3a.session.token`, `aws.sessionToken` | Secret. |
| `anonymous` | | `true` sends no credentials. |
| `pathStyle` | `fs.s3a.path.style.access`, `alluxio.underfs.s3.disable.dns.buckets` | `true` puts the bucket \
in the path, as most stores that are not AWS need. |
| `allowHttp` | `fs.s3a.connection.ssl.enabled` and `alluxio.underfs.s3.secure.http.enabled`, reversed | \
`true` allows http. Follows from an `http://` endpoint. |
| `profile` | | Profile of the AWS configuration. |

Without credentials in the spec, the store's own chain finds them (for S3: environment, profile, container or
instance role). An option whose name or value looks like a credential is kept as a secret and never shown,
even when it stands in `options`; a mount point with credentials in it is refused. Put credentials in a Secret
and name it in `encryptOptions`.
"""

_FLUID = """\
## Documents written for Fluid

Documents of `{api_version}` are mapped to the kinds above. A field that has no meaning here is named in a
warning, with its line; a misspelt field is an error, checked against Fluid's own field names.

| Fluid | raycache |
| --- | --- |
| `Dataset` | `Dataset` |
| `spec.mounts[]`: `mountPoint`, `name`, `path`, `options`, `encryptOptions` | The same. `path` is `/<name>` \
unless it is absolute, for the only mount too: Fluid's rule. |
| `spec.sharedOptions`, `spec.sharedEncryptOptions` | Options of every mount that does not set them itself. |
| `spec.owner`: `uid`, `gid` | `spec.owner`. |
| `spec.runtimes[0].name` | `spec.runtime`. |
| `spec.accessModes`, `mounts[].readOnly` | Accepted; a dataset is read-only, and a warning says so where \
more was asked. |
| mount point `local:///dir` | `file:///dir`, with a warning: the directory must be on every node. |
| mount point `pvc://`, `dataset://`, `juicefs://` | An error: nothing but Fluid can read it. |
| {runtimes}, and any other `*Runtime` | `CacheRuntime` |
| `spec.replicas` | `spec.replicas`; not set means `all`, with a warning. |
| `spec.tieredstore.levels[]`: `mediumtype`, `path`, `quota`, `high`, `low` | The same. Several paths share \
the quota evenly. |
| `spec.tieredstore.levels[].quotaList` | One level for each path. |
| `DataLoad` | `DataLoad` |
| `spec.dataset`, `spec.loadMetadata`, `spec.target[]` | The same. The load runs once, whatever `policy` says. |
| `Secret` of `v1` | `Secret` |

Names are unique in the whole cluster: two datasets of one name in two namespaces are an error.

Kinds without a counterpart are errors:

| Kind | Instead |
| --- | --- |
{rejected}
"""


def render() -> str:
    """The whole page, Markdown."""
    parts = [_INTRO]
    parts += [_kind(model) for model in models.KINDS.values()]
    parts.append(_OPTIONS)
    rejected = "\n".join(
        f"| `{kind}` | {_cell(hint)} |" for kind, hint in sorted(fluid_fields.NO_COUNTERPART.items())
    )
    runtimes = ", ".join(
        f"`{kind}`" for kind in sorted({*fluid_fields.RUNTIMES, *fluid_fields.OTHER_RUNTIMES})
    )
    parts.append(_FLUID.format(api_version=fluid.API_VERSION, rejected=rejected, runtimes=runtimes))
    return "\n".join(parts)


def _kind(model: type[BaseModel]) -> str:
    sections = [f"## {model.__name__}\n\n{_doc(model)}\n\n{_table(model)}"]
    for inner in _nested(model, [model]):
        sections.append(f"### {inner.__name__}\n\n{_doc(inner)}\n\n{_table(inner)}")
    return "\n\n".join(sections) + "\n"


def _nested(model: type[BaseModel], seen: list[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """Models below `model`, depth first, each once. Metadata is described with the first kind only."""
    for info in model.model_fields.values():
        inner = submodel(info)
        if inner is None or inner in seen or (inner is models.Metadata and seen[0] is not models.Dataset):
            continue
        seen.append(inner)
        yield inner
        yield from _nested(inner, seen)


def _doc(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _table(model: type[BaseModel]) -> str:
    rows = [
        f"| `{info.alias or name}` | {_cell(_type(info.annotation, info.metadata))} | {_cell(_default(info))} |"
        f" {_cell(info.description or '')} |"
        for name, info in model.model_fields.items()
    ]
    return "\n".join(["| Field | Type | Default | Description |", "| --- | --- | --- | --- |", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    named = [item.text for item in metadata if isinstance(item, TypeName)]
    if named:
        return named[-1]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(item) for item in arguments if item is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{item}`" for item in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"map of {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return _PLAIN[annotation]


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or value in ({}, []):
        return ""
    if isinstance(value, BaseModel):
        return "its defaults"
    # All of ours take the value alone; pydantic's type admits functions of an info as well.
    writers: list[Any] = [item.func for item in info.metadata if isinstance(item, PlainSerializer)]
    shown = writers[0](value) if writers else value
    if isinstance(shown, list):
        shown = [item.public() if isinstance(item, SpecModel) else item for item in shown]
    return f"`{shown if isinstance(shown, str) else json.dumps(shown)}`"


if __name__ == "__main__":
    print(render(), end="")
