"""Sizes, ratios, durations: Kubernetes' notation."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.errors import SpecError
from raycache.spec import quantities as q


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10Gi", 10 << 30),
        ("4Mi", 4 << 20),
        ("1.5Gi", 3 << 29),
        (".5Ki", 512),
        ("5.", 5),
        ("1k", 1000),
        ("1M", 10**6),
        ("1E", 10**18),  # exa, not an exponent
        ("1E3", 1000),
        ("12e6", 12_000_000),
        ("1e+3", 1000),
        ("5e-1", 1),
        ("+7", 7),
        ("0", 0),
        ("1500m", 2),  # rounded up to whole bytes, as Quantity.Value does
        ("0.1", 1),
        ("1u", 1),
        ("9223372036854775807", q.MAX_SIZE),
        (1024, 1024),
        (1.5, 2),
    ],
)
def test_sizes_as_kubernetes_reads_them(text: object, size: int) -> None:
    assert q.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10GB", "10Gi"),
        ("10gb", "10Gi"),
        ("10 Gi", "10Gi"),
        ("10gi", "10Gi"),
        ("10GiB", "10Gi"),
        ("5K", "5k"),
        ("", "quantity"),
        ("Gi", "quantity"),
        ("ten", "quantity"),
        ("1e", "1E (1000"),
        ("1e1.5", "quantity"),
        ("1_000", "quantity"),
        ("١٠", "quantity"),  # digits, but not ASCII ones
        ("0x10", "quantity"),
        ("-1Gi", "quantity"),
        ("nan", "quantity"),
        ("9223372036854775808", "quantity"),
        ("8Ei", "quantity"),
        ("1e999999999", "quantity"),
        pytest.param("9" * 5000, "quantity", id="huge text"),
        pytest.param(10**5000, "quantity", id="huge int"),
        (True, "quantity"),
        (None, "quantity"),
        ([1], "quantity"),
    ],
)
def test_what_is_no_size_says_what_was_meant(text: object, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        q.parse_size(text)
    assert hint in caught.value.hint
    assert len(str(caught.value)) < 300


@given(st.integers(0, q.MAX_SIZE))
def test_a_formatted_size_reads_back(size: int) -> None:
    assert q.parse_size(q.format_size(size)) == size


@given(
    st.integers(0, 10**6),
    st.integers(0, 999),
    st.sampled_from(["n", "u", "m", "", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]),
)
def test_sizes_are_exact_and_rounded_up(whole: int, thousandths: int, suffix: str) -> None:
    factors = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1)}
    factors |= {name: Fraction(1000**power) for power, name in enumerate("kMGT", 1)}
    factors |= {f"{name}i": Fraction(1024**power) for power, name in enumerate("KMGT", 1)}
    exact = (whole + Fraction(thousandths, 1000)) * factors[suffix]
    assert q.parse_size(f"{whole}.{thousandths:03d}{suffix}") == -(-exact.numerator // exact.denominator)


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_spec_error(text: str) -> None:
    for parse in (q.parse_size, q.parse_ratio, q.parse_duration, q.parse_quota):
        with contextlib.suppress(SpecError):
            parse(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0.00B"),
        (1536, "1.50KiB"),
        (5 << 30, "5.00GiB"),
        (1 << 70, "1024.00EiB"),
        ((1 << 20) - 1, "1.00MiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert q.humanize_size(size) == text


@pytest.mark.parametrize(
    ("text", "ratio"),
    [("0.95", 0.95), ("95%", 0.95), ("7%", 0.07), (0.7, 0.7), (1, 1.0), ("0", 0.0), ("1e-1", 0.1)],
)
def test_ratios(text: object, ratio: float) -> None:
    assert q.parse_ratio(text) == ratio


@pytest.mark.parametrize(
    "text", ["95", "1.01", "-0.1", "101%", "NaN", "inf", "%", "", "0,95", True, None, "1_0%"]
)
def test_what_is_no_ratio(text: object) -> None:
    with pytest.raises(SpecError):
        q.parse_ratio(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("500ms", 0.5),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("0", 0),
        (0, 0),
    ],
)
def test_durations_as_go_reads_them(text: object, seconds: float) -> None:
    assert q.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("30", "30s"),
        (30, "30s"),
        ("1d", "unit"),
        ("-5s", "unit"),
        ("s", "unit"),
        ("", "unit"),
        ("5 s", "unit"),
        (True, "unit"),
    ],
)
def test_what_is_no_duration(text: object, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        q.parse_duration(text)
    assert hint in caught.value.hint


@given(st.decimals(0, 10**9, allow_nan=False, places=3))
def test_a_formatted_duration_reads_back(seconds: Decimal) -> None:
    assert q.parse_duration(q.format_duration(float(seconds))) == float(seconds)


@given(st.integers(1, 10**4))
def test_a_formatted_percentage_reads_back(hundredths: int) -> None:
    quota = q.parse_quota(f"{Decimal(hundredths) / 100}%")
    assert q.parse_quota(str(quota)) == quota
    assert quota.size is None


def test_a_quota_may_follow_spare_memory() -> None:
    assert q.parse_quota("auto") == q.Quota(auto=True)
    assert str(q.parse_quota("auto")) == "auto"


@pytest.mark.parametrize("text", ["0", "0%", "0Gi", "101%", "", "-5Gi", False])
def test_a_quota_is_something(text: object) -> None:
    with pytest.raises(SpecError):
        q.parse_quota(text)
