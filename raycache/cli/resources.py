"""`apply`, `validate`, `get`, `describe`, `delete`: specs, and what became of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raycache.cli import common
from raycache.cli.describe import description
from raycache.cli.failures import Exit, message, say, status_of, warn
from raycache.cli.kinds import Kind, find_kind, kind_of_document, show_name
from raycache.cli.output import Format, print_data, print_lines, table
from raycache.errors import NotFoundError, RaycacheError, SpecError

if TYPE_CHECKING:
    from raycache.cli.backend import AdminLike
    from raycache.spec import Dataset, Document

KindWord = Annotated[
    str, typer.Argument(metavar="KIND", help="datasets, loads, runtimes, workers or secrets; singular too.")
]
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print it.")]
MoreFiles = Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="More spec files.")]


def apply(
    ctx: typer.Context,
    files: MoreFiles = None,
    filename: common.Files = None,
    address: common.Address = None,
) -> None:
    """Create or change what spec files describe.

    All of it is checked before anything changes.
    """
    backend = common.backend(ctx)
    documents = backend.load_files(common.files_given(filename, files))
    results = backend.admin(common.address(ctx, address)).apply(documents)
    print_lines(report_applied(results))


def report_applied(results: list[dict[str, Any]]) -> list[str]:
    """Lines that tell what `apply` did; warnings go to standard error at once."""
    lines = []
    for result in results:
        for warning in result.get("warnings") or ():
            warn(warning)
        lines.append(f"{show_name(kind_of_document(result['kind']), result['name'])} {result['action']}")
    return lines


def validate(ctx: typer.Context, files: MoreFiles = None, filename: common.Files = None) -> None:
    """Check spec files without a cluster."""
    documents = common.backend(ctx).load_files(common.files_given(filename, files))
    for document in documents:
        for warning in document.warnings:
            warn(warning)
    _check_references(documents)
    print_lines(f"{show_name(kind_of_document(item.kind), item.name)} valid" for item in documents)


def _check_references(documents: list[Document]) -> None:
    """Resolve every dataset as far as these files allow; what may be on the cluster already is a warning."""
    from raycache.spec import CacheRuntime, DataLoad, Dataset, Secret, TierSpec, resolve, runtime_for

    models = [document.model for document in documents]
    runtimes = {model.name: model for model in models if isinstance(model, CacheRuntime)}
    secrets = {model.name: model for model in models if isinstance(model, Secret)}
    datasets = {model.name for model in models if isinstance(model, Dataset)}
    anywhere = [
        TierSpec(medium="MEM", path="/dev/shm", quota_ratio=0.1)
    ]  # the cluster's own tiers are not known
    for document in documents:
        model = document.model
        if isinstance(model, DataLoad) and model.spec.dataset.name not in datasets:
            warn(f"{document.where}: dataset {model.spec.dataset.name!r} is not in these files")
        if not isinstance(model, Dataset):
            continue
        absent = {f"secret {name!r}" for name in _secrets_of(model) if name not in secrets}
        if model.spec.runtime and model.spec.runtime not in runtimes:
            absent.add(f"runtime {model.spec.runtime!r}")
        for thing in sorted(absent):
            warn(f"{document.where}: {thing} is not in these files")
        if not absent:
            resolve(model, runtime_for(model, runtimes), secrets, anywhere)


def _secrets_of(dataset: Dataset) -> Iterator[str]:
    for mount in dataset.spec.mounts:
        for option in mount.encrypt_options:
            yield option.value_from.secret_key_ref.name


def get(
    ctx: typer.Context,
    kind: KindWord,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these.")] = None,
    output: Output = Format.TABLE,
    address: common.Address = None,
) -> None:
    """List things of one kind, or show some of them."""
    found, names = _kind_and_names(kind, names)
    admin = common.backend(ctx).admin(common.address(ctx, address))
    wanted: list[str | None] = [*names] or [None]
    rows = [row for name in wanted for row in _rows(admin, found, name)]
    if output in (Format.JSON, Format.YAML):
        print_data(rows[0] if len(names) == 1 else rows, output)
    elif rows:
        print_lines(table(rows, found.columns, wide=output is Format.WIDE))
    else:
        say(f"No {found.plural} found.")


def _rows(admin: AdminLike, kind: Kind, name: str | None) -> list[dict[str, Any]]:
    rows = [_without_secrets(kind, row) for row in admin.get(kind.plural, name)]
    if name is not None and not rows:
        known = [str(row.get("name") or row.get("id")) for row in admin.get(kind.plural)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"`raycache get {kind.plural}` lists what there is"
        raise NotFoundError(f"no {kind.singular} {name!r}", hint=hint)
    return rows


def _without_secrets(kind: Kind, row: dict[str, Any]) -> dict[str, Any]:
    """A row that may be printed. `Admin` gives no secrets away; this is the second lock on the door."""
    return (
        {key: value for key, value in row.items() if key not in ("data", "stringData")}
        if (kind.document == "Secret")
        else row
    )


def _kind_and_names(word: str, names: list[str] | None) -> tuple[Kind, list[str]]:
    """The kind and names of `datasets a b`, or of `dataset/a`."""
    kind, slash, name = word.partition("/")
    if slash and (names or not name):
        raise SpecError("give KIND/NAME, or KIND and names", where=word)
    return find_kind(kind), [name] if slash else list(names or [])


def describe(
    ctx: typer.Context,
    kind: KindWord,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Its name.")] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print it.")] = Format.TABLE,
    address: common.Address = None,
) -> None:
    """Show all about one thing: spec, state, usage, events.

    Secrets are masked.
    """
    found, names = _kind_and_names(kind, [name] if name else None)
    if not names:
        raise SpecError(f"which {found.singular}?", hint=f"`raycache get {found.plural}` lists what there is")
    data = common.backend(ctx).admin(common.address(ctx, address)).describe(found.plural, names[0])
    if output in (Format.JSON, Format.YAML):
        print_data(data, output)
    else:
        print_lines(description(data))


_DELETED_FIRST = {"DataLoad": 0, "Dataset": 1}


def delete(
    ctx: typer.Context,
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[KIND NAME...]", help="What to delete, if not by file.")
    ] = None,
    filename: common.Files = None,
    ignore_not_found: Annotated[
        bool,
        typer.Option("--ignore-not-found", help="Do not fail for what does not exist.", show_default=False),
    ] = False,
    address: common.Address = None,
) -> None:
    """Delete things, and what is cached for them.

    The data in the object store stays.
    """
    backend = common.backend(ctx)
    if filename:
        documents = backend.load_files([*filename, *(what or [])])
        # What refers to something goes before what it refers to; a runtime or a secret in use cannot be deleted.
        documents.sort(key=lambda document: _DELETED_FIRST.get(document.kind, 2))
        wanted = [(kind_of_document(document.kind), document.name) for document in documents]
    else:
        wanted = _named(what or [])
    admin = backend.admin(common.address(ctx, address))
    failed: Exit | None = None
    for kind, name in wanted:
        try:
            admin.delete(kind.plural, name)
        except NotFoundError as error:
            if not ignore_not_found:
                failed = _note(error)
        except RaycacheError as error:
            failed = _note(error)
        else:
            print_lines([f"{show_name(kind, name)} deleted"])
    if failed is not None:
        raise typer.Exit(failed)


def _note(error: RaycacheError) -> Exit:
    """Say what failed, go on with the rest; the status of the last failure is the command's."""
    say(message(error))
    return status_of(error)


def _named(words: list[str]) -> list[tuple[Kind, str]]:
    hint = "use `raycache delete KIND NAME`, or `raycache delete -f FILE`"
    if not words:
        raise SpecError("what is to be deleted?", hint=hint)
    kind, names = _kind_and_names(words[0], words[1:])
    if not names:
        raise SpecError(f"which {kind.singular}?", hint=hint)
    if not kind.document:
        raise SpecError(f"a {kind.singular} cannot be deleted", hint="`raycache stop` stops the cache")
    return [(kind, name) for name in names]
