"""Makes the cluster be as it should: a worker on every node, every dataset on its holders, all of it published.

One thread looks at the cluster twice a second, or as soon as something is wanted, and takes whatever step is
due. It never waits for a single node. Nothing here is remembered over a restart but what is in the GCS.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from raycache.actors import assignment, cluster_state, mount_reports, raynodes, yield_reports
from raycache.actors import kv as keys
from raycache.actors.asking import Asking, ask_ray, bundles
from raycache.actors.departures import Departures
from raycache.actors.events import Events
from raycache.actors.kv import Kv, get_json, put_json
from raycache.actors.reservation import Reservations
from raycache.actors.retiring import Retiring
from raycache.actors.scaling import Heard, Scaling
from raycache.actors.seat import Seat, ask_all
from raycache.actors.tuning import Tuning
from raycache.errors import ClusterUnavailableError, SpecError
from raycache.invalidations import Invalidations
from raycache.membership import Membership, State, Worker
from raycache.spec import ResolvedDataset, humanize_size

log = logging.getLogger(__name__)

PERIOD_S = 0.5
"""Seconds between looks at the cluster. With very many nodes it grows, so that there are about
`PINGS_PER_S` pings."""

PINGS_PER_S = 1000

RETURN_S = 15.0
"""Seconds for which a dead worker's share waits for Ray to restart it, before others take it over."""


