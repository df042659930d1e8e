"""The model zoo's checks over our bundles, offline: ``tools/zoo_check.sh [CHECKOUT] [BUNDLE ...]``.

Exit 0 if all pass, 1 if a bundle fails, 2 if the check itself cannot run. Needs jsonschema, onnx
and onnxscript (``pip install 'medvol[dev,onnx]'``).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medvol.bundle import Bundle, list_bundles, load
from medvol.bundle.publish import ZOO_LIMIT_BYTES
from medvol.core.errors import MedvolError, MissingInputError
from medvol.core.files import sha256_file

SCHEMA_SHA256 = "d95c74c2915faef04ff6a2d6bd865da922bc8cd5afb4a0719b2dc6e1220528e7"
_SCHEMA_NAME = "meta_schema_20240725.json"
_README = ("### **Authors**", "### **Tags**", "## **Model Description**", "## **Data**",
           "## **Performance**", "## **System Configuration**", "## **Limitations**")  # fmt: skip
_FILES = ("LICENSE", "configs/inference.json", "configs/logging.conf", "docs/README.md",
          "docs/data_license.txt")  # fmt: skip
_WITH_WEIGHTS = ("models/model.pt", "large_files.yml")


def check(
    bundle: Bundle, schema: Path | None, work: Path, only: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """(step, fault) of every step of the checks; the fault is empty where it passes.

    Args:
        bundle: What is judged; without weights it is not exported.
        schema: The metadata schema; None skips that step.
        work: Folder for exports.
        only: Names of the steps to take; all when empty.
    """
    steps: dict[str, Callable[[], None]] = {
        "files": lambda: _files(bundle),
        "version": lambda: _version(bundle),
        "properties": lambda: _properties(bundle, work),
        "net in/out": lambda: _net_in_out(bundle),
    }
    if schema is not None:
        steps["schema"] = lambda: _schema(bundle, schema, work)
    if bundle.has_weights:
        steps["torchscript"] = lambda: _torchscript(bundle, work)
        steps["onnx"] = lambda: _onnx(bundle, work)
    for name in only or steps:
        step = steps[name]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                step()
        except ModuleNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001 - a check reports whatever breaks
            yield name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        else:
            yield name, ""


def find_schema() -> Path | None:
    """The schema file: ``MEDVOL_ZOO_SCHEMA``, or beside the checkout with the shared data."""
    shared = Path(os.environ.get("MEDVOL_SHARED", Path(__file__).parents[2] / "shared"))
    given = os.environ.get("MEDVOL_ZOO_SCHEMA")
    path = Path(given) if given else shared / "data" / "monai" / _SCHEMA_NAME
    if not path.is_file():
        return None
    if sha256_file(path) != SCHEMA_SHA256:
        raise MissingInputError(f"{path}: is not {_SCHEMA_NAME} as MONAI published it")
    return path


def _files(bundle: Bundle) -> None:
    wanted = _FILES + (_WITH_WEIGHTS if bundle.has_weights else ())
    if missing := [name for name in wanted if not (bundle.path / name).is_file()]:
        raise FileNotFoundError(f"{', '.join(missing)}")
    readme = (bundle.path / "docs" / "README.md").read_text("utf-8")
    places = [readme.find(f"\n{heading}\n") for heading in _README]
    if -1 in places:
        raise ValueError(f"docs/README.md lacks {_README[places.index(-1)]!r} of the template")
    if places != sorted(places):
        raise ValueError("docs/README.md: sections are not in the template's order")
    if bundle.has_weights:
        _large_files(bundle)


def _large_files(bundle: Bundle) -> None:
    """Entries are published and true, and no file above the zoo's limit lacks one."""
    from monai.bundle import ConfigParser

    entries = ConfigParser.load_config_file(str(bundle.path / "large_files.yml"))["large_files"]
    listed = {entry["path"] for entry in entries}
    for path in sorted(bundle.path.rglob("*")):
        inside = path.relative_to(bundle.path).as_posix()
        if path.is_file() and path.stat().st_size > ZOO_LIMIT_BYTES and inside not in listed:
            raise ValueError(f"{inside} is over the zoo's 25 MB a file and not in large_files.yml")
    for entry in entries:
        if not str(entry["url"]).startswith("https://"):
            raise ValueError(f"large_files.yml: {entry['path']} has no https address; publish it "
                             "and name the address as weights_url in the values' meta")  # fmt: skip
        digest = hashlib.new(entry["hash_type"], (bundle.path / entry["path"]).read_bytes())
        if digest.hexdigest() != entry["hash_val"]:
            raise ValueError(f"large_files.yml: {entry['path']} has another {entry['hash_type']}")


def _version(bundle: Bundle) -> None:
    if bundle.version not in bundle.metadata["changelog"]:
        raise ValueError(f"version {bundle.version} has no changelog entry")


