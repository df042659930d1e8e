"""The environment that MONAI Label runs in: built from a lock, reused while the lock is the same.

MONAI Label needs pydicom 2 and packages that ask for an old numpy; both would break medvol's own
environment, and plain resolution breaks MONAI Label's. Hence a second one, without a resolver.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import medvol
from medvol.core.errors import ConfigError, OutputError
from medvol.core.files import sha256_file, write_json, write_text

LOCK = Path(__file__).with_name("lock.txt")
TORCH = "torch==2.13.0"
_PACKAGE = Path(medvol.__file__).resolve().parent
_STAMP = "medvol_label.json"
_STAND_IN = '''"""Stand-in: MONAI Label imports two names of torchvision and medvol needs neither.

The real wheel does not load beside a CPU build of torch.
"""

'''
_UTILS = """def make_grid(*args, **kwargs):
    raise NotImplementedError("torchvision is a stand-in here")


save_image = make_grid
"""

#: Called with what is being done, how many steps are done, and how many there are.
StepLog = Callable[[str, int, int], None]


def default_environment() -> Path:
    """Where the environment lies unless the user names another folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "medvol" / "label-env"


def environment_python(folder: str | os.PathLike[str]) -> Path:
    """The interpreter of an environment, whether or not it exists."""
    inside = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return Path(folder).joinpath(*inside)


def is_built(folder: str | os.PathLike[str]) -> bool:
    """Whether the environment was built, to its end, from the lock of this medvol."""
    return _stamp(Path(folder)).get("lock") == sha256_file(LOCK)


def build_environment(
    folder: str | os.PathLike[str],
    log: StepLog = lambda what, done, total: None,
    *,
    torch: str = TORCH,
    torch_index: str = "",
) -> Path:
    """Create the environment, or bring an existing one up to date; an interrupted build resumes.

    Args:
        folder: Where it lies or shall lie.
        log: Called with every step: what, steps done, steps in all.
        torch: What pip is asked for; the lock was proven with the default.
        torch_index: Package index for torch alone, such as PyTorch's CPU wheels.

    Returns:
        Its Python interpreter.

    Raises:
        ConfigError: If the folder holds something else.
        OutputError: If a package cannot be installed.
    """
    folder = Path(folder).absolute()
    python = environment_python(folder)
    if not is_built(folder):
        _require_ours(folder)
        write_json(folder / _STAMP, _stamp(folder))  # an interrupted build is known as ours
        index = ["--index-url", torch_index] if torch_index else []
        steps: list[tuple[str, list[str]]] = [
            ("create", [sys.executable, "-m", "venv", str(folder)]),
            ("install torch", _pip(python, *index, torch)),
            ("install MONAI Label", _pip(python, "--no-deps", "-r", str(LOCK))),
        ]
        for done, (what, command) in enumerate(steps):
            log(what, done, 5)
            _run(what, command)
        log("compile", 3, 5)
        _add_stand_in(python)
        _compile(python)
        log("check", 4, 5)
        _run("check", [str(python), "-c", "import monailabel.main"])
        write_json(folder / _STAMP, {"lock": sha256_file(LOCK), "torch": torch})
        log("done", 5, 5)
    update_medvol(folder)
    return python


def update_medvol(folder: str | os.PathLike[str]) -> None:
    """Put this medvol into the environment, without its dependencies, unless it is there already.

    The package is copied: the server runs exactly the code that starts it, offline, and from a
    checkout as from a wheel.
    """
    digest = _package_digest()
    stamp = _stamp(Path(folder))
    target = _site_packages(environment_python(folder)) / "medvol"
    if stamp.get("medvol") == digest and target.is_dir():
        return
    scratch = target.with_name(".medvol.part")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(_PACKAGE, scratch, ignore=shutil.ignore_patterns("__pycache__", "_shipped"))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    write_json(Path(folder) / _STAMP, {**stamp, "medvol": digest})


def clean_environ(python: Path) -> dict[str, str]:
    """The variables for a process of the environment: nothing of ours leaks into it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return {
        **kept,
        "PATH": str(python.parent) + os.pathsep + os.environ.get("PATH", ""),
        "VIRTUAL_ENV": str(python.parent.parent),
    }


def _require_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder for the environment")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _STAMP).is_file():
        raise ConfigError(f"{folder}: holds something else than an environment of MONAI Label's, "
                          "which would be overwritten; name a new folder")  # fmt: skip


def _pip(python: Path, *arguments: str) -> list[str]:
    options = ["--quiet", "--no-compile", "--disable-pip-version-check"]
    return [str(python), "-m", "pip", "install", *options, *arguments]


def _run(what: str, command: list[str]) -> str:
    python = Path(command[0])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=clean_environ(python)
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and "WARNING" not in line]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise OutputError(f"the MONAI Label environment could not be built ({what}): {reason}")
    return done.stdout.strip()


def _add_stand_in(python: Path) -> None:
    probe = [str(python), "-c", "import torchvision.utils"]
    if not subprocess.run(probe, capture_output=True, check=False).returncode:
        return
    home = _site_packages(python) / "torchvision"
    write_text(home / "__init__.py", _STAND_IN + '__version__ = "0.0.0"\n')
    write_text(home / "utils.py", '"""Stand-in."""\n\n\n' + _UTILS)


def _compile(python: Path) -> None:
    """Byte-compile once, so that no start of the server does it again; failures do no harm."""
    variables = {**clean_environ(python), "PYTHONDONTWRITEBYTECODE": ""}
    command = [str(python), "-m", "compileall", "-qq", str(_site_packages(python))]
    subprocess.run(command, capture_output=True, check=False, env=variables)


def _site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(_run("look up", [str(python), "-c", code]))


def _stamp(folder: Path) -> dict[str, str]:
    path = folder / _STAMP
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _package_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        inside = path.relative_to(_PACKAGE)
        if path.is_file() and not {"__pycache__", "_shipped"} & set(inside.parts):
            digest.update(inside.as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
