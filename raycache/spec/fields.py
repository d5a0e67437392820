"""Types of the spec's fields: what YAML may write for each, and how Python keeps it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
)
from pydantic.alias_generators import to_camel

from raycache.blocks import KiB, MiB, clean_path
from raycache.errors import PathError, SpecError
from raycache.spec import kubernames as names
from raycache.spec import quantities

MASK = "********"
"""What stands for a secret wherever one would be shown."""


class FieldError(SpecError):
    """A SpecError about a value further down than the validator that raises it.

    Args:
        at: keys and indices from the validated value to the one at fault.
    """

    def __init__(self, what: str, *, at: tuple[str | int, ...] = (), where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.at = at


class TypeName:
    """What the reference calls a type that YAML writes differently from how Python keeps it."""

    def __init__(self, text: str) -> None:
        self.text = text


def _scalar(parse: Callable[[object], Any], show: Callable[[Any], str], name: str) -> tuple[Any, ...]:
    return (BeforeValidator(parse), PlainSerializer(show, when_used="json"), TypeName(name))


def _show_secret(value: SecretStr, info: SerializationInfo) -> str:
    return value.get_secret_value() if (info.context or {}).get("reveal") else MASK


Hidden = Annotated[SecretStr, PlainSerializer(_show_secret, when_used="json"), TypeName("string")]
"""A value that `repr`, `str` and `public()` never show."""

Size = Annotated[int, *_scalar(quantities.parse_size, quantities.format_size, "quantity")]
"""Bytes; a Kubernetes quantity in YAML."""
Duration = Annotated[float, *_scalar(quantities.parse_duration, quantities.format_duration, "duration")]
"""Seconds; a Go duration in YAML."""
Ratio = Annotated[float, *_scalar(quantities.parse_ratio, quantities.format_ratio, "ratio")]
Quota = Annotated[quantities.Quota, *_scalar(quantities.parse_quota, str, "quantity, percentage or `auto`")]
Name = Annotated[str, AfterValidator(names.check_name), TypeName("string (DNS-1123 subdomain)")]
Namespace = Annotated[str, AfterValidator(names.check_namespace), TypeName("string (DNS-1123 label)")]


def _labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in labels.items():
        try:
            names.check_label_key(key)
            names.check_label_value(value)
        except SpecError as error:
            raise FieldError(error.what, at=(key,), hint=error.hint) from None
    return labels


Labels = Annotated[dict[str, str], AfterValidator(_labels), TypeName("map of labels")]


def at_least_one(value: int) -> int:
    if value < 1:
        raise SpecError("must be at least 1")
    return value


Count = Annotated[int, AfterValidator(at_least_one), TypeName("integer >= 1")]


def at_least_zero(value: int) -> int:
    if value < 0:
        raise SpecError("must be at least 0")
    return value


CountOrNone = Annotated[int, AfterValidator(at_least_zero), TypeName("integer >= 0")]


def data_path(path: str) -> str:
    try:
        return "/" + clean_path(path)
    except PathError as error:
        raise SpecError(error.what, hint=error.hint) from None


DataPath = Annotated[str, AfterValidator(data_path), TypeName("path in the dataset")]


class SpecModel(BaseModel):
    """Base of all models of the spec."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        populate_by_name=True,
        alias_generator=to_camel,
        hide_input_in_errors=True,
    )

    def public(self) -> dict[str, Any]:
        """As plain data with YAML's names, for showing: secrets masked, fields that are not set left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def wire(self) -> dict[str, Any]:
        """The same WITH secrets, for use between processes of the cluster; `from_wire` reverses it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, context={"reveal": True})

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Self:
        """The object that `wire` described. Raises pydantic's ValidationError, without values, for anything else."""
        return cls.model_validate(dict(data))


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://(.*)", re.DOTALL)
# abfs://container@account… is Azure's way of naming a container, not a user.
_AT_SIGN_IS_NO_USER = frozenset({"abfs", "abfss", "wasb", "wasbs", "hdfs"})


def _mount_point(uri: str) -> str:
    match = _SCHEME.fullmatch(uri)
    if match is None:
        hint = (
            f"did you mean file://{uri}?"
            if uri.startswith("/") and "@" not in uri
            else "for example s3://bucket/prefix"
        )
        raise SpecError("a mount point must be a URI with a scheme", hint=hint)
    scheme, rest = match[1].lower(), match[2]
    authority, _, key = rest.partition("/")
    user, at, _ = authority.rpartition("@")
    # The value is not shown from here on: what stands before the @ may be a password.
    if at and (":" in user or scheme not in _AT_SIGN_IS_NO_USER):
        raise SpecError(
            "a mount point may not hold credentials",
            hint="put them in a Secret and name it in encryptOptions",
        )
    if not authority and scheme != "file" and not (scheme == "memory" and key):
        raise SpecError(
            "a mount point must name a bucket or host", hint=f"for example {scheme}://bucket/prefix"
        )
    try:
        clean_path(key)
    except PathError as error:
        raise SpecError(error.what) from None
    return uri


_MODE = re.compile(r"0?[0-7]{3}")


def _mode(value: object) -> int:
    # Only a string: unquoted, YAML reads 0444 as octal and 444 as decimal, and who writes one may mean the other.
    if isinstance(value, str) and _MODE.fullmatch(value):
        return int(value, 8)
    raise SpecError("not a file mode", hint='write the permission bits in quotes, such as "0444"')


Mode = Annotated[int, *_scalar(_mode, lambda mode: f"{mode:04o}", "octal string")]


MIN_BLOCK_SIZE = 64 * KiB
MAX_BLOCK_SIZE = 64 * MiB


def _block_size(size: int) -> int:
    if not MIN_BLOCK_SIZE <= size <= MAX_BLOCK_SIZE or size & (size - 1):
        raise SpecError(
            f"block size {quantities.format_size(size)} is not a power of two from 64Ki to 64Mi",
            hint="4Mi suits most data",
        )
    return size


def absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise SpecError(f"{path[:200]!r} is not an absolute path without '..'")
    return posixpath.normpath("/" + path.lstrip("/"))


MountPoint = Annotated[str, AfterValidator(_mount_point), TypeName("URI")]
BlockSize = Annotated[Size, AfterValidator(_block_size), TypeName("quantity")]
AbsolutePath = Annotated[str, AfterValidator(absolute), TypeName("absolute path")]
