"""Trying again: exponential backoff with full jitter, or later if the store says so, inside a deadline.

Full jitter (each pause drawn from zero up to the exponential bound) is what spreads the retries of many
clients best: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from raycache.errors import CacheFullError, RaycacheError, TooManyFilesError, UnderStoreError
from raycache.metrics import STORE_RETRIES, STORE_THROTTLED, Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """A failed attempt.

    Args:
        error: what to raise for it.
        transient: whether the same call may succeed soon.
        after_s: seconds for which the store asked to be left alone (Retry-After, RFC 9110, section 10.2.3); 0 if it
            said nothing, or the client does not tell.
        unpartial: the answer was all of something where a part of an object was asked for.
        throttled: the store refused the request because there are too many.
    """

    error: RaycacheError
    transient: bool = False
    after_s: float = 0.0
    unpartial: bool = False
    throttled: bool = False


@dataclass(frozen=True)
class Backoff:
    """How long to go on.

    Args:
        deadline_s: seconds from the first attempt after which no other is begun.
        base_s: upper bound of the first pause, seconds; doubles with every attempt.
        cap_s: upper bound of every pause, seconds.
    """

    deadline_s: float = 60.0
    base_s: float = 0.1
    cap_s: float = 5.0

    def pause_s(self, attempt: int, draw: Callable[[float, float], float] = random.uniform) -> float:
        """Seconds to wait after the failed attempt number `attempt` (from 0)."""
        return draw(0.0, min(self.cap_s, self.base_s * 2.0 ** min(attempt, 32)))


QUICK = Backoff(deadline_s=3.0)
"""For checks that somebody waits for: a wrong endpoint should be told in seconds."""


class Retrier:
    """Runs calls against one store until they succeed, fail for good, or the deadline passes. Thread-safe.

    Args:
        judge: turns an exception of the store's client into a `Failure`.
        catch: the exception classes to hand to `judge`; others are bugs and pass.
        backoff: how long to go on.
        metrics: where retries are counted.
    """

    def __init__(
        self,
        judge: Callable[[Exception, str], Failure],
        catch: tuple[type[Exception], ...],
        backoff: Backoff,
        metrics: Metrics,
    ) -> None:
        self._judge = judge
        self._catch = catch
        self._backoff = backoff
        self._metrics = metrics
        self._closed = threading.Event()

    def close(self) -> None:
        """End all pauses; calls that wait for another attempt raise their last failure."""
        self._closed.set()

    def call(self, attempt: Callable[[], T], where: str, backoff: Backoff | None = None) -> T:
        """`attempt()`, repeated while its failures are transient.

        Args:
            attempt: one attempt; must be safe to repeat.
            where: the object, for messages.
            backoff: another policy for this call.

        Raises:
            RaycacheError: what the last failure was judged to be.
        """
        policy = backoff or self._backoff
        deadline = time.monotonic() + policy.deadline_s
        tries = 0
        while True:
            try:
                return attempt()
            except CacheFullError:
                raise  # of the one who takes the bytes, not of the store
            except self._catch as caught:
                failure = self._judge(caught, where)
                if failure.throttled:
                    self._metrics.add(STORE_THROTTLED)
                if not failure.transient:
                    # Not chained for display: the client's text may hold a signed URL.
                    raise failure.error from None
                left = deadline - time.monotonic()
                # What the store asks for, and then spread, so that not all come back at once. A store that wants more
                # time than there is gets all there is, and is asked once more.
                pause = policy.pause_s(tries)
                if failure.after_s:
                    pause = min(failure.after_s + pause, max(left, pause))
                tries += 1
                if pause > left or self._closed.wait(pause):
                    raise _given_up(failure.error, tries) from None
                self._metrics.add(STORE_RETRIES)
                log.info("attempt %d failed and is repeated: %s", tries, failure.error)


def _given_up(error: RaycacheError, tries: int) -> RaycacheError:
    if tries == 1:
        return error
    kind = TooManyFilesError if isinstance(error, TooManyFilesError) else UnderStoreError
    return kind(f"{error.what}; tried {tries} times", where=error.where, hint=error.hint)
