"""The autoscaler's decisions, on recorded shapes of load and on arbitrary ones."""

from __future__ import annotations

import itertools
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.autoscaling import Bounds, Decision, Policy, State, decide
from raycache.blocks import GiB
from raycache.errors import RaycacheError
from raycache.ghosts import EXTRA, Ghosts
from raycache.observations import Observation, WorkerReport, observe

ROOM = 50
"""Objects of 1 GiB that a worker of the traces holds."""

POLICY = Policy()
BUSY = POLICY.uplink * POLICY.busy
FREE = Bounds(min=0, max=None, nodes=1000)


class Cluster:
    """A cluster with a load: every minute some objects are read, and the autoscaler is asked. Least recently used out
    first; a change takes effect at once, and the warmest data stays."""

    def __init__(self, workers: int = 1, bounds: Bounds = FREE, policy: Policy = POLICY) -> None:
        self.bounds, self.policy = bounds, policy
        self.now = 0.0
        self.workers = workers
        self.state = State()
        self.cache: OrderedDict[str, float] = OrderedDict()
        self.ghosts = Ghosts(workers * ROOM, workers * ROOM, policy.keep_s)
        self.window: list[Observation] = []
        self.decisions: list[Decision] = []
        self.last_read = 0.0
        self.fetched = 0

    def minute(self, keys: Iterable[str], busiest: float = 0.0, throttled: float = 0.0) -> Decision:
        """Read objects; `busiest`: bytes/s of one worker beside its share; `throttled`: share of refused requests."""
        self.now += 60
        read = missed = 0
        before = self.ghosts.regretted
        for key in keys:
            self.last_read, read = self.now, read + 1
            if key not in self.cache:
                missed += 1
                self.ghosts.fetched(key, 1, self.now)
            self.cache[key] = self.now
            self.cache.move_to_end(key)
            self._fit()
        self.fetched += missed
        n = self.workers
        per_worker = read * GiB // max(1, n)
        self.window.append(
            Observation(
                at=self.now,
                seconds=60,
                idle_s=self.now - self.last_read,
                workers=n,
                quota=n * ROOM * GiB,
                used=len(self.cache) * GiB,
                warm=sum(at > self.now - self.policy.keep_s for at in self.cache.values()) * GiB,
                read=read * GiB,
                missed=missed * GiB,
                store=missed * GiB,
                regretted=tuple(
                    (new - old) * GiB for new, old in zip(self.ghosts.regretted, before, strict=True)
                ),
                gets=missed * 128,
                throttled=int(missed * 128 * throttled),
                busiest=max(per_worker, int(busiest * 60)),
                busiest_streams=7,
                moved=read * GiB + int(busiest * 60),
            )
        )
        del self.window[:-60]
        decision = decide(self.window, n, self.bounds, self.policy, self.state, self.now)
        self.decisions.append(decision)
        self.state, self.workers = decision.state, decision.target
        self.ghosts.resize(self.workers * ROOM, self.workers * ROOM)
        self._fit()
        return decision

    def _fit(self) -> None:
        while len(self.cache) > self.workers * ROOM:
            victim, read_at = self.cache.popitem(last=False)
            self.ghosts.evicted(victim, 1, read_at)

    def changes(self) -> list[Decision]:
        return [decision for decision in self.decisions if decision.target != decision.current]


def loop(objects: int, per_minute: int = 20) -> Callable[[], list[str]]:
    """Reads `objects` round and round."""
    source = itertools.cycle(range(objects))
    return lambda: [str(key) for key in itertools.islice(source, per_minute)]


def scan(per_minute: int = 20) -> Callable[[], list[str]]:
    """Reads everything once."""
    source = itertools.count()
    return lambda: [f"scan-{key}" for key in itertools.islice(source, per_minute)]


# -- traces -----------------------------------------------------------------------------------------------------


def test_a_scan_never_gets_more_workers_however_full_they_are() -> None:
    cluster, reads = Cluster(2), scan()
    for _ in range(180):
        decision = cluster.minute(reads())
    assert cluster.changes() == []
    assert decision.reason == (
        "100 % full, and 341.33MiB/s from the store; nothing of it had been here before: more workers would not help"
    )


