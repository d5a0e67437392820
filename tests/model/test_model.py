"""The cache against a dict of bytes: on every front, under change, faults, restarts and eviction.

The same histories each time; `MODEL_EXAMPLES=1000 python -m pytest tests/model` runs that many new ones (`MODEL_STEPS`
steps each) and shrinks what it finds.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fuse.conftest import WHY_NOT
from tests.model.machine import CacheMachine
from tests.model.understores import Bucket, Directory, ThirdParty
from tests.support.s3proxy import S3Proxy
from tests.support.seaweed import SeaweedS3

STEPS = int(os.environ.get("MODEL_STEPS", "40"))

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "0"))

pytestmark = pytest.mark.timeout(0 if EXAMPLES else 300)  # Hypothesis takes its time to shrink what it finds


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What goes wrong here is meant to; and a record that is kept keeps its error's frames, with all that is open."""
    caplog.set_level(logging.CRITICAL, "raycache")


def run(new_store: Callable[[Path], ThirdParty], examples: int, *, mounts: bool = False) -> None:
    """Run so many histories, or as many others as MODEL_EXAMPLES says."""
    which: dict[str, Any] = {"max_examples": EXAMPLES}
    if not EXAMPLES:
        which = {"max_examples": examples, "derandomize": True, "phases": [Phase.generate]}
    run_state_machine_as_test(
        lambda: CacheMachine(new_store, mounts=mounts),  # type: ignore[arg-type]  # a factory will do
        settings=settings(
            stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck), **which
        ),
    )


def test_over_a_directory() -> None:
    run(Directory, 12)


def test_over_s3_that_fails(s3_server: SeaweedS3, s3_proxy: S3Proxy, bucket: str) -> None:
    numbers = itertools.count()
    run(lambda _: Bucket(s3_server, s3_proxy, bucket, f"p{next(numbers)}"), 8)


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_over_a_directory_and_by_a_mount() -> None:
    run(Directory, 3, mounts=True)
