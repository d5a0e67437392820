"""A short soak in every test run. A longer one: `make soak MINUTES=30`."""

from __future__ import annotations

import os
import secrets

import pytest

from tests.soak.__main__ import told
from tests.soak.soak import run

SECONDS = float(os.environ.get("SOAK_SECONDS", "180"))


@pytest.mark.leaks_allowed("Ray keeps connections of its own")
def test_readers_on_every_front_see_only_what_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    seed = secrets.randbelow(1 << 31)
    result = run(SECONDS, seed)
    with capsys.disabled():
        print(f"\nseed {seed}: {told(result)}")
    assert not result.problems, "\n".join(result.problems)