def test_a_set_that_does_not_fit_gets_the_room_it_needs_and_no_more_then_rests() -> None:
    cluster, reads = Cluster(1), loop(180)
    for _ in range(60):
        cluster.minute(reads())
    assert {decision.cause for decision in cluster.changes()} == {"churn"}
    assert 4 <= cluster.workers <= 6  # 180 objects are 3.6 workers
    changes, fetched = len(cluster.changes()), cluster.fetched
    for _ in range(300):
        cluster.minute(reads())
    assert len(cluster.changes()) == changes
    assert cluster.fetched == fetched, "nothing is fetched any more"
    assert "times the room would spare the store 170.67MiB/s" in cluster.changes()[0].reason


def test_a_set_that_is_read_again_too_seldom_is_not_worth_its_room() -> None:
    """Round and round in 80 minutes, as nobody would keep it that long: it neither grows nor wavers."""
    for start in (1, 2):
        cluster, reads = Cluster(start), loop(80, per_minute=1)
        for _ in range(900):
            cluster.minute(reads())
        assert [decision.target for decision in cluster.changes()] in ([], [1])


def test_a_growing_set_is_followed() -> None:
    cluster = Cluster(1)
    for hour in range(6):
        reads = loop(80 * (hour + 1), per_minute=40)
        for _ in range(60):
            cluster.minute(reads())
        assert cluster.workers * ROOM >= 80 * (hour + 1)
    assert cluster.workers * ROOM <= 2 * 480
    assert not [decision for decision in cluster.changes() if decision.target < decision.current]


def test_when_the_set_shrinks_workers_leave_and_what_is_read_stays() -> None:
    cluster, large, small = Cluster(8), loop(300, per_minute=40), loop(60)
    for _ in range(30):
        cluster.minute(large())
    for _ in range(30):
        cluster.minute(small())
    fetched = cluster.fetched
    for _ in range(300):
        cluster.minute(small())
    assert cluster.workers == 2
    assert cluster.fetched == fetched, "what is read was never dropped"
    shrinking = cluster.changes()
    assert {decision.cause for decision in shrinking} == {"fits"}
    assert "hold and serve them with room to spare" in shrinking[-1].reason
    assert "of cold data may go" in shrinking[-1].reason


def test_no_worker_leaves_while_what_it_holds_is_warm() -> None:
    """Full of data that was read 50 minutes ago, with nobody reading now but a few."""
    cluster, large, small = Cluster(4), loop(190, per_minute=40), loop(5)
    for _ in range(15):
        cluster.minute(large())
    for _ in range(45):
        cluster.minute(small())
    assert cluster.workers == 4
    for _ in range(120):
        cluster.minute(small())
    assert cluster.workers == 1


def test_nobody_reads_then_there_is_none_and_all_are_back_with_the_first_read() -> None:
    cluster, reads = Cluster(4), loop(150)
    for _ in range(30):
        cluster.minute(reads())
    for _ in range(60):
        asleep = cluster.minute([])
    assert (cluster.workers, asleep.cause) == (0, "hold")
    assert "nothing has been read for 60 min" in asleep.reason
    woken = cluster.minute(reads())
    assert (woken.target, woken.cause) == (4, "wake")
    assert woken.reason == "data is read again, 4 workers when it last was"


def test_the_least_number_stays_when_nobody_reads() -> None:
    cluster = Cluster(6, replace(FREE, min=2))
    for _ in range(90):
        cluster.minute([])
    assert cluster.workers == 2
    assert [decision.cause for decision in cluster.changes()] == ["idle"]


def test_a_new_dataset_has_the_idle_time_to_be_read_in() -> None:
    cluster = Cluster(4)
    for _ in range(29):
        assert cluster.minute([]).target == 4
    assert [cluster.minute([]).target for _ in range(2)] == [0, 0]


