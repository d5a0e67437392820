"""What several commands share: their options, and the backend of a context."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from raycache.cli.backend import Backend, Replicas
from raycache.errors import SpecError

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Address of the Ray cluster. Default: RAY_ADDRESS, else the cluster running on this machine.",
        show_default=False,
    ),
]
Files = Annotated[
    list[str] | None,
    typer.Option(
        "--filename",
        "-f",
        metavar="FILE",
        help="Spec file, directory of them, or - for standard input. May be repeated.",
        show_default=False,
    ),
]


def backend(ctx: typer.Context) -> Backend:
    """The backend that the program, or a test, put in the context."""
    return cast(Backend, ctx.find_root().obj)


def address(ctx: typer.Context, given: str | None) -> str | None:
    """The Ray address: as given to the command, else to the program, else by RAY_ADDRESS."""
    return given or ctx.find_root().params.get("address") or None


def replicas(text: str) -> Replicas:
    """`all`, or a number of nodes.

    Raises:
        SpecError: neither.
    """
    if text == "all":
        return "all"
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise SpecError(f"{text!r} is not a number of nodes", where="--replicas", hint="give 1, 2, … or all")


def files_given(filename: list[str] | None, more: list[str] | None) -> list[str]:
    """Files of `-f a.yaml -f b.yaml`, and of `-f *.yaml`, of which a shell makes `-f a.yaml b.yaml`.

    Raises:
        SpecError: none is given.
    """
    if not filename:
        raise SpecError("no spec file given", hint="use -f FILE, or -f - for standard input")
    return [*filename, *(more or [])]
