"""Fetching what a Ray Data plan will read next: owners fetch the files, in order, while tasks read the first ones."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from itertools import groupby
from types import TracebackType

from raycache.actors.loader import Cancelled, Load, Target
from raycache.api import connect
from raycache.blocks import ObjectVersion
from raycache.client import Client
from raycache.errors import RaycacheError
from raycache.locality import files_of

log = logging.getLogger(__name__)


class Prefetch:
    """A load that this process runs in the background, and that ends with it. A `DataLoad` outlives it.

    As any load, it fetches each segment at its owner, 64 MiB at a time, a few at once per worker, and stops where the
    cache is full: it pushes out nothing that it has fetched itself.

    Args:
        client: asks the workers.
        files: in the order in which they will be read.

    Attributes:
        error: why it did not fetch everything; None while it runs, and if it did.
    """

    def __init__(self, client: Client, files: Sequence[ObjectVersion]) -> None:
        self.error: RaycacheError | None = None
        self._client = client
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(list(files),), name="raycache-prefetch", daemon=True).start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end, at most `timeout_s` seconds. Returns whether it has ended."""
        return self._ended.wait(timeout_s)

    def cancel(self) -> None:
        """Fetch no more than what is under way."""
        self._cancelled.set()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self.wait()

    def _run(self, files: list[ObjectVersion]) -> None:
        try:
            for dataset, some in groupby(files, key=lambda version: version.dataset):
                load = Load(
                    self._client,
                    dataset,
                    [Target(version.path) for version in some],
                    sized=lambda *_: None,
                    progressed=lambda _: None,
                    cancelled=self._cancelled,
                )
                missing = load.run().missing
                if missing:
                    log.info("%d files of %s not fetched, as %s", len(missing), dataset, missing[0])
        except Cancelled:
            log.debug("cancelled")
        except RaycacheError as error:  # the read itself goes on, and fetches what it needs
            log.warning("nothing is fetched ahead any more: %s", error)
            self.error = error
        finally:
            self._ended.set()


def prefetch(urls: str | Sequence[str]) -> Prefetch:
    """Have the owners of some files fetch them now, in order, in the background of this process.

    Args:
        urls: as for `raycache.nodes_for`.

    Raises:
        As `raycache.nodes_for`.
    """
    client = connect()
    return Prefetch(client, files_of(client, urls, hidden=False))
