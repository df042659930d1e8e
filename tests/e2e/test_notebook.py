"""The notebook runs from top to bottom, in a fresh interpreter and without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "tools" / "notebooks" / "quickstart.ipynb"


def test_quickstart_runs_from_an_x_ray_to_metrics_and_maps(tmp_path):
    book = json.loads(NOTEBOOK.read_text())
    cells = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]
    assert len(cells) >= 6
    assert all(not cell["outputs"] for cell in book["cells"] if cell["cell_type"] == "code")
    script = tmp_path / "quickstart.py"
    script.write_text("\n\n".join(cells))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False,
        env=os.environ | {"MPLBACKEND": "agg", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "correlation 1.0000" in done.stdout
    assert "AUC " in done.stdout
    assert done.stdout.count("points_into") == 4
    assert len(list(tmp_path.glob("medvol-*/maps/*/overlay.png"))) == 4
