"""The keys of signed tokens: in the cluster's store, where workers read them and only the coordinator writes them."""

from __future__ import annotations

import threading
import time

from raycache.access import SigningKeys
from raycache.actors import kv as keys
from raycache.actors.kv import Kv, get_json, put_json


def read(kv: Kv) -> SigningKeys | None:
    """The keys as they are; None if there are none yet."""
    stored = get_json(kv, keys.SIGNING)
    return None if stored is None else SigningKeys.from_wire(stored)


class Signing:
    """The coordinator's side: makes the first key, and changes the keys. Thread-safe.

    Workers take a change with the next epoch, or with the first token that names a new key.

    Args:
        kv: the cluster's store.
    """

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self._lock = threading.Lock()
        found = read(kv)
        self.keys = SigningKeys.fresh(time.time()) if found is None else found
        """The keys as they are."""
        if found is None:
            put_json(kv, keys.SIGNING, self.keys.to_wire())

    def rotate(self, revoke: bool = False) -> None:
        """Sign with a new key from now on; `revoke`: drop all others, and with them every token that they signed."""
        with self._lock:
            self._take(self.keys.rotated(time.time(), revoke))

    def drop(self, key_id: str) -> None:
        """Drop one of the older keys. Raises SpecError as `SigningKeys.without`."""
        with self._lock:
            self._take(self.keys.without(key_id))

    def _take(self, changed: SigningKeys) -> None:
        put_json(self._kv, keys.SIGNING, changed.to_wire())
        self.keys = changed
