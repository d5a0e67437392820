"""Kubernetes' rules for names and labels.

Names: RFC 1123 subdomains and labels
(https://kubernetes.io/docs/concepts/overview/working-with-objects/names/). Labels and selectors:
https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set. Ray takes the same
syntax for node labels.
"""

from __future__ import annotations

import re

from raycache.errors import SpecError

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def check_name(name: str) -> str:
    """`name`, when it is a DNS-1123 subdomain: what Kubernetes asks of the names of most objects.

    Raises:
        SpecError: it is not; the hint is the nearest name that is one.
    """
    if len(name) <= 253 and all(_DNS_LABEL.fullmatch(part) for part in name.split(".")):
        return name
    raise SpecError(
        f"{name[:80]!r} is not a valid name: lower-case letters, digits, '-' and '.', at most 253 characters,"
        " beginning and ending with a letter or digit",
        hint=_suggestion(name),
    )


def check_namespace(name: str) -> str:
    """`name`, when it is a DNS-1123 label (no dots, at most 63 characters), as a namespace's name must be.

    Raises:
        SpecError: it is not.
    """
    if len(name) <= 63 and _DNS_LABEL.fullmatch(name):
        return name
    raise SpecError(
        f"{name[:80]!r} is not a valid namespace: lower-case letters, digits and '-', at most 63 characters,"
        " beginning and ending with a letter or digit",
        hint=_suggestion(name.replace(".", "-")[:63]),
    )


def _suggestion(name: str) -> str:
    fixed = re.sub(r"[^a-z0-9.]+", "-", name.lower()[:253])
    fixed = ".".join(part.strip("-") for part in fixed.split(".") if part.strip("-"))
    return f"did you mean {fixed!r}?" if fixed else "name it like my-data"


def check_label_key(key: str) -> str:
    """`key`, when it is a label key: an optional DNS-1123 subdomain and `/`, then up to 63 characters.

    Raises:
        SpecError: it is not.
    """
    prefix, slash, name = key.rpartition("/")
    if len(name) <= 63 and _QUALIFIED.fullmatch(name):
        try:
            if slash:
                check_name(prefix)
            return key
        except SpecError:
            pass
    raise SpecError(
        f"{key[:80]!r} is not a valid label key",
        hint="letters, digits, '-', '_' and '.', at most 63, after an optional prefix such as example.com/",
    )


def check_label_value(value: str) -> str:
    """`value`, when it is a label value: up to 63 letters, digits, `-`, `_`, `.`; may be empty.

    Raises:
        SpecError: it is not.
    """
    if not value or (len(value) <= 63 and _QUALIFIED.fullmatch(value)):
        return value
    raise SpecError(
        f"{value[:80]!r} is not a valid label value",
        hint="letters, digits, '-', '_' and '.', at most 63, beginning and ending with a letter or digit",
    )
