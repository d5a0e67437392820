"""`scale`, `drain`, `undrain`."""

from __future__ import annotations

import pytest

from raycache.cli.scaling import replicas_of
from raycache.errors import SpecError
from tests.unit.cli.fakes import FakeBackend, invoke


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("all", "all"), ("3", 3), ("1:3", {"min": 1, "max": 3}), ("2:", {"min": 2})],
)
def test_numbers_of_nodes(text: str, wanted: object) -> None:
    assert replicas_of(text) == wanted


@pytest.mark.parametrize("text", ["", "some", "-1", ":3", "1:x", "1:2:3"])
def test_what_is_no_number_of_nodes_is_said(text: str) -> None:
    with pytest.raises(SpecError, match="not a number of nodes"):
        replicas_of(text)


def test_scale_says_what_it_did() -> None:
    backend = FakeBackend()
    result = invoke(backend, "scale", "imagenet", "1:3")
    assert (result.exit_code, result.stdout) == (0, "dataset/imagenet scaled\n")
    assert backend.fake.calls == [("scale", "imagenet", {"min": 1, "max": 3})]


def test_drain_says_what_was_moved_and_what_was_left_behind() -> None:
    backend = FakeBackend()
    backend.fake.left = {"no room at its owner": 1 << 20}
    result = invoke(backend, "drain", "0123", "--timeout", "5m")
    assert result.exit_code == 0
    assert backend.fake.calls == [("drain", "0123", 300.0, True)]
    assert result.stdout == "dataset/imagenet: 3.00MiB moved\nnode/0123 drained\n"
    assert "1.00MiB left behind: no room at its owner" in result.stderr


def test_drain_need_not_be_waited_for() -> None:
    backend = FakeBackend()
    result = invoke(backend, "drain", "0123", "--no-wait")
    assert result.exit_code == 0
    assert "being drained" in result.stdout
    assert backend.fake.calls == [("drain", "0123", 600.0, False)]


def test_undrain() -> None:
    result = invoke(FakeBackend(), "undrain", "0123")
    assert (result.exit_code, result.stdout) == (0, "node/0123 may hold datasets again\n")
