"""The data of the quick start: a Parquet table and a model file, written to the S3 server."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MiB = 1 << 20
TENSOR = 64 * MiB

COLUMNS = 8
ROW_GROUP_ROWS = 1 << 18  # of 8 float64 columns: 16 MiB


def write_table(client: Any, bucket: str, prefix: str, size: int, files: int, scratch: str) -> None:
    """Write a Parquet table of about `size` bytes as `files` files. Random floats: nothing to compress."""
    generator = np.random.default_rng(7)
    rows = size // files // COLUMNS // 8
    for index in range(files):
        columns = {f"c{column}": generator.random(rows) for column in range(COLUMNS)}
        path = os.path.join(scratch, "part.parquet")
        pq.write_table(
            pa.table(columns),
            path,
            row_group_size=ROW_GROUP_ROWS,
            compression="none",
            use_dictionary=False,
        )
        client.upload_file(path, bucket, f"{prefix}/part-{index:03}.parquet")
        os.unlink(path)


def write_model(client: Any, bucket: str, key: str, size: int, scratch: str) -> None:
    """Write a model of `size` bytes of random weights, in the safetensors format: tensors of 64 MiB.

    The format: 8 bytes little-endian, length of a JSON header; the header, {name: {dtype, shape, data_offsets}}; the
    data (https://github.com/huggingface/safetensors, "Format").
    """
    generator = np.random.default_rng(11)
    count = max(1, size // TENSOR)
    header = json.dumps(
        {
            f"layers.{number}.weight": {
                "dtype": "F16",
                "shape": [TENSOR // 2 // 4096, 4096],
                "data_offsets": [number * TENSOR, (number + 1) * TENSOR],
            }
            for number in range(count)
        }
    ).encode()
    path = os.path.join(scratch, "model")
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(count):
            file.write(generator.bytes(TENSOR))
    client.upload_file(path, bucket, key)
    os.unlink(path)
