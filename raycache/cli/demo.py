"""`demo`: shows on this machine what raycache does, with the programs of a source checkout."""

from __future__ import annotations

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from raycache.errors import SpecError

_PROGRAM = {"quickstart": "examples/quickstart/demo.py", "serving": "examples/serving/demo.py"}


class Which(StrEnum):
    """The demos there are."""

    QUICKSTART = "quickstart"
    SERVING = "serving"


def demo(
    which: Annotated[
        Which,
        typer.Argument(
            metavar="quickstart|serving",
            help="quickstart: a Parquet scan and a model load, from S3, cold and warm. serving: model servers that load"
            " a file of a mount, cold and warm, one and three at once; needs FUSE.",
        ),
    ],
    bandwidth: Annotated[
        float, typer.Option("--bandwidth", metavar="MB/S", help="Of the store; 0: not slowed.", min=0)
    ] = 100.0,
    size: Annotated[int, typer.Option("--size", metavar="MIB", help="Of each data set.", min=64)] = 512,
) -> None:
    """Show what raycache does, on this machine: an S3 server, a Ray cluster, a dataset.

    It runs from a source checkout (`git clone`), with its development group installed: the S3 server comes from there.
    """
    program = _PROGRAM[which.value]
    checkout = _checkout(program)
    module = program.removesuffix(".py").replace("/", ".")
    command = [sys.executable, "-m", module, f"--bandwidth={bandwidth:g}", f"--size={size}"]
    try:
        status = subprocess.run(command, cwd=checkout, check=False).returncode
    except KeyboardInterrupt:  # it has had it too, and has ended what it started
        status = 130
    raise typer.Exit(status if status >= 0 else 128 - status)


def _checkout(program: str) -> Path:
    """The source tree: the one that this package is installed from, else the directory that we are in.

    Raises:
        SpecError: neither is one.
    """
    import raycache

    for place in (Path(raycache.__file__).parents[1], Path.cwd()):
        if (place / program).exists() and (place / "tests" / "support").is_dir():
            return place
    raise SpecError(
        "the demos need raycache's source checkout, and this is an installed package",
        where=str(Path(raycache.__file__).parent),
        hint="clone the repository, and there: pip install --editable . --group dev; or: make demo",
    )
