"""`medvol label`: bundles in 3D Slicer and OHIF through a MONAI Label server of our own."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvol.cli._options import Json, TrustBundle
from medvol.core.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from medvol.bundle import Bundle
    from medvol.label import ServeOptions, Server

EXAMPLE = "medvol label --bundles hippocampus_mri_segmentation --images scans -o label_output"


_GUIDE = """\
MONAI Label is up: {url}      (Ctrl-C stops it)
  models    {models}
  labels    {labels}

3D Slicer   install the extension MONAILabel, open its module, type {url}
            as server, press the round arrow; "Next Sample" loads an image, "Run" in
            Auto Segmentation labels it, "Submit Label" saves it, "Train" fine-tunes.
            Under Active Learning choose "{strategy}".
{ohif}Browser     {url}/ lists every request.
"""
_OHIF = """\
OHIF        open {url}/ohif/ , choose a study, mode "MONAI Label", press
            the round arrow, then "Run" under Auto-Segmentation.
"""
_NO_OHIF = """\
OHIF        needs images on a DICOMweb server: medvol label --dicomweb URL
"""


def run(
    ctx: typer.Context,
    bundles: Annotated[str, typer.Option(help="Names or folders, separated by commas.")] = "",
    images: Annotated[str, typer.Option(help="Folder of images; nothing is written there.")] = "",
    dicomweb: Annotated[str, typer.Option(help="URL of a DICOMweb server instead.")] = "",
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder for labels and all else that is written.")
    ] = "medvol_label",
    env: Annotated[str, typer.Option(help="Environment; default: the user's cache.")] = "",
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind.")] = 8000,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines in; needs a password.")
    ] = False,
    tls_cert: Annotated[str, typer.Option(help="Certificate for https.")] = "",
    tls_key: Annotated[str, typer.Option(help="Its key.")] = "",
    scoring: Annotated[
        bool, typer.Option("--scoring/--no-scoring", help="Score images for active learning.")
    ] = True,
    trust_bundle: TrustBundle = False,
    is_json: Json = False,
) -> None:
    """Serve bundles to 3D Slicer and OHIF; builds MONAI Label's environment the first time."""
    if ctx.invoked_subcommand is not None:
        return
    if bool(images) == bool(dicomweb):
        raise ConfigError("name either --images DIR or --dicomweb URL")
    if bool(tls_cert) != bool(tls_key):
        raise ConfigError("--tls-cert and --tls-key go together")
    import os

    from medvol.bundle import load
    from medvol.label import ServeOptions, prepare, require_safe_address

    require_safe_address(host, allow_remote, os.environ.get("MEDVOL_LABEL_PASSWORD"))
    names = [name for name in bundles.split(",") if name]
    if not names:
        raise ConfigError("name at least one bundle: --bundles hippocampus_mri_segmentation")
    if dicomweb:
        _require_dicomweb(dicomweb)
    _require_free(host, port)
    chosen = [load(name, is_trusted=trust_bundle or None) for name in names]
    options = ServeOptions(
        place=prepare(output, chosen, images or None), bundles=[b.name for b in chosen],
        dicomweb=dicomweb, modalities=_modalities(chosen), host=host, port=port,
        is_remote_allowed=allow_remote, is_scoring=scoring,
        tls=(Path(tls_cert).absolute(), Path(tls_key).absolute()) if tls_cert else None,
    )  # fmt: skip
    _serve(_environment(env, is_json), options, is_json)


def _serve(python: Path, options: ServeOptions, is_json: bool) -> None:
    from medvol.label import Server

    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        with Server(python, options) as server:
            _announce(options, server.wait_ready(tick=_waiting(is_json)), is_json)
            _follow(server)
            raise OutputError(f"MONAI Label ended: {server.last_line()}; the whole log: "
                              f"{options.place.log}")  # fmt: skip
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


def _announce(options: ServeOptions, info: dict[str, Any], is_json: bool) -> None:
    if is_json:
        found = {"url": options.url, "models": sorted(info["models"]),
                "trainers": sorted(info["trainers"]), "strategies": sorted(info["strategies"]),
                "images": info["datastore"]["total"], "labels": str(options.place.labels),
                "log": str(options.place.log)}  # fmt: skip
        print(json.dumps(found), flush=True)
        return
    strategies = [name for name in sorted(info["strategies"]) if name.startswith("uncertainty")]
    ohif = (_OHIF if options.dicomweb else _NO_OHIF).format(url=options.url)
    print(_GUIDE.format(url=options.url, models=", ".join(sorted(info["models"])), ohif=ohif,
                        labels=options.place.labels, strategy=(strategies or ["first"])[0]),
          flush=True)  # fmt: skip


def _follow(server: Server) -> None:
    """Show progress lines of the server until it ends."""
    with server.options.place.log.open("r", encoding="utf-8", errors="replace") as log:
        log.seek(0, 2)
        while server.process.poll() is None:
            line = log.readline()
            if not line:
                time.sleep(0.5)
            elif any(word in line for word in (" - batch ", " - scored ", " - published ",
                                               " - rejected")):  # fmt: skip
                print(line.rstrip().rpartition(" - ")[2], file=sys.stderr, flush=True)


def _waiting(is_json: bool) -> Any:
    from medvol.cli._progress import Bars

    bars = Bars(quiet=is_json, unit="s")
    return lambda seconds: bars("starting MONAI Label", int(seconds), None)


def _environment(folder: str, is_json: bool) -> Path:
    from medvol.cli._progress import Bars
    from medvol.label import build_environment, default_environment

    target = Path(folder) if folder else default_environment()
    with Bars(quiet=is_json, unit="step") as bars:
        return build_environment(
            target, lambda _what, done, total: bars("label environment", done, total)
        )


def _modalities(bundles: list[Bundle]) -> list[str]:
    from medvol.core import find_modality

    names = [bundle.metadata.get("medvol", {}).get("modality") for bundle in bundles]
    if not all(names):
        return []
    return sorted({code for name in names for code in find_modality(str(name)).dicom})


def _require_dicomweb(url: str) -> None:
    import importlib.util

    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--dicomweb {url}: is not an http address")
    if importlib.util.find_spec("highdicom") is None:
        from medvol.core import MissingPackageError

        raise MissingPackageError("labels go back as DICOM SEG: pip install 'medvol[dicom]'")


def _require_free(host: str, port: int) -> None:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"{host} port {port} cannot be bound: {error.strerror}; choose "
                              "another with --port") from error  # fmt: skip
