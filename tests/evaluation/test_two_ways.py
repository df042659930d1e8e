"""One prediction has one score: the handler of a bundle and the verb write the same tables."""

import json
import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from monai.data import list_data_collate
from monai.transforms import Compose, Decollated, LoadImaged

from medvol.cli.main import main
from medvol.datasets import evaluation_cases
from medvol.engines import SegmentationScores
from medvol.evaluation import MaskOptions, compare, evaluate_segmentation, read_results
from medvol.io import MedvolReader
from medvol.reporting import write_report

TABLES = ("scores.csv", "volumes.csv", "cases.csv")
OBLIQUE = np.array([[0.8, -0.3, 0.1, 5], [0.3, 0.9, -0.2, -7], [0, 0.3, 2.5, 11], [0, 0, 0, 1.0]])
GRIDS = {
    "axis-aligned": ((11, 12, 9), np.diag([0.7, 0.7, 3.0, 1.0])),
    "flipped": ((11, 12, 9), np.diag([-0.7, -0.9, 1.3, 1.0])),
    "oblique": ((10, 9, 8), OBLIQUE),
    "one slice": ((16, 14, 1), np.diag([0.5, 0.5, 5.0, 1.0])),
}
N = 8
LABELS = {"background": 0, "liver": 1, "tumour": 2, "cyst": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "cyst": 3}


def write(root, save, labels, grid, seed):
    """An nnU-Net data set of patients with two cases each, and predictions with every fault."""
    rng = np.random.default_rng(seed)
    shape, affine = GRIDS[grid]
    values = sorted({v for x in labels.values() for v in (x if isinstance(x, list) else [x])})
    for k in range(N):
        ref = np.zeros(shape, np.uint8)
        for value in values[1:]:
            low = [int(rng.integers(0, max(1, n - 4))) for n in shape]
            ref[tuple(slice(a, a + 4) for a in low)] = value * (rng.random() < 0.8)
        pred = np.roll(ref, 1, axis=0)
        pred[pred == values[-1]] *= k != 0
        if "ignore" in labels:
            pred[pred == labels["ignore"]] = 1
        save(root / "imagesTr" / f"c{k}_0000.nii.gz", ref * 20 + k, affine)
        save(root / "labelsTr" / f"c{k}.nii.gz", ref, affine)
        save(root.parent / "pred" / f"c{k}.nii.gz", pred, affine)
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": N,
               "file_ending": ".nii.gz"}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def run_handler(root, pred, out, labels, **options):
    """What a bundle's evaluate.json does once its network has predicted."""
    load = Compose([
        LoadImaged(["image", "label", "pred"], reader=MedvolReader, ensure_channel_first=True),
    ])  # fmt: skip
    rows = [{**row, "pred": str(pred / f"{row['case']}.nii.gz")}
            for row in evaluation_cases(root, labels)]  # fmt: skip
    split = Decollated(keys=None)

    def step(engine, batch):
        engine.state.batch = split(batch)
        return engine.state.batch

    engine = Engine(step)
    SegmentationScores(labels, output_dir=out, **options).attach(engine, "val_mean_dice")
    engine.run([list_data_collate([load(row)]) for row in reversed(rows)], max_epochs=1)
    return engine.state.metrics


KINDS = {
    "labels": (LABELS, {}),
    "ignore": ({**LABELS, "ignore": 4}, {"ignore_label": 4}),
    "regions": (REGIONS, {"regions": {k: v if isinstance(v, list) else [v]
                                      for k, v in REGIONS.items() if v}}),
    "both": ({**REGIONS, "ignore": 4}, {"ignore_label": 4, "regions": {
        k: v if isinstance(v, list) else [v] for k, v in REGIONS.items() if v}}),
}  # fmt: skip


#: Every kind on half of the grids, and every grid with half of the kinds.
BOTH = [(k, g) for i, k in enumerate(KINDS) for j, g in enumerate(GRIDS) if (i + j) % 2 == 0]


