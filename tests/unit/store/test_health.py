"""The states of a tier's device: what makes it sick, how sick, and when it is believed to be well again."""

from __future__ import annotations

import errno
import math
import os
import threading
from pathlib import Path

import pytest

from raycache.errors import CacheFullError, UnderStoreError
from raycache.metrics import TIER_CHANGES, TIER_ERRORS, Metrics
from raycache.store import files, watching
from raycache.store.health import (
    AT_ONCE,
    FAILED,
    FIRST_PROBE_S,
    HANG_S,
    LAST_PROBE_S,
    REFUSALS,
    SUSPECT,
    WINDOW_S,
    Health,
    State,
)
from raycache.store.watching import PROBE, Watch
from tests.support.sickdisk import SickDisk


def error(code: int = errno.EIO) -> OSError:
    return OSError(code, os.strerror(code))


def sick(health: Health, times: int, code: int = errno.EIO, now: float = 0.0) -> list[bool]:
    return [health.failed(error(code), now) for _ in range(times)]


def test_one_bad_block_is_no_sickness() -> None:
    health = Health()
    for number in range(20):
        assert not health.failed(error(), number * WINDOW_S / (SUSPECT - 1))
    assert health.state is State.HEALTHY
    assert health.probe_at == math.inf


def test_several_errors_in_a_short_time_are() -> None:
    health = Health()
    assert sick(health, SUSPECT) == [False] * (SUSPECT - 1) + [True]
    assert (health.state, health.error) == (State.UNSTABLE, "Input/output error")
    assert health.probe_at == FIRST_PROBE_S


def test_many_faults_take_it_down() -> None:
    health = Health()
    changes = sick(health, FAILED + 5)
    assert [number for number, changed in enumerate(changes, 1) if changed] == [SUSPECT, FAILED]
    assert health.state is State.DOWN


@pytest.mark.parametrize("code", sorted(AT_ONCE))
def test_errors_that_say_it_of_the_whole_device(code: int) -> None:
    health = Health()
    assert health.failed(error(code), 0.0)
    assert health.state is State.UNSTABLE


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_a_device_that_takes_nothing_can_still_be_read(code: int) -> None:
    health = Health()
    sick(health, 100, code)
    assert not health.probed(error(code), 1.0)
    assert health.state is State.UNSTABLE


def test_errors_that_are_not_the_devices() -> None:
    health = Health()
    for code in (errno.ENOENT, errno.EACCES, errno.EMFILE, errno.EBADF):
        assert not any(sick(health, 100, code))
    for own in (
        CacheFullError("full"),
        UnderStoreError("the store failed"),
    ):  # their numbers are ENOSPC and EIO
        assert not any(health.failed(own, 0.0) for _ in range(100))
    assert not health.failed(OSError("the file is shorter than its object"), 0.0)
    assert health.state is State.HEALTHY


def test_probes_come_less_and_less_often() -> None:
    health = Health()
    sick(health, SUSPECT, now=100.0)
    now, waits = 100.0, []
    for _ in range(9):
        waits.append(health.probe_at - now)
        now = health.probe_at
        health.probed(error(), now)
    assert waits == [min(FIRST_PROBE_S * 2**n, LAST_PROBE_S) for n in range(9)]
    assert health.state is State.DOWN
    assert health.probed(None, now)
    assert (health.state, health.probe_at) == (State.HEALTHY, math.inf)
    assert not health.probed(None, now)


def test_a_relapse_is_believed_later_and_one_after_a_long_time_is_none() -> None:
    health = Health()
    sick(health, SUSPECT, now=0.0)
    health.probed(None, 5.0)
    assert sick(health, SUSPECT - 1, now=6.0) == [False] * (SUSPECT - 1)  # what was before does not count
    assert health.failed(error(), 6.0)
    assert health.probe_at == 6.0 + 2 * FIRST_PROBE_S
    health.probed(None, 20.0)
    sick(health, SUSPECT, now=10_000.0)
    assert health.probe_at == 10_000.0 + FIRST_PROBE_S


def test_a_call_that_does_not_return_takes_it_down() -> None:
    health = Health()
    assert not health.hung(HANG_S - 1, 0.0)
    assert health.hung(HANG_S, 0.0)
    assert (health.state, health.error) == (State.DOWN, "no answer for 20 s")
    assert not health.hung(HANG_S + 5, 5.0)


# -- watching ---------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_change_is_counted_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, metrics = SickDisk(monkeypatch, tmp_path), Metrics()
    watch = Watch(str(tmp_path), metrics, Clock())
    assert watch.report() == ("healthy", None, "")
    for _ in range(FAILED + 20):
        watch.failed(error())
    assert not watch.takes_new
    assert not watch.readable
    state, since, text = watch.report()
    assert (state, text) == ("down", "Input/output error")
    assert since is not None
    disk.fail(errno.EIO)
    assert not watch.probe()
    disk.heal()
    assert watch.probe()
    assert watch.takes_new
    watch.close()
    assert list(tmp_path.iterdir()) == []
    assert metrics.snapshot() == {TIER_ERRORS: FAILED + 20, TIER_CHANGES: 3}
    told = [record.message for record in caplog.records if str(tmp_path) in record.message]
    assert ["unstable" in told[0], "down" in told[1], "healthy" in told[2]] == [True] * 3
    assert len(told) == 3


@pytest.mark.parametrize("kind", ["create", "write", "read", "unlink"])
def test_a_probe_fails_with_whatever_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    disk = SickDisk(monkeypatch, tmp_path)
    watching.probe(str(tmp_path))
    disk.fail(errno.EIO, kind)
    with pytest.raises(OSError, match="Input/output"):
        watching.probe(str(tmp_path))
    disk.heal()
    watching.probe(str(tmp_path))  # whatever the last one left
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_gives_back_other_bytes_is_sick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(fd: int, buffer: memoryview, offset: int) -> int:
        buffer[:] = bytes(len(buffer))
        return len(buffer)

    monkeypatch.setattr(files, "pread_into", zeros)
    with pytest.raises(OSError, match="not what is read back"):
        watching.probe(str(tmp_path))


def test_the_prober_finds_out_by_itself_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycache.store.health.FIRST_PROBE_S", 0.0)
    well = threading.Event()
    monkeypatch.setattr(watching, "_log", _Heard(well))
    watch = Watch(str(tmp_path))
    watch._health._delay = 0.0  # no test waits five seconds
    watch.failed(error(errno.ENODEV))
    assert well.wait(60)
    assert watch.takes_new
    watch.close()
    assert not (tmp_path / PROBE).exists()


class _Heard:
    """A log that sets an event when it hears that a tier is well again."""

    def __init__(self, well: threading.Event) -> None:
        self._well = well

    def warning(self, text: str, *_: object) -> None:
        if "healthy" in text:
            self._well.set()

    error = warning


def test_a_hang_is_noticed_by_whoever_asks_and_lasts_until_it_is_over(tmp_path: Path) -> None:
    clock = Clock()
    watch = Watch(str(tmp_path), clock=clock)
    with watch.call():
        with watch.call():  # one inside another counts as one
            clock.now = HANG_S - 1
            assert watch.readable
        clock.now = HANG_S
        assert not watch.readable
        assert not watch.probe()  # a small write works, but the large one still hangs
    assert watch.probe()
    assert watch.readable
    watch.close()
