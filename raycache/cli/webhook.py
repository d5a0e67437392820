"""`webhook`: pods that ask for datasets by a label get them."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raycache.cli.failures import warn
from raycache.cli.output import print_lines
from raycache.errors import RaycacheError, SpecError

if TYPE_CHECKING:
    from raycache.webhook import Policy


def webhook(
    image: Annotated[
        str, typer.Option("--image", metavar="IMAGE", help="Container image that has raycache.")
    ],
    cache_address: Annotated[
        str,
        typer.Option(
            "--cache-address", metavar="HOST:PORT,...", help="Where pods reach the cache's workers."
        ),
    ],
    specs: Annotated[
        list[str] | None,
        typer.Option(
            "--specs",
            metavar="PATH",
            help="Spec file with datasets, or directory of them. May be repeated.",
            show_default=False,
        ),
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            metavar="FILE",
            help="What `raycache get datasets -o json` printed: only what is Bound there is ready.",
            show_default=False,
        ),
    ] = None,
    cert: Annotated[
        str, typer.Option("--cert", metavar="FILE", help="Certificate, PEM; read again when it changes.")
    ] = "tls.crt",
    key: Annotated[str, typer.Option("--key", metavar="FILE", help="Its private key.")] = "tls.key",
    host: Annotated[str, typer.Option("--host", help="Where to listen.")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", help="Where to listen; 0 for any.")] = 8443,
    on_unknown: Annotated[
        Literal["refuse", "admit"],
        typer.Option("--on-unknown", help="A pod that asks for a dataset that is unknown or not ready."),
    ] = "refuse",
    profile: Annotated[
        Literal["privileged", "device", "copy"],
        typer.Option("--profile", help="How the sidecar gets at FUSE, or does without."),
    ] = "privileged",
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="RESOURCE", help="Resource that stands for /dev/fuse.", show_default=False
        ),
    ] = "",
    sidecar: Annotated[
        Literal["native", "classic"],
        typer.Option("--sidecar", help="classic: for Kubernetes before 1.29."),
    ] = "native",
    token_secret: Annotated[
        str,
        typer.Option(
            "--token-secret", metavar="NAME", help="Secret in the pod's namespace with `token`; '' for none."
        ),
    ] = "raycache-token",
    tls_secret: Annotated[
        str,
        typer.Option(
            "--tls-secret",
            metavar="NAME",
            help="Secret in the pod's namespace with `ca.crt`.",
            show_default=False,
        ),
    ] = "",
    tls_client: Annotated[
        bool,
        typer.Option(
            "--tls-client", help="It has `tls.crt` and `tls.key` too: mutual TLS.", show_default=False
        ),
    ] = False,
    cache_size: Annotated[
        str, typer.Option("--cache-size", metavar="SIZE", help="The sidecar's own store, in the pod.")
    ] = "1Gi",
    cache_medium: Annotated[
        Literal["disk", "memory"], typer.Option("--cache-medium", help="Where that is.")
    ] = "disk",
    requests: Annotated[
        str, typer.Option("--requests", metavar="NAME=AMOUNT,...", help="Resources of the sidecar.")
    ] = "cpu=100m,memory=256Mi",
    limits: Annotated[
        str, typer.Option("--limits", metavar="NAME=AMOUNT,...", help="Limits of its resources.")
    ] = "memory=2Gi",
    start_timeout: Annotated[
        str,
        typer.Option("--start-timeout", metavar="DURATION", help="How long a mount, or a copy, may take."),
    ] = "10m",
    manifests: Annotated[
        bool,
        typer.Option(
            "--manifests",
            help="Print what to apply to Kubernetes for a webhook with these options.",
            show_default=False,
        ),
    ] = False,
    namespace: Annotated[
        str, typer.Option("--namespace", metavar="NAME", help="With --manifests: where it runs.")
    ] = "raycache",
    ca_bundle: Annotated[
        str | None,
        typer.Option(
            "--ca-bundle",
            metavar="FILE",
            help="With --manifests: authority of your own certificate. Default: cert-manager makes one.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve the Kubernetes webhook that gives pods their datasets as directories.

    Runs until SIGTERM or SIGINT. It needs no Ray, and asks neither the cluster nor Kubernetes for anything.
    """
    from raycache.spec import parse_duration, parse_size
    from raycache.webhook import Policy

    warn("`raycache sidecar`, which patched pods run, is not in this version: they will not start")

    policy = Policy(
        image=image,
        cache_address=cache_address,
        token_secret=token_secret,
        tls_secret=tls_secret,
        tls_client=tls_client,
        profile=profile,
        device=device,
        sidecar=sidecar,
        on_unknown=on_unknown,
        cache_bytes=parse_size(cache_size),
        cache_medium="Memory" if cache_medium == "memory" else "",
        requests=_amounts("--requests", requests),
        limits=_amounts("--limits", limits),
        start_timeout_s=int(parse_duration(start_timeout)),
    )
    if manifests:
        again = {
            "--image": image,
            "--cache-address": cache_address,
            "--on-unknown": on_unknown,
            "--profile": profile,
            "--device": device,
            "--sidecar": sidecar,
            "--token-secret": token_secret,
            "--tls-secret": tls_secret,
            "--cache-size": cache_size,
            "--cache-medium": cache_medium,
            "--requests": requests,
            "--limits": limits,
            "--start-timeout": start_timeout,
        }
        arguments = [f"{name}={value}" for name, value in again.items() if value or name == "--token-secret"]
        _print(namespace, policy, [*arguments, *(["--tls-client"] if tls_client else [])], ca_bundle)
        return
    if not specs:
        raise SpecError("which datasets are there?", hint="give --specs FILE or DIRECTORY")
    _serve(host, port, cert, key, specs, status, policy)


def _amounts(option: str, text: str) -> dict[str, str]:
    found = {}
    for part in text.split(","):
        name, equals, amount = part.strip().partition("=")
        if part.strip() and not (name and equals and amount):
            raise SpecError(
                f"{part!r} is no amount of anything", where=option, hint="such as cpu=100m,memory=1Gi"
            )
        if name:
            found[name] = amount
    return found


def _print(namespace: str, policy: Policy, arguments: list[str], ca_bundle: str | None) -> None:
    import yaml

    from raycache.webhook.manifests import manifests

    try:
        bundle = Path(ca_bundle).read_bytes() if ca_bundle is not None else None
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}", where=str(ca_bundle)) from None
    made = manifests(namespace, policy.image, arguments, bundle)
    plain = json.loads(json.dumps(made))  # what is in it twice would be printed as a reference
    print_lines([yaml.safe_dump_all(plain, sort_keys=False).rstrip()])


def _serve(
    host: str, port: int, cert: str, key: str, specs: list[str], status: str | None, policy: Policy
) -> None:
    from raycache.settings import Settings
    from raycache.webhook import FileCatalog
    from raycache.webhook.server import Server

    logging.basicConfig(level=Settings.from_environ().log_level, format="%(levelname)s %(name)s: %(message)s")
    catalog = FileCatalog(specs, status)
    try:
        server = Server(host, port, cert, key, catalog, policy)
    except OSError as error:
        if isinstance(error, RaycacheError):
            raise
        raise SpecError(f"cannot listen: {error.strerror}", where=f"{host}:{port}") from None

    def end(*_: Any) -> None:
        # shutdown() waits for serve_forever, which runs in the thread that the signal has interrupted.
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with server:
        count = len(catalog.current())
        print_lines([f"listening at {host}:{server.server_port}; {count} datasets"])
        sys.stdout.flush()  # a container's log is a pipe
        server.serve_forever()
