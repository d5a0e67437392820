"""The main job on a real Ray cluster: apply, read on every node, each block fetched once, whoever dies."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

import raycache
from raycache import api
from raycache.actors import kv as keys
from raycache.actors.control import Control
from raycache.actors.coordinator import NAME
from raycache.errors import NotFoundError, SpecError
from raycache.spec import load_documents
from tests.support.cache import Cache
from tests.support.raycluster import left_behind
from tests.support.s3proxy import Fault
from tests.support.waiting import until

MiB = 1 << 20


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def read_concurrently(path: str, readers: int, seed: int) -> list[str]:
    """Runs in a task: several readers of one file, each in an order of its own; hashes of what they read."""
    from contextlib import closing

    from raycache import connect

    client = connect()

    def read(number: int) -> str:
        with closing(client.open("ds", path)) as reader:
            chunk = 700_001  # no multiple of anything
            offsets = list(range(0, reader.size, chunk))
            if number % 2:
                random.Random(seed + number).shuffle(offsets)
            data = bytearray(reader.size)
            for offset in offsets:
                data[offset : offset + chunk] = reader.read_at(offset, chunk)
            return hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(readers) as pool:
        return list(pool.map(read, range(readers)))


def read_until(path: str, stop: str, digest: str) -> int:
    """Runs in a task: reads a file again and again until the file `stop` exists; how often that was.

    Each time it is evicted from nothing and read whole; a wrong byte or an error fails the task.
    """
    from contextlib import closing

    from raycache import connect

    client = connect()
    rounds = 0
    while not os.path.exists(stop):
        with closing(client.open("ds", path)) as reader:
            data = b"".join(reader.read_at(offset, 333_333) for offset in range(0, reader.size, 333_333))
        assert hashlib.sha256(data).hexdigest() == digest, f"wrong bytes in round {rounds}"
        rounds += 1
    return rounds


def test_apply_then_read_on_every_node(cache: Cache) -> None:
    data = noise(3 * MiB + 17)
    cache.put("dir/file", data)
    actions = {(row["kind"], row["name"]): row["action"] for row in cache.apply()}
    assert actions == {
        ("Secret", "ds"): "created",
        ("Dataset", "ds"): "created",
        ("CacheRuntime", "ds"): "created",
    }
    assert {row["action"] for row in cache.apply()} == {"unchanged"}
    hashes = ray.get(
        [cache.cluster.run_on(node, read_concurrently, "dir/file", 1, 0) for node in cache.cluster.node_ids()]
    )
    assert hashes == [[hashlib.sha256(data).hexdigest()]] * 3
    assert cache.read("dir/file") == data
    with raycache.local_path("raycache://ds/dir/file") as path:
        assert Path(path).read_bytes() == data
        assert path.startswith(str(cache.directory)), "a file of the node's own cache"
    row = until(lambda: (row := cache.row())["ufs_total_size"] == len(data) and row, "the size is known")
    assert (row["phase"], row["cached"], row["cached_percentage"]) == ("Bound", len(data), 100.0)
    assert row["cache_capacity"] == 3 * (128 + 256) * MiB
    workers = cache.admin.get("workers")
    assert [row["datasets"] for row in workers] == [["ds"]] * 3
    assert len({row["address"] for row in workers}) == 3
    # Ray's scheduler knows of the memory: 128 MiB of it per node.
    groups = [row for row in ray.util.placement_group_table().values() if row["state"] == "CREATED"]
    assert [group["bundles"][0]["memory"] for group in groups] == [128 * MiB] * 3


def test_twelve_cold_readers_on_three_nodes_fetch_each_block_once(cache: Cache) -> None:
    data = noise(40 * MiB + 12345, 1)
    cache.put("model.bin", data)
    cache.apply()
    cache.proxy.reset()
    found = ray.get(
        [
            cache.cluster.run_on(node, read_concurrently, "model.bin", 4, number)
            for number, node in enumerate(cache.cluster.node_ids())
        ]
    )
    assert {digest for per_node in found for digest in per_node} == {hashlib.sha256(data).hexdigest()}
    assert len(data) <= cache.proxy.stats().bytes <= len(data) * 1.01


def readers_on_all_nodes(cache: Cache, path: str, data: bytes, tmp_path: Path) -> tuple[list[Any], Path]:
    """A reader on each node that goes on until the file that is returned exists."""
    stop = tmp_path / "stop"
    digest = hashlib.sha256(data).hexdigest()
    running = [
        cache.cluster.run_on(node, read_until, path, str(stop), digest) for node in cache.cluster.node_ids()
    ]
    until(lambda: cache.row()["cached"] > 0, "the readers run")
    return running, stop


def test_reads_go_on_while_a_worker_is_killed_and_comes_back(cache: Cache, tmp_path: Path) -> None:
    data = noise(24 * MiB + 1, 2)
    cache.put("file", data)
    cache.apply()
    running, stop = readers_on_all_nodes(cache, "file", data, tmp_path)
    before = cache.worker_pids()
    epoch = cache.admin.status()["epoch"]
    for node, pid in list(before.items())[:2]:
        os.kill(pid, signal.SIGKILL)
        cache.admin.evict("ds")  # so that there is something to fetch meanwhile
        now = until(
            lambda node=node: (now := cache.worker_pids()).get(node, before[node]) != before[node] and now,
            "the worker is back",
        )
        assert len(now) == 3
        until(
            lambda: all(row["datasets"] == ["ds"] for row in cache.admin.get("workers")), "it holds ds again"
        )
    cache.admin.evict("ds")
    stop.touch()
    assert all(rounds > 0 for rounds in ray.get(running))
    assert cache.admin.status()["epoch"] > epoch
    assert cache.row()["phase"] == "Bound"


def test_reads_go_on_while_the_coordinator_is_killed_and_it_remembers(cache: Cache, tmp_path: Path) -> None:
    data = noise(24 * MiB + 2, 3)
    cache.put("file", data)
    cache.apply()
    load = cache.admin.load("ds", ["/"], 2)
    done = cache.finished(load)
    assert done["phase"] == "Complete"
    before, workers = cache.admin.status(), cache.worker_pids()
    running, stop = readers_on_all_nodes(cache, "file", data, tmp_path)
    os.kill(before["coordinator"]["pid"], signal.SIGKILL)
    after = cache.admin.status()  # waits for it
    assert after["coordinator"]["pid"] != before["coordinator"]["pid"]
    assert after["coordinator"]["restarted"]
    until(lambda: cache.worker_pids() == workers, "the workers are found again, and are the same")
    assert {row["action"] for row in cache.apply()} == {"unchanged"}
    assert cache.admin.load_status(load) == done
    assert cache.admin.status()["epoch"] == before["epoch"], "nothing changed"
    stop.touch()
    assert all(rounds > 0 for rounds in ray.get(running))


def test_a_load_goes_on_when_its_coordinator_or_a_worker_is_killed(cache: Cache) -> None:
    for number in range(4):
        cache.put(f"dir/{number}", noise(4 * MiB, number))
    cache.apply()
    cache.proxy.set_bandwidth(6 * MiB)  # about three seconds
    load = cache.admin.load("ds", ["/dir"], "all")
    until(lambda: cache.admin.load_status(load)["bytes_cached"] > 0, "it has begun")
    workers = cache.worker_pids()
    os.kill(cache.admin.status()["coordinator"]["pid"], signal.SIGKILL)
    os.kill(next(iter(workers.values())), signal.SIGKILL)
    row = cache.finished(load)
    assert (row["phase"], row["bytes_cached"], row["reason"]) == ("Complete", 3 * 16 * MiB, "")
    cache.proxy.set_bandwidth(0)
    cache.proxy.reset()
    for number in range(4):
        assert cache.read(f"dir/{number}") == noise(4 * MiB, number)
    assert cache.proxy.stats().GET == 0


def test_dataloads_of_a_spec_end_complete_or_say_what_is_missing(cache: Cache) -> None:
    cache.put("good/a", noise(2 * MiB))
    cache.put("good/b", noise(MiB, 1))
    cache.put("bad/c", noise(MiB, 2))
    loads = """
