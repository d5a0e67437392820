"""The `raycache` program: its own options, and the commands put together."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raycache import __version__
from raycache.cli import cluster, demo, loads, mount, resources, runner, scaling, tokens, webhook
from raycache.cli.backend import Backend
from raycache.cli.failures import EXIT_STATUS_HELP, Exit, explained, silence_stdout

_ALIASES = {"umount": "unmount"}


class _Commands(TyperGroup):
    """The group of all commands; explains what they raise."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, _ALIASES.get(cmd_name, cmd_name))

    def invoke(self, ctx: Any) -> Any:
        with explained(debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def _options(
    ctx: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            envvar="RAY_ADDRESS",
            help="Address of the Ray cluster; every command takes it too. Default: the one on this machine.",
            show_default=False,
        ),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="RAYCACHE_DEBUG", help="Show tracebacks.", show_default=False)
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version.", show_default=False
        ),
    ] = False,
) -> None:
    """A cache on a Ray cluster: object-store data at local-disk speed, next to the compute that reads it."""
    if ctx.obj is None:
        ctx.obj = Backend()


def _make() -> typer.Typer:
    # Plain help and plain complaints: they are read in job logs too, and rich's would cost a tenth of a second.
    program = typer.Typer(
        name="raycache",
        cls=_Commands,
        callback=_options,
        epilog=EXIT_STATUS_HELP,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.command()(cluster.start)
    program.command()(cluster.stop)
    program.command()(cluster.status)
    program.command()(resources.apply)
    program.command()(resources.validate)
    program.command()(resources.get)
    program.command()(resources.describe)
    program.command()(resources.delete)
    program.command()(loads.load)
    program.command()(loads.evict)
    program.command()(loads.invalidate)
    program.command()(scaling.scale)
    program.command()(scaling.drain)
    program.command()(scaling.undrain)
    program.add_typer(tokens.app, name="token")
    program.command()(mount.mount)
    program.command()(mount.unmount)
    program.command()(webhook.webhook)
    # What follows the first word is the command's, dashes and all.
    program.command(context_settings={"allow_interspersed_args": False})(runner.run)
    program.command()(demo.demo)
    program.command()(cluster.version)
    return program


app = _make()


def run() -> None:
    """Run the program on `sys.argv`, and end the process."""
    status: Any = Exit.UNEXPECTED
    try:
        try:
            app()
        except SystemExit as end:
            status = end.code
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        status = Exit.BROKEN_PIPE
    sys.exit(status)
