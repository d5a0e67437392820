"""`token`: who outside the Ray cluster may read what."""

from __future__ import annotations

from typing import Annotated

import typer

from raycache.cli import common
from raycache.cli.failures import warn
from raycache.cli.output import Column, age, print_lines, table

app = typer.Typer(
    help="Tokens for clients and mounts outside the Ray cluster, and the keys that sign them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def create(
    ctx: typer.Context,
    datasets: Annotated[
        list[str],
        typer.Option("--dataset", metavar="NAME", help="What it is for, or '*' for all. May be repeated."),
    ],
    verbs: Annotated[
        str, typer.Option("--verbs", metavar="VERB,...", help="What it allows: read, invalidate.")
    ] = "read",
    ttl: Annotated[
        str, typer.Option("--ttl", metavar="DURATION", help="How long it is valid; at most a year.")
    ] = "24h",
    name: Annotated[
        str, typer.Option("--name", metavar="TEXT", help="Whom it is for.", show_default=False)
    ] = "",
    address: common.Address = None,
) -> None:
    """Print a new token, for `RAYCACHE_TOKEN`.

    Whoever has it may do what it says until it ends, or its key is dropped.
    """
    from raycache.spec import parse_duration

    admin = common.backend(ctx).admin(common.address(ctx, address))
    wanted = [verb.strip() for verb in verbs.split(",") if verb.strip()]
    print_lines([admin.create_token(datasets, wanted, parse_duration(ttl), name)])


@app.command()
def keys(ctx: typer.Context, address: common.Address = None) -> None:
    """Show the keys whose tokens are accepted; the one made last signs new ones."""
    found = common.backend(ctx).admin(common.address(ctx, address)).token_keys()
    rows = [{"key": key, "created": created} for key, created in found.items()]
    rows[-1]["signs"] = True
    print_lines(table(rows, _COLUMNS))


@app.command()
def rotate(
    ctx: typer.Context,
    revoke: Annotated[
        bool,
        typer.Option("--revoke", help="Refuse every token that was made before.", show_default=False),
    ] = False,
    address: common.Address = None,
) -> None:
    """Sign tokens with a new key.

    Tokens that were made before go on being accepted until their end, or until their key is dropped.
    """
    _warn(common.backend(ctx).admin(common.address(ctx, address)).rotate_token_keys(revoke))
    print_lines(["keys rotated" + (", tokens made before are refused" if revoke else "")])


@app.command()
def drop(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Id of one of the older keys.")],
    address: common.Address = None,
) -> None:
    """Refuse the tokens that one of the older keys has signed."""
    _warn(common.backend(ctx).admin(common.address(ctx, address)).drop_token_key(key))
    print_lines([f"key/{key} dropped"])


def _warn(late: dict[str, str]) -> None:
    for node, why in sorted(late.items()):
        warn(f"node {node[:12]}: {why}; its worker takes the keys as soon as it answers")


_COLUMNS = (
    Column("KEY", lambda row: str(row["key"])),
    Column("SIGNS", lambda row: "yes" if row.get("signs") else ""),
    Column("AGE", lambda row: age(row["created"])),
)
