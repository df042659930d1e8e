"""`medvol`: the verb table, and how refusals become one line and an exit code."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from medvol import __version__
from medvol.core.errors import MedvolError, refusal_in

#: verb -> module in medvol.cli that defines ``run``; a nested table is a group of verbs, whose
#: empty name is what the group does by itself.
VERBS: dict[str, str | dict[str, str]] = {
    "doctor": "doctor",
    "demo": "demo",
    "plan": "plan",
    "train": "train",
    "select": "select",
    "predict": "predict",
    "explain": "explain",
    "evaluate": {
        "masks": "evaluate_masks",
        "scores": "evaluate_scores",
        "lesions": "evaluate_lesions",
        "rerun": "evaluate_rerun",
    },
    "compare": "compare",
    "calibrate": "calibrate",
    "drift": "drift",
    "report": "report",
    "card": "card",
    "study": "study",
    "export": "export",
    "bundle": {
        "list": "bundle_list",
        "write": "bundle_write",
        "verify": "bundle_verify",
        "fork": "bundle_fork",
    },
    "data": {
        "scan": "data_scan",
        "deid": "data_deid",
        "check": "data_check",
        "split": "data_split",
        "fetch": "data_fetch",
        "profile": "data_profile",
        "synthesise": "data_synthesise",
    },
    "augment": {
        "preview": "augment_preview",
    },
    "label": {
        "": "label",
        "env": "label_env",
    },
}
_GROUP_HELP = {
    "evaluate": "Score segmentations and classifications, follow lesions, repeat a run.",
    "data": "Scan, check, split, fetch, de-identify and synthesise data sets.",
    "bundle": "Write, list, verify and fork bundles.",
    "augment": "Look at augmentation before training.",
    "label": "MONAI Label with medvol's bundles.",
}
_PLAIN = {"rich_markup_mode": None, "add_completion": False, "no_args_is_help": True}


def build_app() -> typer.Typer:
    """The whole command tree; loads the verb modules but none of the rooms they call."""
    app = typer.Typer(name="medvol", help="Segmentation and classification of CT, MRI and X-ray "
                      "as MONAI bundles.", **_PLAIN)  # fmt: skip

    @app.callback()
    def _root(
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    ) -> None:
        if version:
            print(__version__)
            raise typer.Exit

    for verb, target in VERBS.items():
        if isinstance(target, str):
            _add(app, verb, target)
            continue
        group = typer.Typer(help=_GROUP_HELP[verb], **_PLAIN)
        for name, module in target.items():
            if name:
                _add(group, name, module)
            else:
                group.callback(invoke_without_command=True)(_verb(module))
        app.add_typer(group, name=verb)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a check found problems, 2 refused."""
    logging.getLogger("monai.data").setLevel(logging.ERROR)
    for noise in ("Setting affine, but", "NvImgCodec"):
        warnings.filterwarnings("ignore", message=noise)
    try:
        code = build_app()(args=arguments, standalone_mode=False)
    except MedvolError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _refuse("interrupted", 130)
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own usage errors carry their text there
            return _refuse(error.format_message())  # pyright: ignore[reportAttributeAccessIssue]
        if line := refusal_in(error) or _said_by_the_system(error):
            return _refuse(line)
        raise
    return code if isinstance(code, int) else 0


def run() -> None:
    """Entry point of the ``medvol`` script."""
    sys.exit(main())


def _add(app: typer.Typer, verb: str, module: str) -> None:
    app.command(verb)(_verb(module))


def _verb(module: str) -> Callable[..., None]:
    return importlib.import_module(f"medvol.cli.{module}").run


def _said_by_the_system(error: Exception) -> str | None:
    """What the operating system has against a file: a name too long, a missing right."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    return str(MedvolError(f"{error.filename}: {error.strerror}"))


def _refuse(line: str, code: int = 2) -> int:
    print(f"medvol: {' '.join(line.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run()
