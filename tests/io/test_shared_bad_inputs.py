"""The shared corpus of malformed inputs, each as its manifest demands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import warnings

import numpy as np
import pytest

from medvol.core import MedvolError
from medvol.io import ReadOptions, read_pair, read_scan

KINDS = ("image3d", "dicom_dir", "image2d", "stack2d", "pair")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The unpacked corpus; it holds bombs, so it is unpacked in a scratch folder."""
    root = os.environ.get(
        "MEDVOL_SHARED", os.path.join(os.path.dirname(__file__), "../../../shared")
    )
    archive = os.path.join(root, "data", "bad_inputs.tar.gz")
    if not os.path.isfile(archive):
        pytest.skip("the shared corpus is not beside this checkout (set MEDVOL_SHARED)")
    folder = tmp_path_factory.mktemp("corpus")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / "bad_inputs"


def load(root, case):
    path = root / case["path"]
    if case["kind"] == "pair":
        classes = {int(k): v for k, v in case["options"]["classes"].items()}
        return read_pair(path, root / case["extra"]["label"], classes)[1]
    return read_scan(path, ReadOptions(spacing_mm=case["options"].get("spacing")))


def as_expected(case, scan):
    expect = case["expect"]
    array, affine = np.asarray(scan.array if hasattr(scan, "array") else scan), scan.affine
    for sample in expect.get("samples", ()):
        index = (np.linalg.inv(affine) @ [*sample["ras_mm"], 1])[:3]
        assert np.abs(index - np.rint(index)).max() < 0.02
        value = array[0][tuple(np.rint(index).astype(int))]
        assert abs(value - sample["value"]) <= sample["tol"]
    if "spacing_ras" in expect:
        wanted = sorted(expect["spacing_ras"])
        assert np.allclose(sorted(np.linalg.norm(affine[:3, :3], axis=0)), wanted, atol=1e-3)
        assert sorted(array.shape[1:]) == sorted(expect["shape_ras"])
    if "array" in expect:
        shown = array[0].T / (max(array.max(), 1) if expect.get("any_scale") else 1)
        assert np.abs(shown - np.array(expect["array"])).max() <= expect["tol"]
    if "slice_values" in expect:
        assert array[0].mean((0, 1)).tolist() == expect["slice_values"]
    for value, count in expect.get("label_voxels", {}).items():
        assert np.count_nonzero(array == int(value)) == count
    if "centroid_label_1_ras" in expect:
        middle = np.argwhere(array[0] == 1).mean(0)
        world = (np.asarray(affine) @ [*middle, 1])[:3]
        assert np.allclose(world, expect["centroid_label_1_ras"], atol=0.01)


def verdict(root, case):
    """What is wrong with how a case was treated, or an empty list."""
    import monai.data  # noqa: F401 - its import alone may take longer than a case may

    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            scan, error = load(root, case), ""
        except MedvolError as refusal:
            scan, error = None, str(refusal)
    heard = " ".join(str(w.message) for w in said)
    wrong = []
    if scan is None:
        if case["must"] == "load":
            wrong.append(f"refused: {error}")
        if not any(re.search(f, error, re.IGNORECASE) for f in case["error_fault_any"]):
            wrong.append(f"names another fault: {error}")
        if not any(name in error for name in case["error_names_any"]) or not error.isprintable():
            wrong.append(f"does not name the file in one line: {error}")
    elif case["must"] == "reject":
        wrong.append("was loaded")
    else:
        as_expected(case, scan)
    wanted = (case["expect"] or {}).get("warn_any", [])
    if wanted and not any(re.search(w, heard, re.IGNORECASE) for w in wanted):
        wrong.append(f"was not warned of: {heard}")
    if any(secret in error + heard for secret in case["secrets"]):
        wrong.append("leaks a planted string")
    if time.perf_counter() - began > case["limits"]["max_seconds"]:
        wrong.append("took too long")
    return wrong


def test_every_image_of_the_corpus_is_treated_as_demanded(corpus):
    cases = json.loads((corpus / "manifest.json").read_text())["cases"]
    cases = [case for case in cases if case["kind"] in KINDS]
    found = {case["name"]: wrong for case in cases if (wrong := verdict(corpus, case))}
    assert not found
    assert len(cases) == 98
    assert not list(corpus.parent.rglob("PWNED*"))


def test_the_corpus_stays_below_its_memory_limit(corpus):
    # one process for all cases: its peak bounds every single one
    code = """
import json, sys, warnings
from pathlib import Path
from medvol.core import MedvolError
from medvol.io import ReadOptions, read_scan
warnings.simplefilter("ignore")
root = Path(sys.argv[1])
for case in json.loads((root / "manifest.json").read_text())["cases"]:
    if case["kind"] in ("image3d", "dicom_dir", "image2d", "stack2d"):
        try:
            read_scan(root / case["path"], ReadOptions(spacing_mm=case["options"].get("spacing")))
        except MedvolError:
            pass
peak = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, str(corpus)], capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert int(done.stdout) < 300
