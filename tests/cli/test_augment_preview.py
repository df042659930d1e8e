import json

import nibabel as nib
import numpy as np
import pytest

from medvol.cli.main import main

BUNDLE = "hippocampus_mri_segmentation"


@pytest.fixture
def scan(tmp_path):
    """A smooth blob in a box, and its label."""
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (36, 50, 34)], indexing="ij"))
    distance = np.sqrt((axes**2).sum(0))
    image, label = tmp_path / "scan.nii.gz", tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image((500 * np.exp(-distance)).astype("f4"), np.eye(4)), image)
    nib.save(nib.Nifti1Image((distance < 0.4).astype("u1"), np.eye(4)), label)
    return image, label


def test_preview_writes_a_page_and_scores(scan, tmp_path, capsys):
    out = tmp_path / "NaN.html"
    code = main(["augment", "preview", BUNDLE, str(scan[0]), "--label", str(scan[1]),
                 "-o", str(out), "--samples", "2", "--json"])  # fmt: skip
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert report["output"] == str(out)
    assert len(report["samples"]) == 2
    assert code == (1 if any(sample["faults"] for sample in report["samples"]) else 0)
    assert "data:image/png" in out.read_text()


def test_preview_needs_no_label(scan, tmp_path, capsys):
    out = tmp_path / "look.png"
    code = main(["augment", "preview", BUNDLE, str(scan[0]), "-o", str(out), "--samples", "1"])
    assert code in (0, 1), capsys.readouterr().err
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_preview_refuses_in_one_line(scan, tmp_path, capsys):
    assert main(["augment", "preview", BUNDLE, str(tmp_path / "no.nii"), "-o", "a.png"]) == 2
    assert "no.nii: does not exist" in capsys.readouterr().err
    assert main(["augment", "preview", BUNDLE, str(scan[0]), "-o", "a.gif"]) == 2
    assert ".png or .html" in capsys.readouterr().err
