"""How many workers a dataset needs: from what its workers report, a number and the reason for it.

Not from how full they are, for a cache is full after a while whatever its size. More workers, if

- what they evict is asked for again, so often that the store would be spared a worker's quota in `Policy.keep_s`
  (`ghosts` tells what a larger cache would have had); or
- a worker sends or fetches more than it should, so that readers wait for its network.

Fewer, if what was read lately fits in fewer, and their load too; the least there may be, if nobody reads. The two
directions have a gap between them, and time must pass: see `Policy`. Why so, and what a day of 1,000 nodes makes of
it: docs/design/2026-11-25-autoscaling.md.

`observations` holds what goes in: a window of observations. What comes out holds a state for the next decision.

Pure: no clock, no Ray. Times are seconds of any clock that does not jump.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from raycache.errors import RaycacheError
from raycache.ghosts import EXTRA
from raycache.observations import Observation, latest, span, summed
from raycache.spec import humanize_size

Cause = Literal["bounds", "idle", "wake", "churn", "load", "fits", "hold"]
"""Why a target is what it is: the bounds changed; nobody reads; somebody does again; evicted data is asked for again;
a worker has too much to serve; fewer are enough; nothing is to be changed."""


@dataclass(frozen=True)
class Bounds:
    """Between what the number of workers may be.

    Args:
        min: at least this many, 0 for none when nobody reads.
        max: at most this many; None for no bound of its own.
        nodes: nodes that could have a worker now.
        may_ask: whether more nodes than there are may be asked for, up to `max`; else `nodes` is a bound, too.
    """

    min: int
    max: int | None
    nodes: int
    may_ask: bool = False

    @property
    def most(self) -> int:
        """The greatest number allowed; never below `min`."""
        if self.max is None:
            return max(self.min, self.nodes)
        return max(self.min, self.max if self.may_ask else min(self.max, self.nodes))


@dataclass(frozen=True)
class Policy:
    """What the decision goes by. The defaults are those of docs/design/2026-11-25-autoscaling.md.

    Args:
        keep_s: a byte is worth its place if it is read again within so many seconds: the rule that Gray and Putzolu
            (SIGMOD 1987) made for memory and disk. Less saves workers, more saves traffic of the store.
        fit: share of the remaining quota that the warm data may take after a worker has left. Below the low watermark
            of a tier (0.7, where eviction stops), for what comes in has to find room, too.
        uplink: bytes per second that a worker's network carries each way (10 Gbit/s).
        busy: share of it from which on a worker counts as too busy; queues grow steeply above.
        calm: share of `busy` that the load of those who remain must stay below.
        tolerance: deviation that is not acted upon (that of Kubernetes' HorizontalPodAutoscaler).
        throttled: share of refused requests from which on the store counts as throttling.
        throttled_worth: how much more a byte is worth while it does.
        look_s: seconds that must be seen, since the last change, before more workers are asked for; what they
            report in it is averaged.
        calm_s: seconds for which fewer must have been enough, since the last change, before some leave. (The
            HorizontalPodAutoscaler's is 300 s, for pods that have nothing to lose.) Who came stays for `keep_s`: not
            earlier does it show whether what it took in is read again.
        again_s: seconds after some have left before more may come again.
        idle_s: seconds without a read after which only the least number remains.
        growth: factor by which one decision may grow the workers, or four more (again the autoscaler's).
        shrink: share of the workers that one decision may take away: what they hold has to be moved.
        try_share: by how much to grow for one worker that is too busy while the others are not.
    """

    keep_s: float = 3600.0
    fit: float = 0.6
    uplink: float = 1.25e9
    busy: float = 0.6
    calm: float = 0.7
    tolerance: float = 0.1
    throttled: float = 0.01
    throttled_worth: float = 2.0
    look_s: float = 120.0
    calm_s: float = 1800.0
    again_s: float = 600.0
    idle_s: float = 1800.0
    growth: float = 2.0
    shrink: float = 0.25
    try_share: float = 0.25


@dataclass(frozen=True)
class State:
    """What the next decision must know of those before it.

    Args:
        changed_at: when the number was last changed.
        direction: 1 if it grew then, -1 if it shrank, 0 if the bounds made it or it never was changed.
        asleep: how many there were when they became idle; 0 if they are not.
        tried: bytes per second of the busiest worker when more were asked for because of it alone; 0 if it has been
            relieved since.
    """

    changed_at: float = -math.inf
    direction: int = 0
    asleep: int = 0
    tried: float = 0.0

    def to_wire(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        changed_at = None if self.changed_at == -math.inf else self.changed_at
        return {
            "changed_at": changed_at,
            "direction": self.direction,
            "asleep": self.asleep,
            "tried": self.tried,
        }

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> State:
        """The state that `to_wire` described. Raises RaycacheError if it is none."""
        try:
            changed_at = -math.inf if data["changed_at"] is None else float(data["changed_at"])
            return cls(changed_at, int(data["direction"]), int(data["asleep"]), float(data["tried"]))
        except (KeyError, TypeError, ValueError):
            raise RaycacheError("what was kept of the autoscaler is not a state of it") from None


@dataclass(frozen=True)
class Decision:
    """How many workers there should be.

    Args:
        at: when it was made.
        current: how many there were to be until then.
        target: how many there should be; within the bounds.
        cause: see `Cause`.
        reason: for a person to read, with the figures.
        state: for the next decision.
    """

    at: float
    current: int
    target: int
    cause: Cause
    reason: str
    state: State


def decide(
    window: Sequence[Observation], current: int, bounds: Bounds, policy: Policy, state: State, now: float
) -> Decision:
    """How many workers a dataset should have.

    Args:
        window: observations, oldest first; those older than `Policy.calm_s` are not looked at.
        current: how many it should have had until now.
        bounds: between what the number must be.
        policy: what to go by.
        state: that of the last decision; `State()` for the first.
        now: seconds, of the clock of the observations.
    """

    def to(target: int, cause: Cause, reason: str, **changes: Any) -> Decision:
        following = replace(state, **changes)
        if target != current:
            direction = 0 if cause == "bounds" else 1 if target > current else -1
            following = replace(following, changed_at=now, direction=direction)
        return Decision(now, current, target, cause, reason, following)

    within = min(max(current, bounds.min), bounds.most)
    if within != current:
        return to(within, "bounds", f"{_limits(bounds)}, and there were to be {current}")
    seen = [each for each in window if now - policy.calm_s < each.at <= now]
    if not seen:
        return to(current, "hold", "no worker has reported yet")
    last = seen[-1]
    idle_s = min(last.idle_s, now - state.changed_at) if state.direction > 0 else last.idle_s
    if idle_s >= policy.idle_s:
        if current == bounds.min:
            return to(current, "hold", f"{_quiet(last.idle_s)}; {current} is the least there may be")
        return to(bounds.min, "idle", _quiet(last.idle_s), asleep=current, tried=0.0)
    if state.asleep or current == 0:
        # Not subject to the time between opposite changes: to fall asleep took longer.
        target = min(max(current, state.asleep, 1), bounds.most)
        reason = (
            f"data is read again, {_count(target)} when it last was"
            if state.asleep
            else "data is read, or is about to be"
        )
        return to(target, "hold" if target == current else "wake", reason, asleep=0)
    state = replace(state, tried=_still_tried(seen, policy, state))
    since = [each for each in seen if each.at - each.seconds >= state.changed_at]
    lately = latest(since, policy.look_s)
    more = _more(lately, current, policy, state)
    if more.target > current:
        target = min(more.target, bounds.most, max(math.floor(policy.growth * current), current + 4))
        if target == current:
            return to(current, "hold", f"{more.reason}; wants {more.target}, but {_limits(bounds)}")
        if state.direction < 0 and now - state.changed_at < policy.again_s:
            return to(
                current,
                "hold",
                f"{more.reason}; wants {more.target}, but some left only {now - state.changed_at:.0f} s ago",
            )
        held = f"; wants {more.target}, {_count(target)} for now" if target < more.target else ""
        return to(target, more.cause, more.reason + held, tried=more.tried or state.tried)
    stays = policy.keep_s if state.direction > 0 else policy.calm_s
    if now - state.changed_at >= stays and span(since) + last.seconds > policy.calm_s:
        fewer = _fewer(since, current, policy, state)
        target = max(fewer.target, bounds.min, current - max(1, math.floor(policy.shrink * current)))
        if target < current:
            return to(target, "fits", fewer.reason)
    return to(current, "hold", more.reason)


@dataclass(frozen=True)
class _Wish:
    target: int
    cause: Cause
    reason: str
    tried: float = 0.0


def _more(lately: Sequence[Observation], current: int, policy: Policy, state: State) -> _Wish:
    """How many workers it would be worth to have; not fewer than there are."""
    seconds = span(lately)
    if seconds < policy.look_s * 0.9:
        return _Wish(
            current, "hold", f"looking since {seconds:.0f} s, before {policy.look_s:.0f} s nothing is changed"
        )
    if lately[-1].workers < current:
        return _Wish(current, "hold", f"{lately[-1].workers} of {_count(current)} have reported")
    total = summed(lately)
    refused = total.throttled / max(1, total.gets)
    churn = _churn(total, current, policy, refused)
    load = _load(total, current, policy, state, refused)
    best = max(churn, load, key=lambda wish: wish.target)
    if best.target > current:
        return best
    return _Wish(current, "hold", load.reason or churn.reason)


def _churn(total: Observation, current: int, policy: Policy, refused: float) -> _Wish:
    """Whether a larger cache would have had what was fetched again, and often enough to be worth its place.

    The classes are taken together until what they save is worth what they take: a working set that is read round and
    round gains nothing from half the room it needs, and everything from all of it.
    """
    throttles = refused >= policy.throttled
    horizon = policy.keep_s * (policy.throttled_worth if throttles else 1.0) / total.seconds
    here = total.quota / total.workers * current
    extra, saved, again = 0.0, 0, 0
    for step, regretted in zip(EXTRA, total.regretted, strict=True):
        again += regretted
        if (again - saved) * horizon >= (step - extra) * here and again > saved:
            extra, saved = step, again
    fetched, lost = _rate(total.store, total.seconds), _rate(again, total.seconds)
    if extra:
        refusing = ", which refuses requests," if throttles else ""
        would = (
            f"{1 + extra:.3g} times the room would spare the store{refusing} {_rate(saved, total.seconds)}"
        )
        return _Wish(
            math.ceil(current * (1 + extra)),
            "churn",
            f"of {fetched} from the store, {lost} had been evicted not long ago: {would}",
        )
    full = f"{100 * total.used / max(1, total.quota):.0f} % full"
    if throttles:
        why = f"the store refuses {100 * refused:.1f} % of the requests, but "
    else:
        why = f"{full}, and {fetched} from the store; " if total.store else ""
    if total.store and not again:
        return _Wish(current, "hold", f"{why}nothing of it had been here before: more workers would not help")
    if again:
        return _Wish(
            current, "hold", f"{why}{lost} of it had been evicted: too little to be worth more workers"
        )
    return _Wish(current, "hold", f"{full}, and nothing comes from the store")


def _load(total: Observation, current: int, policy: Policy, state: State, refused: float) -> _Wish:
    """Whether workers have more to send or to fetch than they should."""
    limit = policy.uplink * policy.busy
    above = limit * (1 + policy.tolerance)
    mean, busiest = total.moved / total.workers / total.seconds, total.busiest / total.seconds
    if busiest <= above:
        return _Wish(current, "hold", "")
    figures = (
        f"the busiest worker moves {humanize_size(busiest)}/s over {total.busiest_streams} streams, the mean"
        f" {humanize_size(mean)}/s; {humanize_size(limit)}/s is the most it should"
    )
    if refused >= policy.throttled and 2 * total.store > total.moved:
        why = f"most comes from the store, which refuses {100 * refused:.1f} % of the requests"
        return _Wish(current, "hold", f"{figures}, but {why}")
    if mean > above:
        return _Wish(math.ceil(current * mean / limit), "load", figures)
    if state.tried and busiest >= state.tried * (1 - policy.tolerance):
        return _Wish(
            current, "hold", f"{figures}, but more workers have not relieved it: it has what all want"
        )
    step = math.ceil(current * min(busiest / limit, 1 + policy.try_share))
    return _Wish(step, "load", figures, tried=busiest)


def _still_tried(seen: Sequence[Observation], policy: Policy, state: State) -> float:
    """`State.tried`, or 0 if the busiest worker has been relieved since."""
    busiest = seen[-1].busiest / seen[-1].seconds
    return 0.0 if busiest < policy.uplink * policy.busy * policy.calm else state.tried


def _fewer(since: Sequence[Observation], current: int, policy: Policy, state: State) -> _Wish:
    """How few workers would have been enough at any time in `since`; not more than there are."""
    if since[-1].workers < current:
        return _Wish(current, "hold", "")
    regretted = sum(sum(each.regretted) for each in since)
    need, warm, room = 1, 0, 0.0
    for each in since:
        if not each.workers or not each.quota:
            return _Wish(current, "hold", "")
        warm, room = max(warm, each.warm), each.quota / each.workers
        # One that is hot because of one object stays hot whatever the number of workers.
        moved = each.moved if state.tried else max(each.moved, each.busiest * each.workers)
        load = moved / each.seconds / (policy.uplink * policy.busy * policy.calm)
        need = max(need, math.ceil((each.warm + regretted) / (policy.fit * room)), math.ceil(load))
    if need >= current * (1 - policy.tolerance):
        return _Wish(current, "hold", "")
    cold = max(0, since[-1].used - warm)
    return _Wish(
        need,
        "fits",
        f"{humanize_size(warm)} were read in the last {policy.keep_s / 60:.0f} min, and {_count(need)} of"
        f" {humanize_size(room)} hold and serve them with room to spare; {humanize_size(cold)} of cold data may go",
    )


def _rate(amount: float, seconds: float) -> str:
    return f"{humanize_size(amount / seconds)}/s"


def _count(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def _quiet(idle_s: float) -> str:
    return (
        "nothing was ever read" if idle_s == math.inf else f"nothing has been read for {idle_s / 60:.0f} min"
    )


def _limits(bounds: Bounds) -> str:
    if bounds.min == bounds.most:
        return f"there are to be {bounds.min}"
    why = f"{bounds.nodes} nodes can have one" if bounds.most == bounds.nodes != bounds.max else "max"
    return f"{bounds.min} is the least and {bounds.most} the most there may be ({why})"
