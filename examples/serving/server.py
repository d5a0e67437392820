"""A model server, as far as loading goes: it knows one path, and nothing of raycache.

    python server.py /data/model.safetensors [--how mmap|read]

It loads the model as safetensors loaders do: the header says where each tensor is, the file is mapped, and each
tensor is copied out of the mapping into a buffer that stands for the accelerator's memory. `--how read` reads the
tensors instead. Then it prints one line of JSON: path, tensors, bytes, seconds from the open to the last tensor.

The format: 8 bytes little-endian, length of a JSON header; the header, {name: {dtype, shape, data_offsets}}; the data
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import time


def load(path: str, how: str) -> tuple[int, int]:
    """Load all tensors of a safetensors file.

    Args:
        path: of the file.
        how: "mmap" or "read".

    Returns:
        How many, and how many bytes they have.

    Raises:
        ValueError: the file is not what its header says.
    """
    with open(path, "rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        start = 8 + length
        places = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        places.sort()
        device = memoryview(bytearray(max(end - begin for begin, end in places)))
        if how == "read":
            for begin, end in places:
                _read(file.fileno(), start + begin, device[: end - begin])
        else:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                for begin, end in places:
                    tensor = view[start + begin : start + end]
                    if len(tensor) != end - begin:
                        raise ValueError(f"{path} is too short")
                    device[: end - begin] = tensor
                    tensor.release()
    return len(places), sum(end - begin for begin, end in places)


def _read(descriptor: int, offset: int, into: memoryview) -> None:
    while into:
        count = os.preadv(descriptor, [into], offset)
        if count == 0:
            raise ValueError("the file is too short")
        into = into[count:]
        offset += count


def main() -> None:
    """Parse the command line, load, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="path of a safetensors file")
    parser.add_argument("--how", choices=("mmap", "read"), default="mmap")
    arguments = parser.parse_args()
    started = time.perf_counter()
    tensors, size = load(arguments.model, arguments.how)
    seconds = time.perf_counter() - started
    json.dump({"path": arguments.model, "tensors": tensors, "bytes": size, "seconds": seconds}, sys.stdout)
    print(flush=True)


if __name__ == "__main__":
    main()
