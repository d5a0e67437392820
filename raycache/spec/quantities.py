"""Sizes, ratios and durations, written the way Kubernetes writes them.

Sizes follow the grammar of `resource.Quantity`
(https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/): a decimal number with one of
the suffixes `Ki Mi Gi Ti Pi Ei` (powers of 1024), `k M G T P E` and `m u n` (powers of 1000), or a decimal
exponent (`12e6`). Durations follow Go's `time.ParseDuration`, which is what `metav1.Duration` takes.

Two rules are stricter than Kubernetes', because a size here is a number of bytes that somebody waits for: a
negative size is refused, and so is one above 2^63-1, which Kubernetes would cap in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation

from raycache.errors import SpecError

MAX_SIZE = (1 << 63) - 1
"""Largest size in bytes: Kubernetes bounds a Quantity by 2^63-1."""

_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60}
_DECIMAL = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
}
_FACTOR = {**_DECIMAL, **{suffix: Decimal(factor) for suffix, factor in _BINARY.items()}}
# [0-9], not \d: \d would take any script's digits. `1E` is an exa, `1E3` an exponent.
_QUANTITY = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]+)|([KMGTPE]i|[numkMGTPE])?)")
_SIZE_HINT = "write a Kubernetes quantity: 10Gi (1024-based) or 10G (1000-based)"

_DURATION_UNITS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),  # U+00B5, as Go has it
    "μs": Decimal("1e-6"),  # U+03BC
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION_HINT = "write a number with a unit: 500ms, 30s, 5m, 1h30m"
_MAX_TEXT = 64  # characters; keeps a hostile number from costing time


def parse_size(value: object) -> int:
    """Bytes of a Kubernetes quantity.

    A fraction of a byte is rounded up, as Kubernetes does (`Quantity.Value`).

    Args:
        value: `"10Gi"`, `"1.5G"`, `"12e6"`, or a plain number of bytes.

    Raises:
        SpecError: not a quantity, negative, or above 2^63-1.
    """
    number = _parse_quantity(_text(value, "size", _SIZE_HINT))
    if number < 0:
        raise SpecError(f"size {value} is negative", hint=_SIZE_HINT)
    size = int(number.to_integral_value(ROUND_CEILING))
    if size > MAX_SIZE:
        raise SpecError(f"size {_shown(str(value))} is larger than 2^63-1 bytes", hint=_SIZE_HINT)
    return size


def _parse_quantity(text: str) -> Decimal:
    match = _QUANTITY.fullmatch(text) if len(text) <= _MAX_TEXT else None
    if match is None:
        raise SpecError(f"{_shown(text)!r} is not a size", hint=_size_hint(text))
    sign, digits, exponent, suffix = match.groups()
    if exponent is not None and abs(int(exponent)) > 30:
        raise SpecError(f"{text!r} is not a size in bytes: its exponent is out of range", hint=_SIZE_HINT)
    factor = Decimal(10) ** int(exponent) if exponent is not None else _FACTOR[suffix or ""]
    # At most 64 digits times a factor of 19: an exact product needs more than decimal's default 28 digits.
    scaled = _multiply(Decimal(digits), factor)
    return -scaled if sign == "-" else scaled


def _multiply(left: Decimal, right: Decimal) -> Decimal:
    return Context(prec=128).multiply(left, right)


def _size_hint(text: str) -> str:
    """What was probably meant by a size that is nearly right: `10GB`, `10gi`, `10 Gi`."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtpe])(i?)b?\s*", text, re.IGNORECASE)
    if match is None or len(text) > _MAX_TEXT:
        return _SIZE_HINT
    number, letter, binary = match.groups()
    decimal_suffix = "k" if letter in "kK" else letter.upper()
    if binary:
        return f"did you mean {number}{letter.upper()}i?"
    return f"did you mean {number}{letter.upper()}i (1024-based) or {number}{decimal_suffix} (1000-based)?"


def format_size(size: int) -> str:
    """A size in bytes as the shortest exact quantity: `10Gi`, `1500`. `parse_size` reverses it."""
    for suffix, factor in reversed(_BINARY.items()):
        if size and size % factor == 0:
            return f"{size // factor}{suffix}"
    return str(size)