---
apiVersion: raycache.io/v1
kind: DataLoad
metadata: {name: good}
spec: {dataset: {name: ds}, loadMetadata: true, target: [{path: /good, replicas: all}]}
---
apiVersion: raycache.io/v1
kind: DataLoad
metadata: {name: bad}
spec: {dataset: {name: ds}, target: [{path: /bad}]}
"""
    cache.proxy.fault = lambda request: (
        Fault(status=403) if "bad/c" in request.key and request.kind == "GET" else None
    )
    actions = cache.admin.apply(cache.spec() + loads)
    assert [row["action"] for row in actions] == ["created"] * 5
    good = cache.finished("good")
    assert (good["phase"], good["bytes_cached"], good["bytes_total"], good["files_total"]) == (
        "Complete",
        9 * MiB,
        9 * MiB,
        2,
    )
    bad = cache.finished("bad")
    assert (bad["phase"], bad["bytes_cached"], bad["bytes_total"]) == ("Failed", 0, MiB)
    assert [item["path"] for item in bad["missing"]] == ["bad/c"]
    assert "AccessDeniedError" in bad["missing"][0]["reason"]
    assert "bad/c" in bad["reason"]
    described = cache.admin.describe("loads", "bad")
    assert described["events"][-1]["reason"] == "Failed"
    assert {row["name"] for row in cache.admin.get("loads")} == {"good", "bad"}


def test_a_delete_removes_what_is_cached_and_nothing_else(cache: Cache) -> None:
    cache.put("file", noise(MiB))
    cache.apply()
    cache.apply("other", mem="")
    assert cache.read("file") == cache.read("file", "other")
    with pytest.raises(raycache.SpecError, match="is used by dataset ds"):
        cache.admin.delete("secrets", "ds")
    cache.admin.delete("datasets", "ds")
    left = [path for path in cache.directory.rglob("*.data") if path.is_file()]
    assert len(left) >= 1
    assert all("raycache-other" in str(path) for path in left)
    assert [row["name"] for row in cache.admin.get("datasets")] == ["other"]
    groups = [row for row in ray.util.placement_group_table().values() if row["state"] == "CREATED"]
    assert not groups, "the reservations are given back"
    with pytest.raises(raycache.DatasetNotFoundError, match="applied are: other"):
        cache.admin.describe("datasets", "ds")
    until(lambda: "ds" not in [dataset.name for dataset in cache.client().datasets()], "clients hear of it")
    with pytest.raises(raycache.DatasetNotFoundError):
        cache.read("file")
    cache.admin.delete("secrets", "ds")
    assert cache.read("file", "other") == noise(MiB)


def test_a_stop_gives_memory_back_and_keeps_the_disk_warm(cache: Cache) -> None:
    data = noise(20 * MiB, 5)
    cache.put("file", data)
    cache.apply(mem="")
    ray.get(
        [cache.cluster.run_on(node, read_concurrently, "file", 1, 0) for node in cache.cluster.node_ids()]
    )
    api.stop(cache.cluster.address)
    with pytest.raises(raycache.ClusterUnavailableError, match="raycache start"):
        api.connect()
    with pytest.raises(raycache.ClusterUnavailableError, match="raycache start"):
        api.Admin(cache.cluster.address)
    api.start(cache.cluster.address)
    cache.apply(mem="")
    cache.proxy.reset()
    ray.get(
        [cache.cluster.run_on(node, read_concurrently, "file", 1, 0) for node in cache.cluster.node_ids()]
    )
    assert cache.read("file") == data
    assert cache.proxy.stats().GET == 0


def test_nodes_that_join_hold_datasets_and_nodes_that_leave_are_noticed(cache: Cache) -> None:
    data = noise(6 * MiB, 6)
    cache.put("file", data)
    cache.apply()
    node = cache.cluster.add_node()
    try:
        until(lambda: len(cache.worker_pids()) == 4, "it has a worker")
        until(lambda: [row["datasets"] for row in cache.admin.get("workers")] == [["ds"]] * 4, "it holds ds")
        new = (set(cache.cluster.node_ids()) & set(cache.worker_pids())) - set(cache_nodes(cache, node))
        found = ray.get(cache.cluster.run_on(next(iter(new)), read_concurrently, "file", 2, 0))
        assert found == [hashlib.sha256(data).hexdigest()] * 2
    finally:
        cache.cluster.remove_node(node)
    until(lambda: len(cache.admin.get("workers")) == 3, "it is gone")
    assert cache.read("file") == data
    assert cache.row()["phase"] == "Bound"


def cache_nodes(cache: Cache, node: Any) -> list[str]:
    """Ids of all nodes but one."""
    return [id for id in cache.cluster.node_ids() if id != node.node_id]


def test_bad_input_is_one_clear_error_and_changes_nothing(cache: Cache) -> None:
    data = noise(MiB)
    cache.put("file", data)
    cache.apply()
    assert cache.read("file") == data
    before = cache.row()["cached"]
    epoch = cache.admin.status()["epoch"]
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (raycache.BucketNotFoundError, "no-such-bucket", {"bucket": "no-such-bucket"}),
        (raycache.AccessDeniedError, "", {"secret_key": "wrong-secret-key"}),
        (raycache.SpecError, "tier SSD (1.00EiB) is larger than the disk", {"ssd": "1024Pi"}),
        (raycache.SpecError, "tier MEM (4.00TiB) is larger than the memory", {"mem": "4Ti"}),
    ]
    for error, words, changes in cases:
        with pytest.raises(error) as raised:
            cache.apply(**changes)
        assert words in str(raised.value)
        assert "wrong-secret-key" not in str(raised.value)
        assert raised.value.__cause__ is None
    with pytest.raises(raycache.SpecError, match="no dataset 'sd'"):
        cache.admin.apply(
            "{apiVersion: raycache.io/v1, kind: DataLoad, metadata: {name: x}, spec: {dataset: {name: sd}}}"
        )
    for call in (
        lambda: cache.admin.load("sd"),
        lambda: cache.admin.evict("sd"),
        lambda: cache.admin.get("datasets", "sd"),
        lambda: cache.admin.delete("datasets", "sd"),
    ):
        with pytest.raises(raycache.DatasetNotFoundError, match="applied are: ds"):
            call()
    with pytest.raises(raycache.PathError):
        cache.admin.load("ds", ["../../etc/passwd"])
    with pytest.raises(raycache.SpecError, match="there is no kind"):
        cache.admin.get("pods")
    with pytest.raises(raycache.ClusterUnavailableError, match="already part of"):
        api.Admin("127.0.0.1:1")
    assert cache.row()["cached"] == before
    assert cache.admin.status()["epoch"] == epoch
    assert cache.read("file") == data


def test_memory_that_ray_cannot_reserve_leaves_the_node_out(cache: Cache) -> None:
    cache.put("file", noise(MiB))
    cache.apply(mem="3Gi")  # the nodes offer 2 GiB each; the machine has more
    row = cache.row()
    assert row["phase"] == "Failed"
    assert "Ray has no 3.00GiB of memory to reserve" in row["reason"]
    described = cache.admin.describe("datasets", "ds")
    assert len(described["problems"]) == 3
    assert cache.read("file") == noise(MiB), "read past the cache"
    cache.apply(mem="64Mi")
    assert cache.row()["phase"] == "Bound"
    # Quotas change in place: what is cached stays.
    assert cache.read("file") == noise(MiB)
    cache.proxy.reset()
    cache.apply(mem="96Mi")
    assert cache.read("file") == noise(MiB)
    assert cache.proxy.stats().GET == 0
    assert cache.row()["cache_capacity"] == 3 * (96 + 256) * MiB
    # One that cannot be had leaves the old one as it is.
    cache.apply(mem="3Gi")
    row = cache.row()
    assert (row["phase"], row["cache_capacity"]) == ("Bound", 3 * (96 + 256) * MiB)
    assert "to reserve" in row["reason"]
    assert cache.read("file") == noise(MiB)
    assert cache.proxy.stats().GET == 0


def test_an_exclusive_dataset_has_its_nodes_for_itself(cache: Cache) -> None:
    cache.put("file", noise(MiB))
    cache.apply()
    cache.apply("alone", placement="Exclusive")
    row = cache.row("alone")
    assert row["phase"] != "Bound"
    assert "dataset ds is there" in row["reason"]
    assert len(cache.admin.describe("datasets", "alone")["problems"]) == 3
    assert cache.read("file", "alone") == noise(MiB), "read past the cache"
    # A node that is given up is taken.
    cache.apply(replicas=2)
    until(lambda: cache.row("alone")["phase"] == "Bound", "the third node has it")
    assert len(cache.admin.describe("datasets", "alone")["problems"]) == 2
    held = [set(row["datasets"]) for row in cache.admin.get("workers")]
    assert sorted(map(sorted, held)) == [["alone"], ["ds"], ["ds"]]
    assert cache.read("file") == noise(MiB)


def test_secrets_are_nowhere_to_be_seen(cache: Cache) -> None:
    cache.put("file", noise(MiB))
    cache.apply()
    cache.read("file")
    secret = cache.server.secret_key
    token = (keys.RayKv().get(keys.TOKEN) or b"").decode()
    assert token
    shown = [
        repr(cache.admin.describe("datasets", "ds")),
        repr(cache.admin.describe("secrets", "ds")),
        repr(cache.admin.describe("runtimes", "ds")),
        repr(cache.admin.get("secrets")),
        repr(cache.admin.get("workers")),
        repr(cache.admin.status()),
        repr(cache.client()),
        repr(cache.client().dataset("ds")),
        repr(load_documents(cache.spec())),
        repr(ray.util.list_named_actors(all_namespaces=True)),
    ]
    session = Path(ray._private.worker._global_node.get_logs_dir_path())
    shown += [path.read_text(errors="replace") for path in session.glob("*") if path.is_file()]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            shown.append(process.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    assert cache.admin.get("secrets")[0]["keys"] == ["id", "key"]
    for text in shown:
        assert secret not in text
        assert token not in text


def test_start_twice_is_fine_and_stop_works_without_a_coordinator(cache: Cache) -> None:
    cache.put("file", noise(MiB))
    cache.apply()
    workers = cache.worker_pids()
    assert api.start(cache.cluster.address)["workers"] == 3
    assert cache.worker_pids() == workers
    assert cache.read("file") == noise(MiB)
    assert Control().call("status")["datasets"] == 1
    ray.kill(ray.get_actor(NAME, namespace="raycache"), no_restart=True)
    with pytest.raises(raycache.ClusterUnavailableError, match="raycache start"):
        api.Admin(cache.cluster.address)
    api.stop(cache.cluster.address)
    assert not left_behind(cache.directory)
    with pytest.raises(raycache.ClusterUnavailableError, match="raycache start"):
        api.stop(cache.cluster.address)
    api.start(cache.cluster.address)


OUTSIDER = """
import sys
from contextlib import closing
import raycache
with closing(raycache.connect().open("ds", "file")) as reader:
    sys.stdout.buffer.write(reader.read_at(0, reader.size))
