"""What a worker's port lets through: on real workers, over Flight, for hits as much as for misses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raycache.access import CLUSTER, Gate, SigningKeys, TokenClaims
from raycache.access.gate import MAX_CALLS, RENEW_S
from raycache.actors.outside import StateOverFlight
from raycache.actors.signing import Signing
from raycache.blocks import MiB, ObjectVersion
from raycache.client import Client
from raycache.errors import (
    AccessDeniedError,
    ClusterUnavailableError,
    DatasetNotFoundError,
    RaycacheError,
    WorkerUnavailableError,
)
from raycache.flight import FlightPeer
from raycache.wire import StreamTicket, bearer
from tests.support.embedded import BLOCK, dataset_of, noise
from tests.support.raylesscluster import TOKEN, RaylessCluster, with_tiers

DATA = noise(3 * BLOCK + 5)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RaylessCluster]:
    datasets = []
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(DATA)
        datasets.append(
            with_tiers(
                dataset_of(name, {"": f"file://{tmp_path / name}"}), tmp_path / f"t-{name}", 8 * MiB, "SSD"
            )
        )
    with RaylessCluster(2) as cluster:
        Signing(cluster.kv)  # as the coordinator does when it starts
        cluster.hold(*datasets)
        yield cluster


def token_of(cluster: RaylessCluster, *datasets: str, verbs: Any = ("read",)) -> str:
    return Signing(cluster.kv).keys.issue(TokenClaims(datasets, verbs, 600.0))


def addresses(cluster: RaylessCluster) -> list[str]:
    return [worker.address for worker in cluster.membership.workers]


def client_of(cluster: RaylessCluster, token: str, stack: ExitStack) -> Client:
    """A client outside the cluster, on another machine."""
    asker = stack.enter_context(closing(StateOverFlight(lambda: addresses(cluster), token)))
    state = asker(-1)
    assert state is not None
    return stack.enter_context(closing(Client(state, refresh=asker)))


def read(client: Client, dataset: str) -> bytes:
    with closing(client.open(dataset, "file")) as reader:
        return reader.read_at(0, reader.size)


@pytest.fixture
def warm(cluster: RaylessCluster) -> ObjectVersion:
    """Every byte of both datasets is cached; the version of `theirs`."""
    with closing(cluster.client()) as client:
        assert read(client, "mine") == read(client, "theirs") == DATA
        version = client.info("theirs", "file").version
    assert version is not None
    return version


def test_a_token_reads_its_dataset_and_sees_no_other(cluster: RaylessCluster) -> None:
    with ExitStack() as stack:
        client = client_of(cluster, token_of(cluster, "mine"), stack)
        assert read(client, "mine") == DATA
        assert [dataset.name for dataset in client.datasets()] == ["mine"]
        with pytest.raises(DatasetNotFoundError):
            client.open("theirs", "file")


def questions(version: ObjectVersion) -> dict[str, dict[str, Any]]:
    """One of each action, about a dataset that is not the caller's."""
    wire, blocks = version.to_wire(), [0, version.block_count]
    named = {"dataset": "theirs", "path": "file"}
    return {
        "info": named,
        "list": {"dataset": "theirs", "path": ""},
        "ensure": {"version": wire, "blocks": blocks},
        "present": {"version": wire, "blocks": blocks},
        "cached": {"items": [{"version": wire}]},
        "holdings": {"dataset": "theirs", "paths": [""]},
        "reads": {"dataset": "theirs", "hit": 1, "missed": 0},
        "recheck": {"version": wire, "blocks": blocks},
        "invalidate": named,
    }


OF_THE_CLUSTER = ("evict", "release", "take", "usage")


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_what_is_not_in_the_token_is_refused_cached_or_not(
    cluster: RaylessCluster, state: str, request: pytest.FixtureRequest
) -> None:
    version = ObjectVersion("theirs", "file", "x", len(DATA), "e", 1, BLOCK)
    if state == "warm":
        version = request.getfixturevalue("warm")
    fetched = [node.metrics.snapshot().get("fetched_store_bytes", 0) for node in cluster.nodes.values()]
    token = token_of(cluster, "mine", verbs=("read", "invalidate"))
    for address in addresses(cluster):
        with FlightPeer(address, token) as peer:
            for action, payload in questions(version).items():
                with pytest.raises(AccessDeniedError, match="does not allow"):
                    peer.call(action, payload)
            for action in OF_THE_CLUSTER:
                with pytest.raises(AccessDeniedError, match="own processes"):
                    peer.call(action, {"dataset": "mine", "path": "", "load": "x"})
            for held in (False, True):
                ticket = StreamTicket(version, range(1), held=held)
                with pytest.raises(AccessDeniedError, match="does not allow"):
                    list(peer.stream(ticket.to_wire()))
    after = [node.metrics.snapshot().get("fetched_store_bytes", 0) for node in cluster.nodes.values()]
    assert after == fetched, "nothing was fetched for it"


