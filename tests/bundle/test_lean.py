"""A lean MONAI answers as the whole one, and the rest of it comes when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from medvol.bundle import load
from medvol.bundle.lean import require_components

START = "from medvol.bundle.lean import import_monai; import_monai(); import sys, monai; "


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_what_labelling_never_uses_is_not_loaded_and_still_there():
    code = (
        "heavy = ('pandas', 'matplotlib', 'skimage', 'sklearn', 'torch.distributed.optim');"
        "assert not [n for n in heavy if n in sys.modules], [n for n in heavy if n in sys.modules];"
        "import torch, matplotlib.pyplot;"
        "from ignite.handlers import Checkpoint;"
        "from torch.distributed.optim import ZeroRedundancyOptimizer as Z;"
        "assert isinstance(Z, type);"
        "from monai.utils.enums import AdversarialIterationEvents as E;"
        "from ignite.engine import EventEnum; assert issubclass(E, EventEnum);"
        "assert issubclass(monai.engines.SupervisedEvaluator, monai.engines.Evaluator);"
        "from ignite.engine import Engine; assert issubclass(monai.engines.Workflow, Engine);"
        "from monai.transforms import KeepLargestConnectedComponent as K;"
        "x = torch.zeros(1, 4, 4, 4); x[0, 0, 0, 0] = 1; x[0, 2:, 2:, 2:] = 1;"
        "print(int(K(applied_labels=[1])(x).sum()))"
    )
    assert run(code) == "8"


@pytest.mark.slow
def test_a_bare_name_that_is_missing_brings_the_rest_of_monai():
    code = (
        "from medvol.bundle.lean import require_components as need;"
        "need({'network_def': {'_target_': 'UNet'}}, ['network_def']);"
        "before = 'monai.losses' in sys.modules;"
        "need({'network_def': {'a': [{'_target_': 'DiceLoss'}]}}, ['network_def']);"
        "print(before, 'monai.losses' in sys.modules)"
    )
    assert run(code) == "False True"


def test_a_process_that_has_monai_is_left_alone():
    import monai.losses

    require_components(load("hippocampus_mri_segmentation").config("inference"), ["network_def"])
    assert monai.losses.DiceLoss


@pytest.mark.slow
def test_the_verb_classifies_though_it_starts_lean(tmp_path):
    from PIL import Image

    for index in range(2):
        values = np.random.default_rng(index).integers(0, 255, (320, 320), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"x{index}.png")
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", "-m", "medvol", "predict", "chest_xray_classification",
            str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu",
        ],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "predictions.csv").is_file()
