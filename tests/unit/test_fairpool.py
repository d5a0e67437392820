"""Threads are shared out fairly, and calls that hang keep up nobody else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from raycache.fairpool import STRETCH, FairPool
from tests.support.stores import PATIENCE_S, Doing
from tests.support.waiting import until

WIDTH = 4


class Hanging:
    """Calls that hang until they are let go, and who they are."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._cond = threading.Condition()
        self._open = False

    def call(self, name: str) -> None:
        with self._cond:
            self.begun.append(name)
            self._cond.notify_all()
            assert self._cond.wait_for(lambda: self._open, PATIENCE_S)

    def await_begun(self, count: int) -> None:
        """Wait until so many calls hang."""
        with self._cond:
            assert self._cond.wait_for(lambda: len(self.begun) >= count, PATIENCE_S), self.begun

    def release(self) -> None:
        with self._cond:
            self._open = True
            self._cond.notify_all()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.release()


@pytest.fixture
def pool(hanging: Hanging) -> Iterator[FairPool]:
    made = FairPool("fair", WIDTH)
    yield made
    hanging.release()
    made.shutdown(cancel=False)


def healthy(pool: FairPool, group: str = "healthy") -> None:
    """A call that does not hang is run while everything else does."""
    done = threading.Event()
    pool.submit(group, done.set)
    assert done.wait(PATIENCE_S), "it waits behind those that hang"


def submit_for_ever(pool: FairPool) -> None:
    while True:
        pool.submit("b", lambda: None)


def test_one_group_alone_uses_the_whole_width_and_no_more(pool: FairPool, hanging: Hanging) -> None:
    for _ in range(2 * WIDTH):
        pool.submit("a", partial(hanging.call, "a"))
    hanging.await_begun(WIDTH)
    healthy(pool)  # so the queue was looked through since
    assert len(hanging.begun) == WIDTH


@pytest.mark.parametrize("stuck", [1, WIDTH, 4 * WIDTH])
def test_groups_that_hang_keep_up_nobody(pool: FairPool, hanging: Hanging, stuck: int) -> None:
    for _ in range(3 * WIDTH):
        for group in range(stuck):
            pool.submit(group, partial(hanging.call, str(group)))
    hanging.await_begun(max(stuck, WIDTH))
    for _ in range(100):
        healthy(pool)


def test_who_comes_while_another_has_all_threads_gets_his_share_of_them(
    pool: FairPool, hanging: Hanging
) -> None:
    for name in "ab":
        for _ in range(2 * WIDTH):
            pool.submit(name, partial(hanging.call, name))
    hanging.await_begun(WIDTH + WIDTH // 2)
    healthy(pool)
    assert hanging.begun.count("a") == WIDTH
    assert hanging.begun.count("b") == WIDTH // 2


def test_groups_take_turns(hanging: Hanging) -> None:
    pool = FairPool("fair", 1, most=1)
    pool.submit("gate", partial(hanging.call, "gate"))
    hanging.await_begun(1)
    order: list[str] = []
    for name in ["a", "a", "a", "b", "b", "c"]:
        pool.submit(name, partial(order.append, name))
    hanging.release()
    pool.shutdown(cancel=False)
    assert order == ["a", "b", "c", "a", "b", "a"]


def test_it_grows_to_its_bound_and_goes_on_when_calls_end(pool: FairPool, hanging: Hanging) -> None:
    most = WIDTH * STRETCH
    for group in range(2 * most):
        pool.submit(group, partial(hanging.call, str(group)))
    hanging.await_begun(most)
    late = threading.Event()
    pool.submit("late", late.set)
    assert len(hanging.begun) == most
    assert not late.is_set()
    hanging.release()
    assert late.wait(PATIENCE_S)
    hanging.await_begun(2 * most)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fair")]


def test_threads_beyond_the_width_end_when_there_is_nothing_for_them_to_do(
    pool: FairPool, hanging: Hanging
) -> None:
    for group in range(4 * WIDTH):
        pool.submit(group, partial(hanging.call, str(group)))
    hanging.await_begun(4 * WIDTH)
    assert len(threads()) == 4 * WIDTH
    hanging.release()
    until(lambda: len(threads()) <= WIDTH, "the others end")
    for _ in range(2 * WIDTH):
        healthy(pool)
    pool.shutdown(cancel=False)
    assert not threads()


def test_the_end_waits_for_threads_beyond_the_width(hanging: Hanging) -> None:
    pool, usual = FairPool("fair", 1), Hanging()
    pool.submit("a", partial(usual.call, "a"))
    pool.submit("b", partial(hanging.call, "b"))
    hanging.await_begun(1)
    usual.release()
    ending = Doing(partial(pool.shutdown, cancel=True))
    with pytest.raises(RuntimeError):
        submit_for_ever(pool)
    assert ending.is_alive()
    hanging.release()
    ending.result()
    assert not threads()


def test_a_call_for_which_no_thread_can_be_had_waits_for_one_that_is_there(
    pool: FairPool, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    for group in range(WIDTH):
        pool.submit(group, partial(hanging.call, str(group)))
    hanging.await_begun(WIDTH)
    late = threading.Event()

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        pool.submit("late", late.set)
    assert not late.is_set()
    hanging.release()
    assert late.wait(PATIENCE_S)


def test_a_call_that_raises_is_logged_and_costs_no_thread(
    pool: FairPool, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ValueError("a bug")

    with caplog.at_level(logging.ERROR):
        for _ in range(10 * WIDTH):
            pool.submit("a", broken)
        healthy(pool, "a")
    assert "a bug" in caplog.text


@pytest.mark.parametrize("cancel", [True, False])
def test_the_end_drops_what_is_queued_or_waits_for_it(hanging: Hanging, cancel: bool) -> None:
    pool = FairPool("fair", 1, most=1)
    ran: list[str] = []
    pool.submit("a", partial(hanging.call, "a"))
    hanging.await_begun(1)
    pool.submit("b", partial(ran.append, "b"))
    ending = Doing(partial(pool.shutdown, cancel=cancel))
    with pytest.raises(RuntimeError):  # from when it has begun to end, which is when the queue is dropped
        submit_for_ever(pool)
    hanging.release()
    ending.result()
    assert ran == ([] if cancel else ["b"])