@pytest.mark.parametrize(("kind", "grid"), BOTH)
@settings(max_examples=2, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(seed=st.integers(0, 1000))
def test_both_evaluations_write_the_same_bytes(kind, grid, seed, tmp_path_factory, save_mask):
    folder = tmp_path_factory.mktemp("two")
    labels, options = KINDS[kind]
    root = write(folder / "data", save_mask, labels, grid, seed)
    names = {1: "liver", 2: "tumour", 3: "cyst"}
    if "regions" in options:
        names = {1: "label_1", 2: "label_2", 3: "cyst"}
    metrics = run_handler(root, folder / "pred", folder / "bundle", names, **options)
    found = evaluate_segmentation(MaskOptions(folder / "pred", root, folder / "verb", resamples=20))
    for name in TABLES:
        texts = [(folder / way / name).read_text() for way in ("bundle", "verb")]
        assert texts[0] == texts[1], name
    dice = {row.label: row.mean for row in found.table if row.metric == "dice"}
    for label in options.get("regions", {"liver": 1}):
        assert metrics[f"val_mean_dice_{label}"] == pytest.approx(dice[label], nan_ok=True)


@pytest.fixture
def both(tmp_path, save_mask):
    root = write(tmp_path / "data", save_mask, LABELS, "axis-aligned", 0)
    lines = [f"c{k},data/imagesTr/c{k}_0000.nii.gz,data/labelsTr/c{k}.nii.gz,secret{k // 2}"
             for k in range(N)]  # fmt: skip
    data = tmp_path / "data.csv"
    data.write_text("\n".join(["case,image,label,patient_id", *lines]) + "\n")
    names = {1: "liver", 2: "tumour", 3: "cyst"}
    run_handler(data, tmp_path / "pred", tmp_path / "bundle", names)
    evaluate_segmentation(
        MaskOptions(tmp_path / "pred", root, tmp_path / "verb", data=data, labels=names)
    )
    return tmp_path


def test_patients_are_grouped_and_never_named_in_either(both):
    cases = [(both / way / "cases.csv").read_text() for way in ("bundle", "verb")]
    assert cases[0] == cases[1]
    groups = [line.split(",")[2] for line in cases[0].splitlines()[1:]]
    assert groups == [str(k // 2 + 1) for k in range(N)]
    for way in ("bundle", "verb"):
        assert not any("secret" in p.read_text() for p in (both / way).iterdir())


def test_either_folder_is_read_reported_and_compared(both, tmp_path):
    one, other = (read_results(both / way) for way in ("bundle", "verb"))
    for name in ("table", "agreement", "worst", "scores", "volumes", "cases"):
        assert repr(getattr(one, name)) == repr(getattr(other, name))
    pages = [write_report([both / way], tmp_path / "report" / way) for way in ("bundle", "verb")]
    tables = [next(p for p in page.tables if p.name == "summary.csv").read_text()
              for page in pages]  # fmt: skip
    assert tables[0] == tables[1]
    assert main(["card", str(both / "bundle"), "-o", str(tmp_path / "card")]) == 0
    rows = compare(both / "bundle", both / "verb")
    assert {row.test for row in rows} == {"signed ranks by patient"}
    assert all(row.difference == 0 for row in rows if row.n)


def test_a_bundles_run_notes_its_inputs_and_is_not_repeated_by_the_verb(both, capsys):
    run = json.loads((both / "bundle" / "run.json").read_text())
    assert {name.split("/")[-1] for name in run["inputs"]} >= {"c0.nii.gz", "c0_0000.nii.gz"}
    assert set(run["outputs"]) == set(TABLES)
    assert main(["evaluate", "rerun", str(both / "bundle" / "run.json")]) == 2
    assert "'bundle run evaluate'" in capsys.readouterr().err


def test_a_bundle_that_scores_training_cases_warns_of_it(tmp_path, save_mask, caplog):
    root = write(tmp_path / "data", save_mask, LABELS, "axis-aligned", 0)
    lines = [f"c{k},data/imagesTr/c{k}_0000.nii.gz,data/labelsTr/c{k}.nii.gz,train"
             for k in range(N)]  # fmt: skip
    (tmp_path / "data.csv").write_text("\n".join(["case,image,label,split", *lines]) + "\n")
    assert root.is_dir()
    with caplog.at_level(logging.WARNING):
        run_handler(tmp_path / "data.csv", tmp_path / "pred", tmp_path / "out",
                    {1: "liver", 2: "tumour", 3: "cyst"})  # fmt: skip
    assert f"{N} of {N} cases are training cases" in caplog.text
    assert "train" in (tmp_path / "out" / "cases.csv").read_text()
