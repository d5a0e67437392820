"""`mount` and `unmount`: a dataset, or a place in an object store, as a directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raycache.cli import attend, common, mounted
from raycache.cli.failures import Exit, warn
from raycache.cli.output import Format, print_data, print_lines, table
from raycache.errors import DatasetNotFoundError, SpecError

if TYPE_CHECKING:
    from raycache.cli.backend import Backend
    from raycache.cli.mountspec import Wishes
    from raycache.spec import ResolvedDataset

MOST_READAHEAD_KIB = 1 << 20


def mount(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE] PATH",
            help="What to mount, and the directory to mount it at. SOURCE is the name of a dataset, or a URI such as"
            " s3://bucket/prefix, which needs no cluster.",
            show_default=False,
        ),
    ] = None,
    status: Annotated[
        bool,
        typer.Option(
            "--status", help="Show what is mounted, or how the mount at PATH is.", show_default=False
        ),
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="KEY=VALUE",
            help="Option of the object store (endpoint, region, profile, pathStyle, …); may be repeated."
            " With --status: table, wide, json or yaml.",
            show_default=False,
        ),
    ] = None,
    filename: Annotated[
        str | None,
        typer.Option(
            "--filename",
            "-f",
            metavar="FILE",
            help="Spec file that has the dataset, to mount it without a cluster.",
            show_default=False,
        ),
    ] = None,
    cache_dir: Annotated[
        str | None,
        typer.Option(
            "--cache-dir",
            metavar="DIR",
            help="Without a cluster: where to cache. Default: RAYCACHE_CACHE_DIR, else ~/.cache/raycache.",
            show_default=False,
        ),
    ] = None,
    cache_size: Annotated[
        str | None,
        typer.Option(
            "--cache-size",
            metavar="SIZE",
            help="Without a cluster: how much to cache there: 10Gi, or a share of the disk. Default: 10%.",
            show_default=False,
        ),
    ] = None,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            "--tier",
            metavar="MEDIUM:PATH:QUOTA",
            help="Without a cluster, instead of --cache-dir: MEM:/dev/shm/raycache:4Gi. May be repeated.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Of a URI: name of the dataset. Default: made of the URI.", show_default=False
        ),
    ] = None,
    block_size: Annotated[
        str | None,
        typer.Option(
            "--block-size",
            metavar="SIZE",
            help="Of a URI: unit of fetching and caching. Default: 4Mi.",
            show_default=False,
        ),
    ] = None,
    metadata_ttl: Annotated[
        str | None,
        typer.Option(
            "--metadata-ttl",
            metavar="DURATION",
            help="Of a URI: how long listings and versions are believed. Default: 30s.",
            show_default=False,
        ),
    ] = None,
    immutable: Annotated[
        bool,
        typer.Option(
            "--immutable", help="Of a URI: objects never change; nothing is asked twice.", show_default=False
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Of a URI: every open asks the store.", show_default=False)
    ] = False,
    uid: Annotated[
        int | None, typer.Option("--uid", help="Owner shown for files.", show_default=False)
    ] = None,
    gid: Annotated[
        int | None, typer.Option("--gid", help="Group shown for files.", show_default=False)
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="OCTAL",
            help="Permission bits shown for files. Default: 0444.",
            show_default=False,
        ),
    ] = None,
    allow_other: Annotated[
        bool,
        typer.Option(
            "--allow-other/--no-allow-other",
            help="Let other users of the machine in, as far as the permission bits do.",
        ),
    ] = True,
    readahead: Annotated[
        str | None,
        typer.Option(
            "--readahead", metavar="SIZE", help="The kernel's readahead. Default: 4Mi.", show_default=False
        ),
    ] = None,
    foreground: Annotated[
        bool,
        typer.Option(
            "--foreground", help="Stay until it is unmounted; a signal unmounts.", show_default=False
        ),
    ] = False,
    address: common.Address = None,
) -> None:
    """Mount a dataset, or a place in an object store, as a read-only directory.

    A dataset of a cluster is read through the cluster's cache. A URI, or a spec file (-f), needs no cluster: what is
    read is cached on this machine. Credentials come from the spec, or as the AWS tools find them.
    """
    backend = common.backend(ctx)
    if status:
        _show(ctx, backend, words or [], option or [])
        return
    from raycache.cli.mountspec import Wishes

    wishes = Wishes(
        options=tuple(option or ()),
        name=name,
        block_size=block_size,
        metadata_ttl=metadata_ttl,
        immutable=immutable,
        strict=strict,
        cache_dir=cache_dir,
        cache_size=cache_size,
        tiers=tuple(tier or ()),
        uid=uid,
        gid=gid,
        mode=mode,
    )
    source, point = _source_and_path(words or [], filename)
    how: dict[str, Any] = {"allow_other": allow_other}
    if readahead is not None:
        how["readahead_kib"] = _kib(readahead)
    if filename is not None:
        config, label = _of_file(backend, filename, source, wishes)
    elif "://" in source:
        config, label = _of_uri(source, wishes)
    else:
        config, label = _of_cluster(backend, source, wishes, _address(ctx, address))
    attending = attend.Signals() if foreground else None  # before there is a mount that nobody would end
    found = backend.mount(point, config, label, how)
    for warning in found.details.get("warnings") or ():
        warn(warning)
    served = mounted.served(found) or "nobody has asked for anything yet"
    print_lines([f"{label} is mounted at {found.mountpoint} ({served})"])
    if attending is not None:
        attend.until_ended(backend, found, attending)


def _source_and_path(words: Sequence[str], filename: str | None) -> tuple[str, str]:
    most = "raycache mount [DATASET] PATH -f FILE" if filename is not None else "raycache mount SOURCE PATH"
    if filename is not None and len(words) == 1:
        return "", words[0]
    if len(words) != 2:
        raise SpecError(
            "what is to be mounted, and where?" if len(words) < 2 else "too many words", hint=f"use `{most}`"
        )
    return words[0], words[1]


def _address(ctx: typer.Context, given: str | None) -> str | None:
    """The Ray address that was given by hand, or nothing: then RAYCACHE_ADDRESS comes before RAY_ADDRESS."""
    from raycache.settings import Settings

    root = ctx.find_root()
    source = root.get_parameter_source("address")
    by_hand = source is not None and source.name == "COMMANDLINE"
    if given is None and not by_hand and Settings.from_environ().address:
        return None
    return common.address(ctx, given)


def _of_cluster(
    backend: Backend, name: str, wishes: Wishes, address: str | None
) -> tuple[dict[str, Any], str]:
    from raycache.cli.mountspec import as_wished
    from raycache.settings import Settings

    if "/" in name or name in (".", ".."):
        raise SpecError(
            "that is not a dataset's name",
            where=name,
            hint=f"of a directory, write file://{os.path.abspath(name)}; of a bucket, s3://bucket/prefix",
        )
    if wishes.of_the_spec():  # said before anybody looks for a cluster: perhaps none is meant
        raise SpecError(
            "that is for a mount of a URI: here, the dataset's spec says it",
            where=", ".join(wishes.of_the_spec()),
            hint=f"change the spec of dataset {name}; if it is a bucket, write s3://{name}",
        )
    if wishes.of_the_cache():
        raise SpecError(
            "the cluster's workers cache",
            where=", ".join(wishes.of_the_cache()),
            hint="leave it out; a CacheRuntime says where and how much",
        )
    embedded = Settings.from_environ().address.partition("embedded:")[2]
    if address is None and embedded:
        return _of_file(backend, embedded, name, wishes)
    from raycache.fuse.configs import cluster_config

    found = backend.whereabouts(name, address)
    return cluster_config(as_wished(found.dataset, wishes), found.addresses, found.token), name


def _of_file(backend: Backend, filename: str, name: str, wishes: Wishes) -> tuple[dict[str, Any], str]:
    from raycache.cli.mountspec import as_wished
    from raycache.fuse.configs import embedded_config

    dataset = _pick(backend.datasets_in(filename), filename, name)
    return embedded_config(as_wished(dataset, wishes)), dataset.name


def _pick(datasets: list[ResolvedDataset], filename: str, name: str) -> ResolvedDataset:
    names = [dataset.name for dataset in datasets]
    if not names:
        raise SpecError("there is no Dataset in the file", where=filename)
    if not name and len(names) > 1:
        raise SpecError(
            f"which dataset? There are {', '.join(names)}",
            where=filename,
            hint=f"raycache mount {names[0]} PATH -f {filename}",
        )
    if name and name not in names:
        raise DatasetNotFoundError(
            f"no dataset {name!r}", where=filename, hint=f"there are: {', '.join(names)}"
        )
    return datasets[names.index(name) if name else 0]


def _of_uri(uri: str, wishes: Wishes) -> tuple[dict[str, Any], str]:
    from raycache.cli.mountspec import dataset_at
    from raycache.fuse.configs import embedded_config

    dataset = dataset_at(uri, wishes)
    return embedded_config(dataset), wishes.name or dataset.mounts[0].uri


def _kib(text: str) -> int:
    from raycache.spec import parse_size

    try:
        kib = parse_size(text) >> 10
    except SpecError as error:
        raise SpecError(error.what, where=f"--readahead {text}", hint=error.hint) from None
    if not 4 <= kib <= MOST_READAHEAD_KIB:
        raise SpecError("must be from 4Ki to 1Gi", where=f"--readahead {text}", hint="4Mi suits most data")
    return kib


# -- what is mounted ----------------------------------------------------------------------------------------


def _show(ctx: typer.Context, backend: Backend, words: Sequence[str], options: Sequence[str]) -> None:
    if len(words) > 1:
        raise SpecError("too many words", hint="use `raycache mount --status [PATH]`")
    try:
        form = Format(options[-1]) if options else Format.TABLE
    except ValueError:
        raise SpecError(
            "no way to print it", where=f"-o {options[-1]}", hint="use -o table, wide, json or yaml"
        ) from None
    found = backend.mounts(words[0] if words else None)
    rows = [mounted.row(one) for one in found]
    debug = bool(ctx.find_root().params.get("debug"))
    if form in (Format.JSON, Format.YAML):
        for row, one in zip(rows, found, strict=True):
            row["log"] = backend.log_of(one)
        print_data(rows[0] if words else rows, form)
    elif rows:
        print_lines(table(rows, mounted.COLUMNS, wide=form is Format.WIDE))
        troubles = [(row["mountpoint"], row[key]) for row in rows for key in ("error", "problem") if row[key]]
        print_lines(f"{point}: {trouble}" for point, trouble in troubles)
        for one in found if debug else ():
            print_lines(["", f"{one.mountpoint}, log:", *backend.log_of(one).splitlines()])
    else:
        print_lines(["Nothing is mounted."])
    if words and not mounted.in_use(found[0]):
        raise typer.Exit(Exit.FAILED)


def unmount(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Where it is mounted.")],
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="End what serves it too: whoever has a file open gets errors.", show_default=False
        ),
    ] = False,
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="Stop waiting for the end after 10s, 1m, …")
    ] = "30s",
) -> None:
    """Unmount. Files that are open can still be read, and are served until they are closed."""
    from raycache.spec import parse_duration

    after = common.backend(ctx).unmount(path, force=force, timeout_s=parse_duration(timeout))
    print_lines([mounted.farewell(after)])
    if mounted.comes_back(after):
        warn(
            f"a worker of the cluster will mount it again: take `mountPath` out of the spec of dataset {after.source}"
            " to be rid of it"
        )
