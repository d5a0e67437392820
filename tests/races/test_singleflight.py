"""Single flight: races held open with gates, not with sleeps."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from raycache.errors import UnderStoreError
from raycache.singleflight import SingleFlight

PATIENCE_S = 30.0


class Gate:
    """A function that counts its runs and returns (or raises) once it is let go."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.runs = 0
        self.error = error

    def __call__(self) -> str:
        self.runs += 1
        self.entered.set()
        assert self.release.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return f"run {self.runs}"


def wait_for_waiters(flight: SingleFlight[str, str], key: str, count: int) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.001)):
        if flight.waiters(key) == count:
            return
        pause.wait(0.001)
    raise AssertionError(f"{flight.waiters(key)} waiters, not {count}")


def test_callers_at_the_same_time_share_one_run() -> None:
    flight, gate = SingleFlight[str, str](), Gate()
    with ThreadPoolExecutor(9) as pool:
        leader = pool.submit(flight.do, "k", gate)
        assert gate.entered.wait(PATIENCE_S)
        others = [pool.submit(flight.do, "k", gate) for _ in range(8)]
        wait_for_waiters(flight, "k", 8)
        gate.release.set()
        assert {future.result() for future in [leader, *others]} == {"run 1"}
    assert gate.runs == 1


def test_a_failure_is_shared_and_not_kept() -> None:
    flight, gate = SingleFlight[str, str](), Gate(UnderStoreError("down"))
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(flight.do, "k", gate)]
        assert gate.entered.wait(PATIENCE_S)
        futures += [pool.submit(flight.do, "k", gate) for _ in range(2)]
        wait_for_waiters(flight, "k", 2)
        gate.release.set()
        assert [type(future.exception()) for future in futures] == [UnderStoreError] * 3
    assert gate.runs == 1
    gate.error = None
    assert flight.do("k", gate) == "run 2"


def test_nothing_is_remembered() -> None:
    flight, gate = SingleFlight[str, str](), Gate()
    gate.release.set()
    assert [flight.do("k", gate), flight.do("k", gate)] == ["run 1", "run 2"]
    assert flight.waiters("k") == 0


def test_keys_do_not_wait_for_each_other() -> None:
    flight, gate = SingleFlight[str, str](), Gate()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(flight.do, "slow", gate)
        assert gate.entered.wait(PATIENCE_S)
        assert flight.do("fast", lambda: "done") == "done"
        gate.release.set()
        assert slow.result() == "run 1"


def test_a_waiter_may_give_up_and_the_run_goes_on() -> None:
    flight, gate = SingleFlight[str, str](), Gate()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(flight.do, "k", gate)
        assert gate.entered.wait(PATIENCE_S)
        with pytest.raises(TimeoutError):
            flight.do("k", gate, timeout_s=0.001)
        gate.release.set()
        assert leader.result() == "run 1"
    assert gate.runs == 1


def test_an_interrupted_leader_is_replaced_by_a_waiter() -> None:
    """KeyboardInterrupt is about the leader's thread, not about what was asked for."""
    flight, interrupted, healthy = SingleFlight[str, str](), Gate(KeyboardInterrupt()), Gate()
    healthy.release.set()
    with ThreadPoolExecutor(3) as pool:
        leader = pool.submit(flight.do, "k", interrupted)
        assert interrupted.entered.wait(PATIENCE_S)
        others = [pool.submit(flight.do, "k", healthy) for _ in range(2)]
        wait_for_waiters(flight, "k", 2)
        interrupted.release.set()
        assert all(future.result().startswith("run") for future in others)
        assert isinstance(leader.exception(), KeyboardInterrupt)


def test_asking_for_the_own_key_is_an_error_and_no_deadlock() -> None:
    flight = SingleFlight[str, str]()
    with pytest.raises(RuntimeError, match="waits for itself"):
        flight.do("k", lambda: flight.do("k", lambda: "never"))
    assert flight.do("k", lambda: "again") == "again"
