"""`run`: apply a spec, wait for its loads, and become a command that reads through the cache."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from raycache.cli import common, supervise
from raycache.cli.failures import say
from raycache.cli.progress import display_for, follow
from raycache.cli.resources import report_applied
from raycache.errors import ClusterUnavailableError, SpecError

if TYPE_CHECKING:
    from raycache.cli.backend import AdminLike, Backend, Replicas
    from raycache.spec import DataLoad, Document


def run(
    ctx: typer.Context,
    command: Annotated[list[str] | None, typer.Argument(metavar="COMMAND...", help="What to run.")] = None,
    filename: common.Files = None,
    no_wait_loads: Annotated[
        bool,
        typer.Option(
            "--no-wait-loads", help="Run the command while the DataLoads go on.", show_default=False
        ),
    ] = False,
    address: common.Address = None,
) -> None:
    """Apply a spec, wait for its loads, then run a command.

    Ends with the status of the command, and passes signals on to it. Starts raycache on the cluster if it is not
    there yet. The command finds the cluster through RAY_ADDRESS. Made for Ray jobs:
    `ray job submit -- raycache run -f dataset.yaml -- python train.py`.
    """
    backend = common.backend(ctx)
    files = common.files_given(filename, None)
    program = _find_program(command or [])
    documents = backend.load_files(files)
    admin = _connect_or_start(backend, common.address(ctx, address))
    results = admin.apply(documents)
    for line in report_applied(results):
        say(line)
    if not no_wait_loads:
        _wait_for_loads(admin, documents, results)
    environ = backend.environment()
    backend.disconnect()
    # Another process takes over from here: one without Ray in its memory and threads, under which signals are
    # simple to pass on.
    interpreter = [sys.executable, "-I", "-S", supervise.__file__]
    backend.exec([*interpreter, program, *(command or [])], environ)


def _find_program(command: list[str]) -> str:
    """Path of the program of a command, before anything is done for it in vain."""
    if not command:
        raise SpecError("no command given", hint="raycache run -f dataset.yaml -- python train.py")
    found = shutil.which(command[0])
    if found is not None:
        return os.path.abspath(found)
    there = os.path.exists(command[0]) and "/" in command[0]
    say(f"error: {command[0]}: " + ("not a program that may be executed" if there else "command not found"))
    raise typer.Exit(supervise.NOT_EXECUTABLE if there else supervise.NOT_FOUND)


def _connect_or_start(backend: Backend, address: str | None) -> AdminLike:
    """Connect to the raycache of the cluster; start it where nobody has yet."""
    try:
        return backend.admin(address)
    except ClusterUnavailableError as error:
        say(f"{error.what}; starting raycache")
    backend.start(address)
    admin = backend.admin(address)
    say("raycache is started; it stays after this command (`raycache stop` ends it)")
    return admin


def _wait_for_loads(admin: AdminLike, documents: list[Document], results: list[dict[str, Any]]) -> None:
    """Wait until everything that the spec's DataLoads name is cached.

    One that ended well before this run says nothing about now: what it loaded may be evicted. It is loaded again, which
    takes no time where it is still there; under other names, because other runs may be waiting for the same DataLoad.
    """
    hint = "run it again to fetch what is missing, or with --no-wait-loads to run the command all the same"
    actions = {(result["kind"], result["name"]): result["action"] for result in results}
    for document in documents:
        if document.kind != "DataLoad":
            continue
        names = [document.name]
        unchanged = actions.get(("DataLoad", document.name)) == "unchanged"
        if unchanged and admin.load_status(document.name)["phase"] == "Complete":
            say(f"dataload/{document.name} was complete before; checking that it still is")
            names = _load_again(admin, document)
        for name in names:
            follow(admin, name, display_for(stream=sys.stderr), hint=hint)


def _load_again(admin: AdminLike, document: Document) -> list[str]:
    """Start loads of what a DataLoad names; their names."""
    spec = cast("DataLoad", document.model).spec
    paths: dict[Replicas, list[str]] = {}
    for target in spec.target:
        paths.setdefault(target.replicas, []).append(target.path)
    return [
        admin.load(spec.dataset.name, some, replicas, metadata=spec.load_metadata)
        for replicas, some in paths.items()
    ]
