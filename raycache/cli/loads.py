"""`load`, `evict`, `invalidate`: bring data into the cache before it is needed, out of it, and look it up anew."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from raycache.cli import common
from raycache.cli.failures import warn
from raycache.cli.output import print_lines, size
from raycache.cli.progress import display_for, follow


def load(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Name of the dataset.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Files or directories in it. Default: all of it."),
    ] = None,
    replicas: Annotated[
        str, typer.Option("--replicas", metavar="N|all", help="Number of nodes that get a copy.")
    ] = "1",
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait", help="Start it, print its name, and leave it to itself.", show_default=False
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print progress as JSON, one document per line.", show_default=False),
    ] = False,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout", metavar="DURATION", help="Stop waiting after 30s, 10m, … (the load goes on)."
        ),
    ] = None,
    address: common.Address = None,
) -> None:
    """Load a dataset into the cache, and show the progress.

    Fails unless every byte is cached at the end. Ctrl-C leaves the load running.
    """
    copies = common.replicas(replicas)
    patience = _seconds(timeout)
    admin = common.backend(ctx).admin(common.address(ctx, address))
    name = admin.load(dataset, paths or [], copies)
    if not no_wait:
        follow(admin, name, display_for(as_json=as_json), timeout_s=patience)
    elif as_json:
        print(json.dumps(admin.load_status(name), default=str), flush=True)
    else:
        print_lines([f"dataload/{name} started"])


def _seconds(timeout: str | None) -> float | None:
    if timeout is None:
        return None
    from raycache.spec import parse_duration

    return parse_duration(timeout)


def evict(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Name of the dataset.")],
    path: Annotated[
        str,
        typer.Argument(
            metavar="[PATH]", help="A file or directory in it. Default: all of it.", show_default=False
        ),
    ] = "",
    address: common.Address = None,
) -> None:
    """Drop what is cached of a dataset.

    On every node. What is being read stays until it is not.
    """
    freed = common.backend(ctx).admin(common.address(ctx, address)).evict(dataset, path)
    print_lines([f"dataset/{dataset}: {size(freed)} freed"])
    if not freed and path:
        warn(f"nothing of {path} was cached, or what was is being read")


def invalidate(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Name of the dataset.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Files or directories in it. Default: all of it."),
    ] = None,
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait", help="Do not wait until clients and mounts have heard of it.", show_default=False
        ),
    ] = False,
    address: common.Address = None,
) -> None:
    """Have a dataset's names looked up anew, because they have changed in the store.

    What is opened afterwards is what the store has, in every consistency mode. Open files go on.
    """
    admin = common.backend(ctx).admin(common.address(ctx, address))
    late = admin.invalidate(dataset, paths or ["/"], wait=not no_wait)
    for node, why in sorted(late.items()):
        warn(f"node {node[:12]}: {why}; its worker hears of it from the next who asks it")
    print_lines([f"dataset/{dataset}: {', '.join(paths or ['/'])} invalidated"])