def test_a_dataset_beside_ones_own_does_not_slip_through(
    cluster: RaylessCluster, warm: ObjectVersion
) -> None:
    wire = warm.to_wire()
    with FlightPeer(addresses(cluster)[0], token_of(cluster, "mine")) as peer:
        for payload in (
            {"dataset": "mine", "version": wire, "blocks": [0, 1]},
            {"dataset": "mine", "items": [{"version": wire}]},
        ):
            with pytest.raises(AccessDeniedError):
                peer.call("ensure" if "blocks" in payload else "cached", payload)
        for payload in ({}, {"items": [1, None]}, {"version": 7}, {"dataset": ["theirs"]}, {"dataset": None}):
            with pytest.raises(AccessDeniedError):
                peer.call("info", payload)


def test_only_loads_keep_blocks(cluster: RaylessCluster, warm: ObjectVersion) -> None:
    with FlightPeer(addresses(cluster)[0], token_of(cluster, "*")) as peer:
        kept = {"version": warm.to_wire(), "blocks": [0, 1], "keep": "x", "kept": [0, 1]}
        with pytest.raises(AccessDeniedError, match="eviction"):
            peer.call("ensure", kept)


def test_only_workers_are_named_to_others(cluster: RaylessCluster, warm: ObjectVersion) -> None:
    worker = cluster.membership.workers[0]
    with FlightPeer(worker.address, token_of(cluster, "*")) as peer:
        ticket = StreamTicket(warm, range(1), asker=worker.id)
        with pytest.raises(AccessDeniedError, match="only workers"):
            list(peer.stream(ticket.to_wire()))


def test_without_a_token_nothing_answers(cluster: RaylessCluster) -> None:
    ours = SigningKeys.fresh(0.0)
    foreign = ours.issue(TokenClaims(("*",), ("read",), 60.0))
    for token in ("", "wrong", TOKEN[:-1], TOKEN + "x", foreign, "a.b.c"):
        with FlightPeer(addresses(cluster)[0], token) as peer:
            for action in ("state", "info", "usage"):
                with pytest.raises(AccessDeniedError):
                    peer.call(action, {"dataset": "mine", "path": "file"})


def test_dropped_keys_end_their_tokens_and_new_ones_work_at_once(cluster: RaylessCluster) -> None:
    signing = Signing(cluster.kv)
    old = token_of(cluster, "mine")
    with ExitStack() as stack:
        assert read(client_of(cluster, old, stack), "mine") == DATA
        signing.rotate()
        new = token_of(cluster, "mine")
        # Not told yet: a token that names a new key has the worker look.
        assert read(client_of(cluster, new, stack), "mine") == DATA
        assert read(client_of(cluster, old, stack), "mine") == DATA
        signing.drop(next(iter(signing.keys.ages)))
        cluster.invalidate("mine")  # any new epoch
        for address in addresses(cluster):
            with FlightPeer(address, old) as peer, pytest.raises(AccessDeniedError):
                peer.call("state", {"known_epoch": -1})
        assert read(client_of(cluster, new, stack), "mine") == DATA


def test_invalidations_of_others_are_not_told(cluster: RaylessCluster) -> None:
    cluster.invalidate("theirs", "secret-name")
    cluster.invalidate("mine", "file")
    with FlightPeer(addresses(cluster)[0], token_of(cluster, "mine")) as peer:
        answer = peer.call("state", {"known_epoch": -1})
    text = str(answer)
    assert "theirs" not in text
    assert "secret-name" not in text
    assert [entry[1] for entry in answer["invalidations"]["entries"]] == ["mine"]


# -- the gate alone ---------------------------------------------------------------------------------------


@pytest.fixture
def keys() -> SigningKeys:
    return SigningKeys.fresh(0.0)


