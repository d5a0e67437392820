"""What a load keeps stays until the load has ended; everything else makes room for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache.blocks import KiB, MiB, ObjectVersion
from raycache.errors import CacheFullError
from raycache.store import LocalStore, TierConfig
from raycache.store.keeping import LAPSE_S, Keeping
from raycache.store.tiers import Tier
from tests.support.embedded import noise

BLOCK = 64 * KiB


def version(name: str, blocks: int) -> ObjectVersion:
    return ObjectVersion("ds", name, f"file:///bucket/{name}", blocks * BLOCK, '"1"', block_size=BLOCK)


def fill(store: LocalStore, object: ObjectVersion) -> None:
    with store.fill(object) as filling:
        filling.write(range(object.block_count), noise(object.size))


def complete(store: LocalStore) -> set[str]:
    return {status.version.path for status in store.objects() if status.complete}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    configs = [TierConfig(medium, str(tmp_path / medium), MiB, 0.9, 0.5) for medium in ("MEM", "SSD")]
    store = LocalStore(configs, background=False)
    yield store
    store.close()


def test_what_is_kept_stays_and_the_rest_makes_room(store: LocalStore) -> None:
    old = [version(f"old{number}", 4) for number in range(8)]
    for object in old:
        fill(store, object)
    wanted = [version(f"new{number}", 2) for number in range(40)]
    kept = [object for object in wanted if store.keep("load", object, range(2))]
    assert 8 < len(kept) < 40
    for object in kept:
        fill(store, object)
    for object in old:  # readers go on with other things meanwhile
        try:
            fill(store, object)
        except CacheFullError:
            pass
    assert complete(store) >= {object.path for object in kept}
    store.release("load")
    for object in old:
        fill(store, object)
    assert not complete(store) >= {object.path for object in kept}, "then it is like everything else"


def test_an_object_counts_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    tier = Tier(TierConfig("SSD", str(tmp_path), MiB, 1.0, 0.5), 0, "sieve")
    now = [0.0]
    keeping = Keeping([tier], lambda: now[0])
    big, other = version("big", 14), version("other", 8)
    assert keeping.add("one", big, range(7))
    assert keeping.add("two", big, range(7))
    assert keeping.add("one", big, range(7, 14))
    assert keeping.of(big.object_id) == [range(14)]
    assert not keeping.add("one", other, range(8))
    assert keeping.of(other.object_id) == []
    keeping.release("one")
    assert keeping.of(big.object_id) == [range(7)]
    assert keeping.add("three", other, range(8))
    now[0] = LAPSE_S + 1
    assert keeping.add("three", version("last", 15), range(15)), "loads that are not heard of have ended"
    assert keeping.of(big.object_id) == []
    tier.close()
