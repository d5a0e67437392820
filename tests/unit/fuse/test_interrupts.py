"""What signals mean for whoever waits for a request."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raycache.fuse.interrupts import UNKNOWN_AFTER_S, Fate, Interrupts, fate, fate_of

PATIENCE_S = 30.0


def mask(*numbers: int) -> str:
    return f"{sum(1 << number - 1 for number in numbers):016x}"


def status(
    pending: tuple[int, ...] = (),
    shared: tuple[int, ...] = (),
    blocked: tuple[int, ...] = (),
    ignored: tuple[int, ...] = (),
    caught: tuple[int, ...] = (),
) -> str:
    """What /proc/TID/status says of signals, among other things."""
    lines = {"Name": "Sig: Pnd", "Threads": "1", "SigQ": "0/95942", "SigPnd": mask(*pending)}
    lines |= {"ShdPnd": mask(*shared), "SigBlk": mask(*blocked), "SigIgn": mask(*ignored)}
    lines |= {"SigCgt": mask(*caught), "CapInh": "0" * 16}
    return "".join(f"{name}:\t{value}\n" for name, value in lines.items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (status(), Fate.STAYS),
        # What a Ctrl-C, or an end of the whole process, is by the time that anybody looks.
        (status(pending=(signal.SIGKILL,), shared=(signal.SIGINT,)), Fate.ENDS),
        (status(shared=(signal.SIGKILL,)), Fate.ENDS),
        (status(pending=(signal.SIGKILL,), blocked=(*range(1, 65),)), Fate.ENDS),
        (status(shared=(signal.SIGQUIT,)), Fate.ENDS),
        (status(pending=(signal.SIGSEGV,)), Fate.ENDS),
        (status(shared=(signal.SIGRTMIN + 3,)), Fate.ENDS),
        (status(shared=(signal.SIGTERM,), caught=(signal.SIGTERM,)), Fate.STAYS),
        (status(shared=(signal.SIGTERM,), ignored=(signal.SIGTERM,)), Fate.STAYS),
        (status(shared=(signal.SIGTERM,), blocked=(signal.SIGTERM,)), Fate.STAYS),
        (status(shared=(signal.SIGTERM, signal.SIGHUP), caught=(signal.SIGTERM,)), Fate.ENDS),
        (status(pending=(signal.SIGURG,)), Fate.STAYS),
        (status(pending=(signal.SIGURG,), caught=(signal.SIGURG,)), Fate.STAYS),
        (status(shared=(signal.SIGCHLD, signal.SIGWINCH, signal.SIGCONT)), Fate.STAYS),
        (status(shared=(signal.SIGTSTP, signal.SIGSTOP)), Fate.STAYS),
        ("", Fate.UNKNOWN),
        ("Name:\tx\nSigPnd:\t0\n", Fate.UNKNOWN),
    ],
)
def test_what_signals_mean(text: str, expected: Fate) -> None:
    assert fate(text) is expected


def test_the_running_kernel_tells_it() -> None:
    assert fate_of(threading.get_native_id()) is Fate.STAYS
    assert fate_of(0) is Fate.UNKNOWN
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert fate_of(ended.pid) is Fate.UNKNOWN


_BLOCKS = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
print(flush=True)
sys.stdin.read()
"""


def test_a_signal_that_is_blocked_ends_nobody() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _BLOCKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        os.kill(child.pid, signal.SIGTERM)
        assert f"{1 << signal.SIGTERM - 1:016x}" in Path(f"/proc/{child.pid}/status").read_text()
        assert fate_of(child.pid) is Fate.STAYS


class _Requests:
    """Requests that wait, and those that were given up."""

    def __init__(self, *waiting: int) -> None:
        self.waiting = set(waiting)
        self.given_up = threading.Event()

    def give_up(self, unique: int) -> None:
        self.waiting.discard(unique)
        self.given_up.set()


def test_somebody_unknown_is_given_up_after_a_while() -> None:
    requests = _Requests(2)
    times = iter([0.0, 1.0, UNKNOWN_AFTER_S, UNKNOWN_AFTER_S + 1])
    interrupts = Interrupts(
        requests.waiting.__contains__,
        requests.give_up,
        look=lambda tid: Fate.UNKNOWN,
        clock=lambda: next(times),
        every_s=0.001,
    )
    interrupts.add(2, 0)
    assert requests.given_up.wait(PATIENCE_S)
    interrupts.close()
    assert next(times, None) is None


def test_its_thread_ends_with_what_it_watches() -> None:
    requests = _Requests(2, 4)
    looked = threading.Event()

    def look(tid: int) -> Fate:
        if threading.current_thread().name == "raycache-fuse-interrupts":
            looked.set()
        return Fate.STAYS

    interrupts = Interrupts(requests.waiting.__contains__, requests.give_up, look=look, every_s=0.001)
    for round_ in (2, 4):
        interrupts.add(round_, 1)
        assert looked.wait(PATIENCE_S)
        (thread,) = (one for one in threading.enumerate() if one.name == "raycache-fuse-interrupts")
        requests.waiting.discard(round_)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        looked.clear()
    interrupts.add(6, 1)  # answered already
    assert not requests.given_up.is_set()
    interrupts.close()