def _schema(bundle: Bundle, schema: Path, work: Path) -> None:
    from monai.bundle import verify_metadata

    copy = work / _SCHEMA_NAME
    shutil.copyfile(schema, copy)  # MONAI downloads it unless it is there
    verify_metadata(meta_file=_meta(bundle), filepath=str(copy))


def _properties(bundle: Bundle, work: Path) -> None:
    """Required ids of every task; with weights the inference workflow is also built by MONAI."""
    from monai.bundle import create_workflow
    from monai.bundle.properties import InferProperties, TrainProperties

    for task, wanted in (("train", TrainProperties), ("inference", InferProperties)):
        if task not in bundle.tasks:
            continue
        known = bundle.parser(task)
        required = {name: rule["id"] for name, rule in wanted.items() if rule["required"]}
        missing = [name for name, id_ in required.items() if id_ not in known]
        if missing:
            raise ValueError(f"{task}.json lacks {missing}")
    if bundle.has_weights:
        workflow = create_workflow(
            workflow_type="inference", config_file=str(bundle.config_path("inference")),
            meta_file=_meta(bundle), logging_file=False, bundle_root=str(bundle.path),
            dataset_dir=str(_scans(bundle, work)), output_dir=str(work / "out"),
        )  # fmt: skip
        if missing := workflow.check_properties():
            raise ValueError(f"inference.json lacks {missing}")


def _scans(bundle: Bundle, work: Path) -> Path:
    """A folder with one scan of the network's size; a workflow is not built without data."""
    import numpy as np

    from medvol.io import write_nifti

    shape = bundle.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    array = np.zeros((*shape, 1)[:3], np.float32)
    write_nifti(work / "scans" / "scan.nii.gz", array, np.eye(4))
    return work / "scans"


def _net_in_out(bundle: Bundle) -> None:
    from monai.bundle import verify_net_in_out

    verify_net_in_out(**_common(bundle))


def _torchscript(bundle: Bundle, work: Path) -> None:
    import torch
    from monai.bundle import ckpt_export

    path = work / f"{bundle.name}.ts"
    ckpt_export(filepath=str(path), ckpt_file=str(bundle.weights), **_common(bundle))
    torch.jit.load(str(path))


def _onnx(bundle: Bundle, work: Path) -> None:
    import onnx  # pyright: ignore[reportMissingImports]
    from monai.bundle import onnx_export

    path = work / f"{bundle.name}.onnx"
    onnx_export(filepath=str(path), ckpt_file=str(bundle.weights), **_common(bundle))
    onnx.checker.check_model(str(path))


def _common(bundle: Bundle) -> dict[str, Any]:
    return {
        "net_id": "network_def",
        "meta_file": _meta(bundle),
        "config_file": str(bundle.config_path("inference")),
        "bundle_root": str(bundle.path),
    }


def _meta(bundle: Bundle) -> str:
    return str(bundle.path / "configs" / "metadata.json")


def check_by_zoo(checkout: Path, bundle: Bundle, schema: Path | None, work: Path) -> str:
    """What the zoo's own script reports against a bundle; empty where it passes.

    The bundle is copied into a models folder of its own, so that the checkout stays as it is.
    """
    models = work / "models"
    shutil.copytree(bundle.path, models / bundle.name, dirs_exist_ok=True)
    shutil.copyfile(checkout / "models" / "model_info.json", models / "model_info.json")
    if schema is None:
        raise MissingInputError(f"{_SCHEMA_NAME} is needed: set MEDVOL_ZOO_SCHEMA to the file")
    (models / bundle.name / "eval").mkdir(exist_ok=True)
    shutil.copyfile(schema, models / bundle.name / "eval" / "schema.json")
    command = [sys.executable, "ci/verify_bundle.py", "-b", bundle.name, "-p", str(models),
               "-m", "full"]  # fmt: skip
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if done.returncode else ""


def main(arguments: Sequence[str]) -> int:
    """Judge the bundles named, or all; prints one line per step."""
    rest = list(arguments)
    checkout = (
        Path(rest.pop(0)) if rest and (Path(rest[0]) / "ci/verify_bundle.py").is_file() else None
    )
    chosen = [load(name) for name in rest] or list_bundles()
    schema, n_failed = find_schema(), 0
    if schema is None:
        print(f"{_SCHEMA_NAME} not found: schema not checked (set MEDVOL_ZOO_SCHEMA)")
    for bundle in chosen:
        with tempfile.TemporaryDirectory() as folder:
            if checkout and bundle.has_weights:
                found = [("ci/verify_bundle.py", check_by_zoo(checkout, bundle, schema,
                                                              Path(folder)))]  # fmt: skip
            else:
                found = list(check(bundle, schema, Path(folder)))
        for step, fault in found:
            print(f"{bundle.name}: {step}: {fault or 'passed'}", flush=True)
            n_failed += bool(fault)
    print(f"{len(chosen)} bundles, {n_failed} faults")
    return 1 if n_failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (MedvolError, ModuleNotFoundError) as error:
        print(f"zoo_check: {error}", file=sys.stderr)
        sys.exit(2)
