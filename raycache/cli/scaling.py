"""`scale`, `drain`, `undrain`: on how many nodes a dataset is held, and which nodes hold nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from raycache.cli import common
from raycache.cli.failures import warn
from raycache.cli.output import print_lines, size
from raycache.errors import SpecError

Node = Annotated[
    str,
    typer.Argument(metavar="NODE", help="Ray node id, or the beginning of it, or the name of its worker."),
]


def scale(
    ctx: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Name of the dataset.")],
    replicas: Annotated[
        str, typer.Argument(metavar="N|MIN:MAX|all", help="Number of nodes that hold it, or bounds of it.")
    ],
    address: common.Address = None,
) -> None:
    """Change on how many nodes a dataset is held.

    Nodes that go move what only they have to the others first, in the background. The rest of the spec stays; applying
    the dataset's file again brings back the number that is in it.
    """
    wanted = replicas_of(replicas)
    change = common.backend(ctx).admin(common.address(ctx, address)).scale(dataset, wanted)
    for warning in change["warnings"]:
        warn(warning)
    print_lines([f"dataset/{dataset} {'unchanged' if change['action'] == 'unchanged' else 'scaled'}"])


def drain(
    ctx: typer.Context,
    node: Node,
    timeout: Annotated[
        str,
        typer.Option("--timeout", metavar="DURATION", help="What has not moved by then is left behind."),
    ] = "10m",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait until it has ended.", show_default=False)
    ] = False,
    address: common.Address = None,
) -> None:
    """Move what only a node holds to the others, and end its worker.

    It serves until that has ended. The node holds nothing from then on, until `raycache undrain`.
    """
    from raycache.spec import parse_duration

    admin = common.backend(ctx).admin(common.address(ctx, address))
    found = admin.drain(node, parse_duration(timeout), wait=not no_wait)
    short = found["node_id"][:12]
    if not found["ended"]:
        print_lines([f"node/{short} is being drained; see `raycache get workers -o wide`"])
        return
    for dataset, progress in sorted(found["datasets"].items()):
        print_lines([f"dataset/{dataset}: {size(progress['bytes_moved'])} moved"])
        for reason, left in sorted(progress["bytes_left"].items()):
            warn(f"dataset/{dataset}: {size(left)} left behind: {reason}")
    print_lines([f"node/{short} drained"])


def undrain(ctx: typer.Context, node: Node, address: common.Address = None) -> None:
    """Let a drained node hold datasets again."""
    node_id = common.backend(ctx).admin(common.address(ctx, address)).undrain(node)
    print_lines([f"node/{node_id[:12]} may hold datasets again"])


def replicas_of(text: str) -> int | str | Mapping[str, Any]:
    """`all`, `3`, `1:3` or `2:` as `Admin.scale` takes them. Raises SpecError."""
    least, colon, most = text.partition(":")
    if text == "all":
        return text
    if not least.isdigit() or (most and not most.isdigit()):
        raise SpecError("not a number of nodes", where=text, hint="write 3, or 1:3, or all")
    if not colon:
        return int(least)
    return {"min": int(least)} | ({"max": int(most)} if most else {})
