"""Every promise of docs/SEMANTICS.md names the tests that prove it, and those tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLAIM = re.compile(r"^- \*\*\[(\d+\.\d+)\]\*\* (.*?)(?=^- |^#|^\||\Z)", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")
UNTESTED = "not tested yet"

TEXT = (ROOT / "docs" / "SEMANTICS.md").read_text()
CLAIMS = dict(CLAIM.findall(TEXT))


def names_in(path: str) -> set[str]:
    """The tests of a file as pytest names them: `test_x` and `TestY::test_x`."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)
            }
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_every_claim_is_found() -> None:
    marked = re.findall(r"^- \*\*\[(\d+\.\d+)\]\*\*", TEXT, re.MULTILINE)
    assert marked
    assert sorted(CLAIMS) == sorted(marked), "a claim is numbered twice, or its text is not understood"


@pytest.mark.parametrize("number", sorted(CLAIMS))
def test_a_claim_names_its_tests(number: str) -> None:
    named = TEST.findall(CLAIMS[number])
    assert named or UNTESTED in CLAIMS[number]
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert name in names_in(path), f"{path} has no {name}"
