"""`medvol`: the verb table, and how an error becomes one line and an exit code."""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from medvol import __version__
from medvol.core.errors import MedvolError, error_line

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
EXAMPLE = "medvol predict hippocampus_mri_segmentation scan.nii.gz -o out"
_GROUP_HELP = {
    "evaluate": "Score segmentations and classifications, follow lesions, repeat a run.",
    "data": "Scan, check, split, fetch, de-identify and synthesise data sets.",
    "bundle": "Write, list, verify and fork bundles.",
    "augment": "Look at augmentation before training.",
    "label": "MONAI Label with medvol's bundles.",
}
_PLAIN = {"rich_markup_mode": None, "add_completion": False}
#: A verb's own command, or a group of verbs; click is inside typer, under a private name.
Command = Any


class LazyVerbs(dict[str, Any]):
    """Names of verbs to their commands, of which each is imported when it is asked for.

    Args:
        table: Part of ``VERBS``.
    """

    def __init__(self, table: Mapping[str, str | dict[str, str]]) -> None:
        super().__init__(dict.fromkeys(name for name in table if name))
        self.table = table

    def get(self, key: str, default: Any = None) -> Any:
        """The command of a verb; imports its module."""
        if key not in self:
            return default
        if self[key] is None:
            target = self.table[key]
            self[key] = _group(key, target) if isinstance(target, dict) else _command(key, target)
        return self[key]


def build_app() -> Command:
    """The whole command tree; a verb's module is loaded where the verb is named."""
    app = typer.Typer(name="medvol", help="Segmentation and classification of CT, MRI and X-ray "
                      "as MONAI bundles.", **_PLAIN)  # fmt: skip

    @app.callback(epilog=f"Example: {EXAMPLE}")
    def _root(
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    ) -> None:
        if version:
            print(__version__)
            raise typer.Exit

    return _lazy(app, VERBS)


def _group(name: str, table: dict[str, str]) -> Command:
    app = typer.Typer(name=name, help=_GROUP_HELP[name], **_PLAIN)
    if "" in table:
        module = _module(table[""])
        app.callback(invoke_without_command=True, epilog=_epilog(module))(_run_of(module))
    else:
        app.callback(epilog=f"Example: medvol {name} {next(iter(table))} --help")(lambda: None)
    return _lazy(app, table)


def _lazy(app: typer.Typer, table: Mapping[str, str | dict[str, str]]) -> Command:
    group: Any = typer.main.get_command(app)
    group.commands = LazyVerbs(table)
    return group


def _command(name: str, module_name: str) -> Command:
    app, module = typer.Typer(**_PLAIN), _module(module_name)
    app.command(name, epilog=_epilog(module))(_run_of(module))
    return typer.main.get_command(app)


def _module(name: str) -> Any:
    return importlib.import_module(f"medvol.cli.{name}")


class _InterruptedError(Exception):
    """Ctrl-C, with a line on what is kept; typer would turn it into a bare exit code."""


def _run_of(module: Any) -> Callable[..., None]:
    @functools.wraps(module.run)
    def run_verb(*arguments: Any, **options: Any) -> None:
        try:
            module.run(*arguments, **options)
        except KeyboardInterrupt as stop:
            raise _InterruptedError(str(stop) or "interrupted") from None

    return run_verb


def _epilog(module: Any) -> str | None:
    example = getattr(module, "EXAMPLE", None)
    return f"Example: {example}" if example else None


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a check found problems, 2 bad input."""
    logging.getLogger("monai.data").setLevel(logging.ERROR)
    for noise in ("Setting affine, but", "NvImgCodec"):
        warnings.filterwarnings("ignore", message=noise)
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = build_app()(args=words or ["--help"], standalone_mode=False)
    except MedvolError as error:
        return _reject(str(error))
    except _InterruptedError as stop:
        return _reject(str(stop), 130)
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own usage errors carry their text there
            return _reject(error.format_message())  # pyright: ignore[reportAttributeAccessIssue]
        if line := error_line(error) or _system_line(error):
            return _reject(line)
        raise
    return code if isinstance(code, int) else 0


def run() -> None:
    """Entry point of the ``medvol`` script."""
    sys.exit(main())


def _system_line(error: Exception) -> str | None:
    """What the operating system reports of a file: a name too long, a missing right."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    return str(MedvolError(f"{error.filename}: {error.strerror}"))


def _reject(line: str, code: int = 2) -> int:
    print(f"medvol: {' '.join(line.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run()