def test_a_new_dataset_gets_a_worker_loses_it_unread_and_gets_it_back_with_a_read() -> None:
    cluster = Cluster(0)
    targets = [cluster.minute([]).target for _ in range(60)]
    assert (targets[0], targets[-1]) == (1, 0)
    assert cluster.minute(["a"]).target == 1
    assert len(cluster.changes()) == 3


def test_bursts_do_not_make_it_go_up_and_down() -> None:
    """Two minutes of reading every quarter of an hour: what the bursts need stays."""
    cluster, reads = Cluster(1), loop(150, per_minute=100)
    for minute in range(24 * 60):
        cluster.minute(reads() if minute % 15 < 2 else [])
    assert 3 <= cluster.workers <= 6
    assert len(cluster.changes()) <= 4


def test_a_day_and_a_night_make_few_changes() -> None:
    """The set that is read grows and shrinks with the sun, over three days."""
    cluster = Cluster(1, replace(FREE, min=1))
    rounds = itertools.count()
    for minute in range(3 * 24 * 60):
        objects = int(30 + 300 * max(0.0, math.sin(2 * math.pi * minute / 1440)))
        cluster.minute([str(next(rounds) % objects) for _ in range(max(1, objects // 10))])
    by_day = [decision.current for decision in cluster.decisions]
    assert max(by_day) >= 7
    assert min(by_day[1440:]) <= 2, "at night they leave"
    directions = [decision.target > decision.current for decision in cluster.changes()]
    turns = sum(a != b for a, b in itertools.pairwise(directions))
    assert turns <= 3 * 2 + 2
    assert len(directions) <= 3 * 16


def test_a_worker_with_too_much_to_serve_gets_help() -> None:
    cluster, reads = Cluster(3), loop(100, per_minute=30 * 60 * 3 // 20)
    for _ in range(30):
        cluster.minute(reads())
    moved = 270 * GiB / 60 / cluster.workers
    assert POLICY.calm * BUSY <= moved <= BUSY * (1 + POLICY.tolerance)
    assert {decision.cause for decision in cluster.changes()} == {"load"}
    assert "the most it should" in cluster.changes()[0].reason


def test_a_hot_object_gets_one_try_then_it_says_that_more_do_not_help() -> None:
    cluster, reads = Cluster(8), loop(350)
    for _ in range(180):
        decision = cluster.minute(reads(), busiest=1.1e9)
    assert [(each.current, each.target, each.cause) for each in cluster.changes()] == [(8, 10, "load")]
    assert "more workers have not relieved it: it has what all want" in decision.reason
    for _ in range(30):  # the heat is over, and comes back: it is worth another try
        cluster.minute(reads())
    for _ in range(30):
        cluster.minute(reads(), busiest=1.1e9)
    assert cluster.changes()[-1].cause == "load"


def test_a_store_that_refuses_first_reads_is_not_pressed_by_more_workers() -> None:
    cluster, reads = Cluster(2), scan(per_minute=200)
    for _ in range(60):
        decision = cluster.minute(reads(), throttled=0.2)
    assert cluster.changes() == []
    assert "most comes from the store, which refuses 20.0 % of the requests" in decision.reason


def test_a_store_that_refuses_makes_room_worth_more() -> None:
    """Most is read once, a tenth again after 13 minutes: it would take three times the room."""
    for throttled, workers in ((0.0, 1), (0.2, 3)):
        cluster, reads = Cluster(1), scan(per_minute=8)
        for minute in range(300):
            cluster.minute([*reads(), f"twice-{minute}", f"twice-{minute - 13}"], throttled=throttled)
        assert cluster.workers == workers
    assert "which refuses requests," in cluster.changes()[0].reason


def test_at_the_bound_it_says_what_it_would_have_wanted() -> None:
    cluster, reads = Cluster(2, Bounds(min=1, max=None, nodes=2)), loop(180)
    for _ in range(30):
        decision = cluster.minute(reads())
    assert cluster.changes() == []
    assert (
        "; wants 4, but 1 is the least and 2 the most there may be (2 nodes can have one)" in decision.reason
    )
    cluster.bounds = Bounds(min=1, max=9, nodes=2, may_ask=True)  # more nodes may be asked for
    for _ in range(10):
        cluster.minute(reads())
    assert cluster.workers >= 4


# -- properties -------------------------------------------------------------------------------------------------

bytes_ = st.one_of(st.just(0), st.integers(0, 50 * 60 * GiB))


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    workers = draw(st.integers(0, 40))
    quota = workers * ROOM * GiB
    used = draw(st.integers(0, quota))
    return Observation(
        at=0.0,
        seconds=draw(st.sampled_from((15.0, 60.0, 300.0))),
        idle_s=draw(st.sampled_from((0.0, 1000.0, 1800.0, 1e6))),
        workers=workers,
        quota=quota,
        used=used,
        warm=draw(st.integers(0, used)),
        store=draw(bytes_),
        regretted=tuple(draw(st.lists(bytes_, min_size=len(EXTRA), max_size=len(EXTRA)))),
        gets=draw(st.integers(0, 1000)),
        throttled=draw(st.integers(0, 1000)),
        busiest=draw(bytes_),
        moved=draw(bytes_),
    )


def run(
    shapes: list[Observation], bounds: Bounds, start: int, rounds: int, obedient: bool = False
) -> list[Decision]:
    """Decisions over shapes of load that come round and round; `obedient`: all workers wanted are there."""
    now, current, state = 0.0, start, State()
    window: list[Observation] = []
    decisions = []
    for shape in itertools.islice(itertools.cycle(shapes), rounds):
        now += shape.seconds
        if obedient and shape.workers:
            quota = current * ROOM * GiB
            shape = replace(
                shape, workers=current, quota=quota, used=min(shape.used, quota), warm=min(shape.warm, quota)
            )
        window = [*window[-59:], replace(shape, at=now)]
        decision = decide(window, current, bounds, POLICY, state, now)
        state = State.from_wire(json.loads(json.dumps(decision.state.to_wire())))
        assert state == decision.state
        current = decision.target
        decisions.append(decision)
    return decisions


some_bounds = st.builds(
    lambda low, more, nodes, ask: Bounds(low, None if more is None else low + more, nodes, ask),
    st.integers(0, 10),
    st.one_of(st.none(), st.integers(0, 30)),
    st.integers(0, 60),
    st.booleans(),
)


@given(st.lists(observations(), min_size=1, max_size=6), some_bounds, st.integers(0, 50), st.booleans())
@settings(max_examples=60, deadline=None)
def test_always_within_the_bounds_and_never_up_and_down_within_the_cool_down(
    shapes: list[Observation], bounds: Bounds, start: int, obedient: bool
) -> None:
    decisions = run(shapes, bounds, start, 80, obedient)
    most = bounds.max if bounds.max is not None else max(bounds.min, bounds.nodes)
    for decision in decisions:
        assert bounds.min <= decision.target <= most
        assert decision.reason
        if not bounds.may_ask:
            assert decision.target <= max(bounds.min, bounds.nodes)
        if decision.cause == "hold":
            assert decision.target == decision.current
    changes = [each for each in decisions if each.target != each.current]
    for before, after in itertools.pairwise(changes):
        if "bounds" in (before.cause, after.cause) or after.cause == "wake":
            continue
        if (before.target > before.current) != (after.target > after.current):
            grows = after.target > after.current
            assert after.at - before.at >= (POLICY.again_s if grows else POLICY.idle_s)
    # To wake needs no time, for to fall asleep took more; so even with it, changes are few.
    wakes = [each.at for each in changes if each.cause == "wake"]
    assert all(b - a >= POLICY.idle_s for a, b in itertools.pairwise(wakes))


@given(st.lists(observations(), min_size=1, max_size=5), st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_a_periodic_load_makes_a_bounded_number_of_changes(shapes: list[Observation], start: int) -> None:
    """To turn takes `idle_s` or more, and between two turns a number that doubles or loses a quarter soon ends."""
    decisions = run(shapes, Bounds(0, 40, 60), start, 150, obedient=True)
    changes = [each for each in decisions if each.target != each.current]
    turns = sum((a.target > a.current) != (b.target > b.current) for a, b in itertools.pairwise(changes))
    spent = decisions[-1].at
    assert turns <= 2 * (spent / POLICY.idle_s) + 1
    assert len(changes) <= (turns + 1) * 16


@given(observations(), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_fullness_alone_never_makes_more(shape: Observation, start: int) -> None:
    quiet = replace(shape, regretted=(0,) * len(EXTRA), busiest=0, moved=0, used=shape.quota, idle_s=0.0)
    assert all(
        decision.target <= start or decision.cause == "wake"
        for decision in run([quiet], Bounds(0, None, 100), start, 60)
    )


@given(st.integers(2, 40), st.integers(0, 40 * ROOM), st.integers(0, 40 * ROOM))
@settings(max_examples=60, deadline=None)
def test_workers_leave_only_as_far_as_the_warm_data_still_fits(start: int, used: int, warm: int) -> None:
    room = start * ROOM
    used = min(used, room)
    warm = min(warm, used)
    steady = Observation(
        at=0, seconds=60, idle_s=0, workers=start, quota=room * GiB, used=used * GiB, warm=warm * GiB
    )
    for decision in run([steady], Bounds(0, None, 100), start, 200, obedient=True):
        assert decision.target <= decision.current
        if decision.target < decision.current:
            assert decision.target * ROOM * POLICY.fit + 1e-9 >= min(warm, decision.current * ROOM)
            assert decision.current - decision.target <= max(1, POLICY.shrink * decision.current)


def test_the_bounds_are_followed_at_once_in_both_directions() -> None:
    for start, bounds, target in (
        (9, Bounds(1, 4, 60), 4),
        (1, Bounds(3, 4, 60), 3),
        (9, Bounds(0, None, 5), 5),
    ):
        decision = decide([], start, bounds, POLICY, State(1.0, 1), 2.0)
        assert (decision.target, decision.cause) == (target, "bounds")
        assert f"there were to be {start}" in decision.reason


def test_nothing_is_decided_before_all_have_reported() -> None:
    cluster, reads = Cluster(2), loop(180)
    for _ in range(30):
        cluster.minute(reads())
    starting = [replace(each, workers=1) for each in cluster.window]
    decision = decide(starting, 4, FREE, POLICY, State(), cluster.now)
    assert (decision.target, decision.reason) == (4, "1 of 4 workers have reported")


def test_a_state_that_is_none_is_refused() -> None:
    with pytest.raises(RaycacheError, match="autoscaler"):
        State.from_wire({"changed_at": "yesterday"})


# -- reports ----------------------------------------------------------------------------------------------------


def test_an_observation_is_what_happened_between_two_rounds_of_reports() -> None:
    regretted = (5, *(0,) * (len(EXTRA) - 1))
    before = {"a": WorkerReport(100, 50, 40, 30, read=10, store=10, served=100)}
    after = {
        "a": WorkerReport(160, 50, 45, 31, read=15, store=40, served=110, regretted=regretted, streams=3),
        "b": WorkerReport(20, 50, 5, 5, read=7, store=7, served=1, gets=4, throttled=2),
    }
    seen = observe(before, after, now=1000.0, seconds=60.0, idle_s=0.0)
    assert (seen.workers, seen.quota, seen.used, seen.warm) == (2, 100, 50, 36)
    assert (seen.read, seen.store, seen.gets, seen.throttled) == (12, 37, 4, 2)
    assert seen.regretted == regretted
    assert (seen.busiest, seen.busiest_streams, seen.moved) == (30, 3, 37)


def test_a_worker_that_restarted_counts_from_zero_and_one_that_was_not_heard_not_at_all() -> None:
    before = {"a": WorkerReport(age_s=1000, quota=50, store=900)}
    after = {
        "a": WorkerReport(age_s=10, quota=50, store=3),
        "b": WorkerReport(age_s=5000, quota=50, store=777),
    }
    seen = observe(before, after, now=1000.0, seconds=60.0, idle_s=0.0)
    assert (seen.store, seen.quota) == (3, 100)
