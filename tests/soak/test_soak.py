"""A short soak in every test run. A longer one: `make soak MINUTES=30`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable

import pytest

from tests.soak.__main__ import told
from tests.soak.soak import run

SECONDS = float(os.environ.get("SOAK_SECONDS", "180"))


@pytest.mark.timeout(1200 + 2 * SECONDS)
@pytest.mark.leaks_allowed("Ray keeps connections of its own")
def test_readers_on_every_front_see_only_what_is_promised(
    record_property: Callable[[str, object], None],
) -> None:
    seed = secrets.randbelow(1 << 31)
    result = run(SECONDS, seed)
    record_property("figures", f"seed {seed}: {told(result)}")
    assert not result.problems, "\n".join(result.problems)