def a_token(keys: SigningKeys) -> str:
    return keys.issue(TokenClaims(("d",), ("read",), 60.0))


def test_who_floods_is_refused_and_others_are_not(keys: SigningKeys) -> None:
    gate = Gate("t", keys=keys)
    flooder, other = keys.check(a_token(keys)), keys.check(a_token(keys))
    payload = {"dataset": "d"}
    enter: list[Callable[..., Any]] = [
        lambda caller, peer: gate.action(caller, peer, "info", payload),
        lambda caller, peer: gate.stream(caller, peer, {"version": payload}),
    ]
    for admitted in enter:
        with ExitStack() as held:
            for port in range(MAX_CALLS):
                held.enter_context(admitted(flooder, f"ipv4:10.0.0.1:{port}"))
            with pytest.raises(WorkerUnavailableError, match="under way"):
                held.enter_context(admitted(flooder, "ipv4:10.0.0.1:9"))
            held.enter_context(admitted(flooder, "ipv4:10.0.0.2:9"))
            held.enter_context(admitted(other, "ipv4:10.0.0.1:9"))
            for _ in range(MAX_CALLS + 1):
                held.enter_context(admitted(CLUSTER, "ipv4:10.0.0.1:9"))
        with admitted(flooder, "ipv4:10.0.0.1:9"):
            pass


def test_unknown_keys_do_not_have_it_look_all_the_time(keys: SigningKeys) -> None:
    looks, now = [], [0.0]
    known = [keys]

    def renew() -> SigningKeys:
        looks.append(now[0])
        return known[0]

    gate = Gate("t", keys=keys, renew=renew, clock=lambda: now[0])
    for _ in range(10):
        with pytest.raises(AccessDeniedError):
            gate.caller(bearer(a_token(SigningKeys.fresh(0.0))))
    assert looks == [0.0]
    known[0] = keys.rotated(1.0)
    fresh = bearer(a_token(known[0]))
    with pytest.raises(AccessDeniedError):
        gate.caller(fresh)
    now[0] += RENEW_S
    assert gate.caller(fresh).may("read", ["d"])


def test_known_keys_hold_while_the_clusters_store_is_away(keys: SigningKeys) -> None:
    def renew() -> SigningKeys:
        raise ClusterUnavailableError("the store is away")

    gate = Gate("t", keys=keys, renew=renew)
    with pytest.raises(AccessDeniedError):
        gate.caller(bearer(a_token(SigningKeys.fresh(0.0))))
    assert gate.caller(bearer(a_token(keys))).may("read", ["d"])


def test_the_clusters_own_tokens_may_everything(keys: SigningKeys) -> None:
    gate = Gate("t", others=("of-ray",), keys=keys)
    assert gate.caller(bearer("t")) is CLUSTER
    assert gate.caller(bearer("of-ray")) is CLUSTER
    for wrong in (b"", b"t", b"Bearer ", b"bearer t", b"Bearer t ", b"\xff\xfe", b"Bearer \xff.\xff.\xff"):
        with pytest.raises(RaycacheError):
            gate.caller(wrong)


@pytest.mark.parametrize(
    "path",
    [
        "../theirs/file",
        "/../theirs/file",
        "x/../../theirs/file",
        "%2e%2e/theirs/file",
        "..\\theirs\\file",
        "./../theirs/file",
    ],
)
def test_no_path_leads_out_of_the_dataset(cluster: RaylessCluster, path: str) -> None:
    wanted = cluster.nodes["node0"].engine.volume("theirs").source.info("file").version
    assert wanted is not None
    mine = wanted.store.replace("/theirs/file", f"/mine/{path}")
    for address in addresses(cluster):
        with FlightPeer(address, token_of(cluster, "mine")) as peer:
            with pytest.raises(RaycacheError):
                peer.call("info", {"dataset": "mine", "path": path})
            # All of it is right, had somebody told him: size, ETag, time; only the way there is not his.
            for crafted in (
                replace(wanted, dataset="mine", path=path, store=store) for store in (wanted.store, mine)
            ):
                for held in (False, True):
                    ticket = StreamTicket(crafted, range(1), held=held)
                    with pytest.raises(RaycacheError):
                        list(peer.stream(ticket.to_wire()))
                with pytest.raises(RaycacheError):
                    peer.call("ensure", {"version": crafted.to_wire(), "blocks": [0, 1]})
