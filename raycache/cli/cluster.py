"""`start`, `stop`, `status`, `version`: the cache itself."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raycache import __version__
from raycache.cli import common
from raycache.cli.describe import description
from raycache.cli.kinds import find_kind
from raycache.cli.output import Format, print_data, print_lines, table
from raycache.errors import SpecError

if TYPE_CHECKING:
    from raycache.spec import TierSpec

Output = Annotated[Format, typer.Option("--output", "-o", help="How to print it.")]


def start(
    ctx: typer.Context,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            "--tier",
            metavar="MEDIUM:PATH:QUOTA",
            help="Where to cache what no CacheRuntime says otherwise of: MEM:/dev/shm:10Gi, SSD:/mnt/nvme0:40%."
            " May be repeated.",
            show_default=False,
        ),
    ] = None,
    num_cpus: Annotated[
        int | None,
        typer.Option(
            "--num-cpus", min=1, help="CPUs of the local Ray cluster, if one is started.", show_default=False
        ),
    ] = None,
    output: Output = Format.TABLE,
    address: common.Address = None,
) -> None:
    """Start raycache on a Ray cluster, or on a new local one."""
    tiers = [tier_of(text) for text in tier or ()] or None
    result = common.backend(ctx).start(common.address(ctx, address), tiers=tiers, num_cpus=num_cpus)
    headline = "raycache runs already" if result.get("already") else "raycache is started"
    if output in (Format.TABLE, Format.WIDE):
        result = {key: value for key, value in result.items() if key != "already"}
    _show(headline, result, output)


def tier_of(text: str) -> TierSpec:
    """The tier that `--tier MEDIUM:PATH:QUOTA` means. Raises SpecError."""
    from raycache.spec import TierSpec
    from raycache.spec.quantities import parse_quota
    from raycache.spec.resolve import AUTO_SHARE, MEDIA

    word, _, rest = text.partition(":")
    path, _, amount = rest.rpartition(":")
    medium = next((name for name in MEDIA if name == word.upper()), None)
    if medium is None or not path.startswith("/"):
        raise SpecError(
            "not a tier",
            where=f"--tier {text}",
            hint="write MEDIUM:/path:quota, such as MEM:/dev/shm:10Gi or SSD:/mnt/nvme0:40%",
        )
    try:
        quota = parse_quota(amount)
    except SpecError as error:
        raise SpecError(error.what, where=f"--tier {text}", hint=error.hint) from None
    if quota.auto and medium != "MEM":
        raise SpecError("auto is for MEM only", where=f"--tier {text}", hint="give a size, or a percentage")
    return TierSpec(
        medium=medium,
        path=path,
        quota=quota.size,
        quota_ratio=AUTO_SHARE if quota.auto else quota.ratio,
        auto=quota.auto,
        huge_pages=medium == "MEM",
    )


def stop(
    ctx: typer.Context,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Remove what is cached on the nodes' disks too.", show_default=False),
    ] = False,
    output: Output = Format.TABLE,
    address: common.Address = None,
) -> None:
    """Stop raycache. Ends the Ray cluster too if `raycache start` started it. The object store keeps what it holds."""
    result = common.backend(ctx).stop(common.address(ctx, address), purge=purge)
    _show("raycache is stopped", result, output)


def status(ctx: typer.Context, output: Output = Format.TABLE, address: common.Address = None) -> None:
    """Show how the cache is doing: coordinator, workers, usage."""
    admin = common.backend(ctx).admin(common.address(ctx, address))
    _show("", admin.status(), output)
    if output in (Format.TABLE, Format.WIDE):
        workers = find_kind("workers")
        rows = admin.get(workers.plural)
        print_lines(["", *table(rows, workers.columns, wide=output is Format.WIDE)] if rows else [])


def _show(headline: str, result: dict[str, Any] | None, output: Format) -> None:
    if output in (Format.JSON, Format.YAML):
        print_data(result or {}, output)
        return
    print_lines([headline] if headline else [])
    print_lines(description(result or {}, "  " if headline else ""))


def version(output: Output = Format.TABLE) -> None:
    """Print the version of raycache and of what it stands on."""
    versions = {"raycache": __version__, "python": platform.python_version()}
    for package in ("ray", "pyarrow", "obstore", "fsspec"):
        try:
            versions[package] = version_of(package)
        except PackageNotFoundError:
            continue
    if output in (Format.JSON, Format.YAML):
        print_data(versions, output)
    else:
        print_lines(f"{name} {number}" for name, number in versions.items())
