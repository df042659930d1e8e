"""nnU-Net's own predictor with a network that answers at once; run it with nnU-Net's Python.

``ENV/bin/python tools/bench/nnunet_stitching.py 256 256 160`` prints CPU seconds as JSON; it needs
nothing of medvol. The predictor multiplies in place, so that each window gets a copy, and the time
of these copies is given as well.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from types import SimpleNamespace
from typing import Any

CLASSES, WINDOW = 14, (96, 96, 96)


def main() -> None:
    """Blend one volume and print what it took."""
    import torch

    with contextlib.redirect_stdout(io.StringIO()):
        predictor = _predictor(torch)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    image = torch.randn(1, *map(int, sys.argv[1:4]))
    stored = torch.randn(1, CLASSES, *WINDOW)
    windows: list[int] = []

    class Stored(torch.nn.Module):
        def forward(self, window: Any) -> Any:
            windows.append(len(window))
            return stored.clone()

    predictor.network = Stored()
    predictor.predict_sliding_window_return_logits(image[:, :96, :96, :96])  # its Gaussian is kept
    windows.clear()
    begin = time.process_time()
    predictor.predict_sliding_window_return_logits(image)
    middle = time.process_time()
    for _ in windows:
        stored.clone()
    row = {
        "seconds": middle - begin,
        "copies": time.process_time() - middle,
        "windows": len(windows),
    }
    print(json.dumps(row))


def _predictor(torch: Any) -> Any:
    from nnunetv2.inference.predict_from_raw_data import (  # pyright: ignore[reportMissingImports]
        nnUNetPredictor,
    )

    predictor = nnUNetPredictor(0.5, True, False, False, torch.device("cpu"), allow_tqdm=False)
    predictor.configuration_manager = SimpleNamespace(patch_size=WINDOW)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=CLASSES)
    return predictor


if __name__ == "__main__":
    main()