def humanize_size(size: float) -> str:
    """A size in bytes for people, to three digits or so: `1.50GiB`, `0.00B`. Not exact; not for parsing."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
    value = float(size)
    for unit in units[:-1]:
        # 1023.996 would print as "1024.00".
        if abs(value) < 1023.995:
            return f"{value:.2f}{unit}"
        value /= 1024
    return f"{value:.2f}{units[-1]}"


def parse_ratio(value: object) -> float:
    """A share between 0 and 1.

    Args:
        value: `"0.95"`, `"95%"`, or a number.

    Raises:
        SpecError: not a number, or outside 0..1.
    """
    hint = 'write a share between 0 and 1 ("0.95") or a percentage ("95%")'
    text = _text(value, "ratio", hint)
    percent = text.endswith("%")
    try:
        number = _decimal(text.removesuffix("%"))
    except InvalidOperation:
        number = None
    if number is None:
        raise SpecError(f"{_shown(text)!r} is not a ratio", hint=hint)
    ratio = number / 100 if percent else number
    if not 0 <= ratio <= 1:
        raise SpecError(f"ratio {text} is outside 0..1", hint=hint)
    return float(ratio)


def format_ratio(ratio: float) -> str:
    """A ratio as `parse_ratio` reads it: `0.95`."""
    return repr(float(ratio))


def _decimal(text: str) -> Decimal:
    """A plain decimal number. Raises InvalidOperation for NaN, infinities, `1_0`, other scripts' digits."""
    if len(text) > _MAX_TEXT or not re.fullmatch(
        r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", text
    ):
        raise InvalidOperation
    return Decimal(text)


def parse_duration(value: object) -> float:
    """Seconds of a duration in Go's notation.

    Args:
        value: `"30s"`, `"1h30m"`, `"500ms"`, or `0`.

    Raises:
        SpecError: no unit, an unknown unit, or negative.
    """
    text = _text(value, "duration", _DURATION_HINT)
    if text in ("0", "+0", "-0"):
        return 0.0
    body = text.removeprefix("+")
    total, position = Decimal(0), 0
    while len(body) <= _MAX_TEXT and (part := _DURATION_PART.match(body, position)):
        total += Decimal(part[1]) * _DURATION_UNITS[part[2]]
        position = part.end()
    if position == 0 or position != len(body):
        unit_missing = re.fullmatch(r"[0-9]+(\.[0-9]+)?", body) and len(body) <= _MAX_TEXT
        hint = f"did you mean {body}s?" if unit_missing else _DURATION_HINT
        raise SpecError(f"{_shown(text)!r} is not a duration", hint=hint)
    return float(total)


def format_duration(seconds: float) -> str:
    """Seconds as `parse_duration` reads them: `30s`, `0.5s`, `300s`."""
    text = format(Decimal(repr(float(seconds))), "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "s"


@dataclass(frozen=True)
class Quota:
    """How much of a tier may be used: a number of bytes, a share of the device, or what is spare. Exactly one is set.

    Args:
        size: bytes.
        ratio: share of the device's capacity (of the node's memory, for a memory tier), above 0 and up to 1.
        auto: whether it follows spare memory.
    """

    size: int | None = None
    ratio: float | None = None
    auto: bool = False

    def __str__(self) -> str:
        if self.auto:
            return "auto"
        if self.size is not None:
            return format_size(self.size)
        text = format(Decimal(repr(self.ratio)) * 100, "f")
        return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"


def parse_quota(value: object) -> Quota:
    """A tier's quota: a size (`"10Gi"`), a percentage (`"20%"`), or `"auto"`.

    Raises:
        SpecError: neither, or nothing at all (zero).
    """
    if isinstance(value, Quota):
        return value
    text = _text(value, "quota", "write a size (10Gi) or a percentage of the device (20%)")
    if text == "auto":
        return Quota(auto=True)
    if text.endswith("%"):
        ratio = parse_ratio(text)
        quota = Quota(ratio=ratio)
    else:
        quota = Quota(size=parse_size(text))
    if not (quota.size or quota.ratio):
        raise SpecError(f"quota {text} is zero", hint="remove the level, or give it space")
    return quota


def _text(value: object, kind: str, hint: str) -> str:
    """A YAML scalar as text. Booleans are ints in Python, and never meant as numbers."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SpecError(f"a {kind} must be a string or a number", hint=hint)
    if isinstance(value, int) and abs(value) > 10**40:
        raise SpecError(f"a {kind} of that many digits is out of range", hint=hint)
    return value if isinstance(value, str) else str(value)


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