import ray
assert not ray.is_initialized()
with raycache.local_path("raycache://ds/file") as path:
    assert path.startswith(sys.argv[1]), path
raycache.disconnect()
"""


def test_a_plain_process_of_a_node_reads_without_joining_the_cluster(cache: Cache) -> None:
    cache.put("file", noise(MiB))
    cache.apply()
    run = subprocess.run(
        [sys.executable, "-c", OUTSIDER, str(cache.directory)],
        env=os.environ | {"RAY_ADDRESS": cache.cluster.address},
        capture_output=True,
        timeout=120,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout == noise(MiB)


TENANT = """
import sys
from contextlib import closing
import raycache
client = raycache.connect()
assert [dataset.name for dataset in client.datasets()] == ["ds"]
with closing(client.open("ds", "file")) as reader:
    sys.stdout.buffer.write(reader.read_at(0, reader.size))
try:
    client.open("other", "file")
except raycache.errors.DatasetNotFoundError:
    pass
else:
    sys.exit("it sees what is not its own")
assert "ray" not in sys.modules
"""


def test_a_token_reads_its_dataset_from_outside_until_its_key_is_dropped(
    cache: Cache, tmp_path: Path
) -> None:
    cache.put("file", noise(MiB))
    cache.apply()
    cache.apply("other")

    def tenant(token: str) -> subprocess.CompletedProcess[bytes]:
        workers = cache.client().peers.membership.workers
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
        environ |= {"RAYCACHE_ADDRESS": ",".join(w.address for w in workers), "RAYCACHE_TOKEN": token}
        return subprocess.run(
            [sys.executable, "-c", TENANT], env=environ, cwd=tmp_path, capture_output=True, timeout=120
        )

    with pytest.raises(NotFoundError):
        cache.admin.create_token("no-such-dataset")
    token = cache.admin.create_token("ds", ttl_s=600.0)
    run = tenant(token)
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout == noise(MiB)
    assert cache.admin.rotate_token_keys(revoke=True) == {}
    refused = tenant(token)
    assert refused.returncode == 1
    assert b"AccessDeniedError" in refused.stderr
    assert token.encode() not in refused.stderr
    assert tenant(cache.admin.create_token("ds", ttl_s=600.0)).returncode == 0
    (key,) = cache.admin.token_keys()
    with pytest.raises(SpecError, match="signs"):
        cache.admin.drop_token_key(key)


WITHOUT_PACKAGE = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == "raycache":
            raise ModuleNotFoundError("No module named 'raycache'", name=name)
sys.meta_path.insert(0, Without())
"""


def test_nodes_without_the_package_are_named_with_a_hint(cache: Cache, tmp_path: Path) -> None:
    # Every Python process of the node runs this first.
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PACKAGE)
    node = cache.cluster.add_node(env_vars={"PYTHONPATH": str(tmp_path)})
    try:
        result = api.start(cache.cluster.address)
        assert (result["nodes"], result["workers"]) == (4, 3)
        assert list(result["problems"]) == [node.node_id]
        assert "install it on every node" in result["problems"][node.node_id]
        cache.put("file", noise(MiB))
        cache.apply()
        assert cache.read("file") == noise(MiB)
    finally:
        cache.cluster.remove_node(node)
    until(lambda: cache.admin.status()["nodes"] == 3, "it is gone")
