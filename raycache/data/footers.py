"""Ray Data's readers of Parquet footers: as many for all sub-datasets together as for one plain read."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

VARIABLE = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
"""Ray Data reads it where a Parquet read is planned (ray/data/_internal/datasource_v2/formats/parquet/
footer_file_indexer.py, Ray 2.60), and there is no argument for it."""

DEFAULT = 32
"""What Ray Data takes where the variable is not set (the same file)."""

_lock = threading.Lock()


@contextlib.contextmanager
def footer_actors(groups: int, files: int) -> Iterator[None]:
    """Have a read that is planned within use its share of the actors that read footers.

    Ray Data starts 32 for each read unless its environment says otherwise: 320 processes for ten nodes.

    Args:
        groups: sub-datasets of the read.
        files: of this one; more actors than files have nothing to do.
    """
    with _lock:
        before = os.environ.get(VARIABLE)
        total = int(before) if before and before.isdecimal() else DEFAULT
        os.environ[VARIABLE] = str(max(1, min(files, total // groups)))
        try:
            yield
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before
