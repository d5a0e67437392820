"""Who leaves what: begun once, until a time that outlives the coordinator, and told how it ended."""

from __future__ import annotations

from typing import Any

from raycache.actors.departures import GRACE_S, LEAVE_S, Departures
from raycache.actors.events import Events
from tests.support.raylesscluster import MemoryKv

PART = "ds", "node"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def progress(*, ended: bool = False, moved: int = 0, **left: int) -> dict[str, Any]:
    return {
        "bytes_total": moved,
        "bytes_moved": moved,
        "bytes_elsewhere": 0,
        "bytes_left": left,
        "ended": ended,
    }


def made(kv: MemoryKv, clock: Clock) -> tuple[Departures, Events]:
    events = Events()
    return Departures(kv, events, clock), events


def reasons(events: Events) -> list[str]:
    return [event["reason"] for event in events.of("Dataset", "ds")]


def test_a_holder_that_is_to_go_holds_on_until_its_worker_has_moved_everything() -> None:
    departures, events = made(MemoryKv(), Clock())
    assert departures.holds_on(*PART)
    departures.heard(PART, None)
    departures.heard(PART, progress(moved=1))
    assert departures.holds_on(*PART)
    departures.heard(PART, progress(moved=2, ended=True))
    assert not departures.holds_on(*PART)
    assert departures.parts.keys() == {PART}, "it owns nothing until it has dropped it"
    departures.left(PART)
    assert departures.parts == {}
    assert reasons(events) == ["Leaving", "Left"]


def test_when_the_time_is_up_it_is_not_waited_for_and_that_is_told() -> None:
    clock = Clock()
    departures, events = made(MemoryKv(), clock)
    departures.holds_on(*PART)
    clock.now += LEAVE_S + GRACE_S
    departures.heard(PART, progress(moved=1, late=5))
    assert departures.holds_on(*PART)
    clock.now += 1
    departures.heard(PART, progress(moved=1, late=5))
    assert not departures.holds_on(*PART)
    last = events.of("Dataset", "ds")[-1]
    assert (last["type"], last["reason"]) == ("Warning", "LeftBehind")
    assert "5.00B left behind (late)" in last["message"]


def test_another_coordinator_goes_on_with_the_same_deadlines() -> None:
    kv, clock = MemoryKv(), Clock()
    departures, _ = made(kv, clock)
    departures.drain("node", 100.0)
    departures.holds_on(*PART)
    clock.now += 40
    again, events = made(kv, clock)
    assert again.drains == departures.drains
    assert again.holds_on(*PART)
    assert again.remaining(PART) == 60.0
    assert reasons(events) == [], "it began before"
    again.emptied("node")
    assert made(kv, clock)[0].drains["node"].ended


def test_a_drain_that_is_said_again_has_a_new_deadline_and_one_that_is_taken_back_none() -> None:
    departures, _ = made(MemoryKv(), Clock())
    departures.drain("node", 100.0)
    departures.holds_on(*PART)
    departures.drain("node", 10.0)
    assert departures.remaining(PART) == 10.0
    assert departures.undrain("node")
    assert not departures.undrain("node")
    assert departures.stays(PART)
    assert not departures.stays(PART)
    assert departures.drains == {}


def test_what_ray_drains_is_drained_until_rays_deadline() -> None:
    departures, _ = made(MemoryKv(), Clock())
    departures.ray_drains({"node": 1_030_000, "other": 0})
    departures.holds_on(*PART)
    assert departures.remaining(PART) == 30.0
    assert departures.drains["other"].deadline == 1000.0 + LEAVE_S
    departures.emptied("node")
    departures.ray_drains({"node": 1_030_000})
    assert departures.drains.keys() == {"node"}
    assert departures.drains["node"].ended


def test_of_a_node_that_is_gone_nothing_is_waited_for() -> None:
    kv = MemoryKv()
    departures, _ = made(kv, Clock())
    departures.drain("node", 100.0)
    departures.holds_on(*PART)
    departures.retain(["other"])
    assert (departures.drains, departures.parts) == ({}, {})
    assert made(kv, Clock())[0].drains == {}


def test_how_it_went_is_known_when_the_worker_has_ended() -> None:
    departures, _ = made(MemoryKv(), Clock())
    departures.drain("node", 100.0)
    departures.holds_on(*PART)
    departures.heard(PART, progress(moved=7, ended=True))
    departures.left(PART)
    departures.emptied("node")
    assert departures.drains["node"].datasets["ds"]["bytes_moved"] == 7