class Reconciler:
    """See above. Its methods may be called from any thread.

    Args:
        kv: the cluster's key-value store; what an earlier reconciler left there is gone on with.
        events: gets what happens to datasets.
    """

    def __init__(self, kv: Kv, events: Events) -> None:
        self._kv = kv
        self._events = events
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._stopped = False
        self._seats: dict[str, Seat] = {}
        self._wanted: dict[str, ResolvedDataset] | None = (
            None  # None: not told yet, so nothing may be detached
        )
        self._forgotten: set[str] = set()
        self._refused: dict[tuple[str, str], str] = {}
        self._occupied: dict[str, dict[str, str]] = {}
        """Nodes that a dataset would have and may not, by its name: the dataset that is there."""
        self._held_back: set[str] = (
            set()
        )  # nodes that hold something of which it is not known yet if it may stay
        self._settled: dict[str, int] = {}
        state = get_json(kv, keys.STATE)
        self._published: dict[str, ResolvedDataset] = {}
        self._membership = Membership.from_wire(get_json(kv, keys.LAST) or Membership().to_wire())
        # Who read before a stop has missed what was invalidated at its end.
        self._invalidations = Invalidations(since=self._membership.epoch)
        self._to_invalidate: list[tuple[str, str]] = []
        self._announced = self._published_announced = 0
        """How often `announce` was called, and how many of these calls are published."""
        if state is not None:
            former = cluster_state.from_wire(state, "")
            self._membership, self._published = former.membership, dict(former.datasets)
            self._invalidations = former.invalidations
        self._last_ids: dict[str, str] = get_json(kv, keys.SEATS) or {}
        self._reservations = Reservations()
        self.departures = Departures(kv, events)
        """Nodes that are drained, and datasets that are left."""
        tuning = Tuning.of(kv)
        self._report_s = tuning.report_s
        self.scaling = Scaling(kv, events, tuning)
        """How many nodes hold the datasets whose number follows what is read."""
        self._possible: dict[str, int] = {}
        """On how many nodes each dataset could be held at the last look."""
        self.retiring = Retiring(kv, tuning.retire_s)
        """Nodes whose worker has ended because they hold nothing."""
        self.asking = Asking(kv, ask_ray)
        """The nodes that Ray was asked for."""
        self._mount_events = mount_reports.MountEvents(events)
        self._yield_events = yield_reports.YieldEvents(events)
        self._ticks = 0
        self._thread = threading.Thread(target=self._run, name="raycache-reconciler", daemon=True)

    # -- for the coordinator ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin. Call `want` first, so that nothing is detached that should stay."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking. Workers go on."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(30)

    @property
    def membership(self) -> Membership:
        """The membership as published."""
        return self._membership

    def want(self, datasets: Mapping[str, ResolvedDataset]) -> None:
        """Make these the datasets of the cluster."""
        with self._changed:
            self._forgotten |= set(self._wanted or ()) - set(datasets)
            self._forgotten -= set(datasets)
            self._wanted = dict(datasets)
            self._settled = {}
        self._wake.set()

    def announce(self, timeout_s: float, changed: Sequence[tuple[str, str]] = ()) -> int:
        """Publish the state at a new epoch: whoever hears of that looks at what else is in the cluster's store.

        Args:
            timeout_s: longest wait.
            changed: datasets and paths at and below which names have changed in their stores.

        Returns:
            The epoch at which that is so, once it is published.

        Raises:
            ClusterUnavailableError: it is not published within `timeout_s`. It will be, unless this process ends.
        """
        with self._changed:
            self._to_invalidate += changed
            self._announced += 1
            mine = self._announced
        self._wake.set()
        if not self.wait(lambda: self._published_announced >= mine, timeout_s):
            raise ClusterUnavailableError("the Ray cluster's store does not answer", hint="see `ray status`")
        return self._membership.epoch

    @property
    def invalidations(self) -> Invalidations:
        """The invalidations as published."""
        return self._invalidations

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something is so; looked at after every look at the cluster. False if it never was."""
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    def look(self, timeout_s: float) -> None:
        """Look at the cluster as it is now; nodes that have just joined are known afterwards."""
        now = self._ticks
        self._wake.set()
        self.wait(lambda: self._ticks >= now + 2, timeout_s)  # one of them began after this call

    def settled(self, datasets: Mapping[str, ResolvedDataset]) -> bool:
        """Whether every holder of these has them, in this generation, and mounted if it is to be, or has said why not,
        and it is published."""
        return all(self._settled.get(name) == dataset.generation for name, dataset in datasets.items())

    def staffed(self) -> bool:
        """Whether every node has a worker, or a reason why it has none."""
        return self._ticks > 0 and all(
            seat.report or seat.trouble or seat.node.id in self.retiring for seat in self.seats()
        )

    def all_back(self) -> bool:
        """Whether no worker is away that may be back any moment."""
        now = time.monotonic()
        return all(
            seat.report or seat.away_s(now) >= RETURN_S or seat.node.id in self.retiring
            for seat in self.seats()
        )

    def recall(self, datasets: Mapping[str, ResolvedDataset]) -> None:
        """Have workers started on nodes that would hold these datasets and have none because they held nothing."""
        nodes = [seat.node for seat in self.seats()]
        for name, dataset in datasets.items():
            holding = {seat.node.id for seat in self.holders(name)}
            count = max(1, dataset.replica_bounds[0]) if dataset.autoscaled else None
            self.retiring.recall(assignment.holders(dataset, nodes, holding, count=count))
        self._wake.set()

    def released(self, name: str) -> bool:
        """Whether no worker holds a dataset any more."""
        return not any(name in seat.generations for seat in self.seats())

    def seats(self) -> list[Seat]:
        """All nodes' places, sorted by node id."""
        return [seat for _, seat in sorted(self._seats.items())]

    def problems(self, dataset: str) -> dict[str, str]:
        """Why nodes that should hold a dataset do not, by node id."""
        found = {node: why for (name, node), why in dict(self._refused).items() if name == dataset}
        for node, other in self._occupied.get(dataset, {}).items():
            found[node] = f"dataset {other} is there, and one of the two is Exclusive"
        for seat in self.seats():
            failure = seat.failures.get(dataset)
            if failure is not None:
                error = failure["error"]
                found[seat.node.id] = (
                    f"{error['where']}: {error['what']}" if error["where"] else error["what"]
                )
        return found

    def holders(self, dataset: str) -> list[Seat]:
        """Places whose worker holds a dataset."""
        return [seat for seat in self.seats() if dataset in seat.generations]

    def check(self, dataset: ResolvedDataset, timeout_s: float = 20.0) -> None:
        """Ask the nodes that would hold a dataset whether they can.

        Raises:
            SpecError: a quota is larger than what a node has; says which.
        """
        nodes = {node.id for node in assignment.eligible(dataset, [seat.node for seat in self.seats()])}
        asked = [seat for seat in self.seats() if seat.node.id in nodes and seat.actor and seat.report]
        answers = ask_all(asked, lambda seat: seat.actor.check.remote(dataset.wire()), timeout_s)
        for answer in answers.values():
            if isinstance(answer, SpecError):
                raise answer

    def ask_workers(self, method: str, *args: Any, timeout_s: float = 3.0) -> dict[str, Any]:
        """The answer of every worker that answers to a method in time, by node id; errors as values."""
        asked = [seat for seat in self.seats() if seat.actor and seat.report]
        return ask_all(asked, lambda seat: getattr(seat.actor, method).remote(*args), timeout_s)

    # -- the loop -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                busy = self._tick()
            except Exception:
                # The thread has nobody above it, and the cluster must be looked after whatever happened.
                log.exception("looking at the cluster")
                busy = False
            with self._changed:
                self._ticks += 1
                self._changed.notify_all()
            period = max(PERIOD_S, len(self._seats) / PINGS_PER_S)
            self._wake.wait(0.02 if busy else period)
            self._wake.clear()

    def _tick(self) -> bool:
        """One look. Returns whether another should follow at once."""
        now = time.monotonic()
        self._find_nodes(now)
        self.departures.ray_drains(raynodes.drains())
        for seat in self.seats():
            if not self._is_empty(seat.node.id) and seat.node.id not in self.retiring:
                seat.ask(self._membership.epoch, now, self._report_s)
        refs = [ref for seat in self.seats() for ref in seat.pending]
        if refs:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0.3)
            now = time.monotonic()
            for seat in self.seats():
                seat.hear(set(ready), now)
        self._mount_events.look(self.seats())
        self._yield_events.look(self.seats())
        with self._changed:
            wanted = self._wanted
        if wanted is None:
            return False
        self._scale(wanted)
        plan, undecided = self._plan(wanted, now)
        self._tell(plan, now)
        unsettled = {name for name in wanted if name in undecided or not self._attached(name, plan)}
        changed = self._publish(wanted, unsettled, now)
        self._see_off(plan, unsettled)
        self._retire(plan, now)
        # A mount is waited for by whoever applies, not by the tables of who owns what.
        unsettled |= {name for name in wanted if not mount_reports.decided(name, plan, self.seats())}
        with self._changed:
            if self._wanted == wanted:
                # Published now, at the latest: whoever waits for it may read the state.
                self._settled = {n: d.generation for n, d in wanted.items() if n not in unsettled}
        return changed or bool(unsettled)

    def _find_nodes(self, now: float) -> None:
        alive = raynodes.alive()
        seats = {node_id: seat for node_id, seat in self._seats.items() if node_id in alive}
        gone = [seat for node_id, seat in self._seats.items() if node_id not in alive]
        for node_id, node in alive.items():
            if node_id not in seats:
                seats[node_id] = Seat(node, now)
        self.departures.retain(seats)
        self.retiring.retain(seats)
        self._seats = seats  # a new table: other threads may be going through the old one
        for seat in gone:
            log.warning("node %s is gone", seat.node.id)
            seat.dismiss()

    def _plan(
        self, wanted: Mapping[str, ResolvedDataset], now: float
    ) -> tuple[dict[str, dict[str, ResolvedDataset]], set[str]]:
        """What each node's worker should hold, and the datasets for which that is not all known yet."""
        plan: dict[str, dict[str, ResolvedDataset]] = {node_id: {} for node_id in self._seats}
        undecided: set[str] = set()
        keep = set()
        self._held_back = set()
        drains = self.departures.drains
        for name, dataset in wanted.items():
            refused = {node for (refused, node) in self._refused if refused == name}
            holding = {seat.node.id for seat in self.holders(name)}
            nodes = [seat.node for seat in self.seats()]
            occupied = {
                seat.node.id: other
                for seat in self.seats()
                if (other := assignment.occupied(dataset, wanted, plan[seat.node.id], seat.takes))
            }
            avoided = refused | drains.keys() | occupied.keys()
            usable = [node for node in nodes if node.id not in avoided]
            self._possible[name] = len(assignment.eligible(dataset, usable))
            count = self.scaling.holders(name)
            going = {node_id for part, node_id in self.departures.parts if part == name}
            since = {
                seat.node.id: seat.report["since"].get(name, 0.0) for seat in self.seats() if seat.report
            }
            chosen = assignment.holders(dataset, usable, holding, going, since, count)
            self.retiring.recall(chosen)
            most = dataset.replica_bounds[1] if count is None else count
            short = most is None or len(chosen) < most
            self._occupied[name] = occupied if short else {}
            for node_id in sorted(holding - set(chosen) - refused):
                # If nobody is to hold it, there is nobody to move it to.
                if count != 0 and self.departures.holds_on(name, node_id):
                    keep.add((name, node_id))
                    plan[node_id][name] = dataset
            for node_id in chosen:
                if self.departures.stays((name, node_id)) and (actor := self._seats[node_id].actor):
                    actor.stay.remote(name)
            for node_id in [*chosen, *sorted(refused & self._seats.keys())]:
                seat = self._seats[node_id]
                if seat.report is None:
                    if seat.silent_since is None:
                        undecided.add(name)
                    keep.add((name, node_id))
                    continue
                memory = _memory_quota(dataset, seat.report["memory"])
                keep.add((name, node_id))
                verdict = self._reservations.reserve(name, node_id, memory, now)
                if verdict == "reserved":
                    if node_id in chosen:
                        plan[node_id][name] = dataset
                    elif self._refused.pop((name, node_id), None):
                        undecided.add(name)  # the next look may choose it
                elif name in seat.synced:  # it is to change its size there: the old one stands meanwhile
                    plan[node_id][name] = seat.synced[name]
                elif name in seat.generations and verdict == "pending":
                    self._held_back.add(node_id)
                if verdict == "pending":
                    undecided.add(name)
                elif verdict == "refused" and (name, node_id) not in self._refused:
                    why = f"Ray has no {humanize_size(memory)} of memory to reserve there"
                    self._refused[name, node_id] = why
                    self._events.add(
                        "Dataset", name, "NotPlaced", f"node {node_id[:12]}: {why}", type="Warning"
                    )
                    undecided.add(name)
        for key in [key for key in self._refused if key[0] not in wanted or key[1] not in self._seats]:
            del self._refused[key]
        self._reservations.retain(keep)
        return plan, undecided

    def _scale(self, wanted: Mapping[str, ResolvedDataset]) -> None:
        """Decide how many nodes are to hold the datasets of which that is not fixed, and ask Ray for those it lacks."""
        heard = {
            seat.node.id: Heard(seat.traffic, seat.report["unheld"]) for seat in self.seats() if seat.report
        }
        nodes = [seat.node for seat in self.seats()]
        known = self._possible
        self._possible = {}
        possible = {n: known.get(n, len(assignment.eligible(d, nodes))) for n, d in wanted.items()}
        self.scaling.look(wanted, possible, heard)
        self.asking.want(
            [
                bundle
                for name, count in sorted(self.scaling.short().items())
                for bundle in bundles(wanted[name], count, nodes, _memory_quota(wanted[name], 0))
            ]
        )

    def _retire(self, plan: Mapping[str, Mapping[str, ResolvedDataset]], now: float) -> None:
        """End workers that have held nothing for a while."""
        kept = {node for _, node in self._refused} | self.departures.drains.keys()
        empty = [
            seat.node.id
            for seat in self.seats()
            if seat.report is not None
            and not (seat.node.head or seat.syncing or seat.generations or seat.report["mounts"])
            and not (plan[seat.node.id] or seat.node.id in kept)
        ]
        for node_id in self.retiring.due(empty, now):
            log.info("the worker of node %s holds nothing and ends", node_id)
            self._seats[node_id].retire()

    def _tell(self, plan: Mapping[str, Mapping[str, ResolvedDataset]], now: float) -> None:
        # One at a time per machine, in order: after a restart each finds the directories it had before.
        busy = {seat.host_id for seat in self.seats() if seat.syncing}
        for seat in self.seats():
            if seat.report is None or seat.host_id in busy or seat.node.id in self._held_back:
                continue
            if seat.behind(plan[seat.node.id], now):
                seat.tell(plan[seat.node.id], now)
                busy.add(seat.host_id)

    def _publish(self, wanted: Mapping[str, ResolvedDataset], unsettled: set[str], now: float) -> bool:
        reporting: dict[str, Worker] = {}
        returning = set()
        drains, parts = self.departures.drains, self.departures.parts
        for seat in self.seats():
            if self._is_empty(seat.node.id) or seat.node.id in self.retiring:
                continue
            worker = seat.worker
            if worker is None and not seat.decided:
                # Nothing is known of it yet: what was published stands.
                worker = self._membership.worker(self._last_ids.get(seat.node.id, ""))
            if worker is not None:
                # Who leaves a dataset can be asked for what it has, and owns nothing of it.
                weights = {n: 0 if (n, seat.node.id) in parts else w for n, w in worker.weights.items()}
                state: State = "draining" if seat.node.id in drains else "up"
                reporting[seat.node.id] = replace(worker, weights=weights, state=state)
            elif seat.away_s(now) < RETURN_S:
                returning.add(seat.node.id)
        # Of what nobody holds nobody owns anything: readers need not ask who owned it.
        given_up = {name for name in wanted if self.scaling.holders(name) == 0 and not self.holders(name)}
        membership, last_ids = assignment.next_membership(
            self._membership, self._last_ids, reporting, returning, unsettled, self._forgotten | given_up
        )
        datasets = dict(wanted)
        with self._changed:
            names, announced = list(self._to_invalidate), self._announced
        changed = membership is not self._membership or datasets != self._published
        if not changed and announced == self._published_announced:
            return False
        if membership is self._membership:
            membership = replace(membership, epoch=membership.epoch + 1)
        put_json(self._kv, keys.SEATS, last_ids)
        # A dataset that leads elsewhere now has other names: processes know that by themselves, kernels do not.
        elsewhere = [(name, "") for name, d in datasets.items() if self._published.get(name, d) != d]
        invalidations = self._invalidations.added(membership.epoch, [*names, *elsewhere])
        cluster_state.publish(self._kv, membership, datasets, invalidations)
        for worker in membership.workers:
            if self._membership.worker(worker.id) is None:
                log.warning("epoch %d: worker %s at %s", membership.epoch, worker.id, worker.address)
        self._invalidations = invalidations  # before the epoch at which they are complete
        self._membership, self._last_ids, self._published = membership, last_ids, datasets
        with self._changed:
            del self._to_invalidate[: len(names)]
            self._published_announced = announced
        return True

    def _see_off(self, plan: Mapping[str, Mapping[str, ResolvedDataset]], unsettled: set[str]) -> None:
        """Have those who leave something move it, once others own it, and end the workers of nodes that are empty."""
        for part in self.departures.parts:
            name, node_id = part
            seat = self._seats.get(node_id)
            if seat is None or seat.worker is None or seat.report is None or seat.actor is None:
                self.departures.heard(part, None)
                continue
            if name not in seat.generations:
                self.departures.left(part)
                continue
            progress = seat.report["leaving"].get(name)
            if progress is None and assignment.may_leave(
                self._membership, name, seat.worker.id, name in unsettled
            ):
                left_s = self.departures.remaining(part)
                seat.actor.leave.remote(name, left_s, self._membership.epoch)
            self.departures.heard(part, progress)
        for node_id, drain in self.departures.drains.items():
            seat = self._seats.get(node_id)
            if node_id in self.retiring:
                self.retiring.recall([node_id])
                self.departures.emptied(node_id)
            if seat is None or drain.ended or seat.syncing or plan[node_id] or seat.report is None:
                continue
            if not seat.generations:
                seat.dismiss()
                seat.report, seat.trouble = None, "drained"
                self.departures.emptied(node_id)

    def _is_empty(self, node_id: str) -> bool:
        """Whether a node is drained, and its worker has ended."""
        drain = self.departures.drains.get(node_id)
        if drain is not None and drain.ended:
            seat = self._seats[node_id]
            seat.trouble, seat.decided = "drained", True
            return True
        return False

    def _attached(self, name: str, plan: Mapping[str, Mapping[str, ResolvedDataset]]) -> bool:
        """Whether every worker that should hold a dataset, and answers, has it or has said why not."""
        for seat in self.seats():
            planned = plan[seat.node.id].get(name)
            if planned is not None and seat.report is not None:
                failed = seat.failures.get(name, {}).get("generation")
                if planned.generation not in (seat.generations.get(name), failed):
                    return False
        return True


def _memory_quota(dataset: ResolvedDataset, node_memory: int) -> int:
    """Bytes of a dataset's memory tiers on a node with so much memory, to be reserved: none of `quota: auto`."""
    return sum(
        tier.quota if tier.quota is not None else int(node_memory * (tier.quota_ratio or 0.0))
        for tier in dataset.tiers
        if tier.medium == "MEM" and not tier.auto
    )
