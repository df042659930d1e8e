"""`medvol select`: the choice follows planted evidence, and the export is one sound bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medvol.bundle import fork, load
from medvol.bundle.verify import verify
from medvol.cli.main import main
from medvol.core.errors import MissingInputError
from medvol.engines import save_checkpoint
from medvol.inferers import Decision
from medvol.networks import load_weights
from medvol.runners.cleaning import choose_cleaning, mean_dice
from medvol.runners.evidence import CaseMaps, fold_weights
from medvol.runners.thresholds import ThresholdRule, choose_thresholds, redrawn
from tests.blobs import write_blobs

LABELS = {1: "anterior", 2: "posterior"}
SMALL = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3,
         "channels": [4, 8], "strides": [2]}  # fmt: skip


def maps(index: int, has_crumb: bool) -> CaseMaps:
    ref = np.zeros((10, 10, 10), np.uint8)
    ref[2:6, 2:6, 2:6], ref[2:6, 6:8, 2:6] = 1, 2
    pred = ref.copy()
    pred[2 + index % 3, 2, 2] = 0
    if has_crumb:
        pred[8:10, 8:10, 8 : 9 + index % 2] = 1
    return CaseMaps(f"case_{index}", index % 2, f"patient_{index}", 2.0, pred, ref)


def test_largest_piece_is_taken_where_crumbs_are_and_nothing_where_none_are():
    chosen, steps = choose_cleaning([maps(i, has_crumb=True) for i in range(8)], LABELS)
    assert chosen["largest"] == [1]
    assert chosen["fill_holes"] == []
    first = steps[0]
    assert first.what == "anterior: largest piece only"
    assert first.is_chosen
    assert 0 < first.lower <= first.dice <= first.upper
    assert choose_cleaning([maps(i, has_crumb=False) for i in range(8)], LABELS)[0] == {}


def test_gain_is_the_difference_of_mean_dice():
    pool = [maps(i, has_crumb=True) for i in range(8)]
    gained = [mean_dice(m, LABELS, {"largest": [1]}) - mean_dice(m, LABELS) for m in pool]
    assert choose_cleaning(pool, LABELS)[1][0].dice == pytest.approx(np.mean(gained))


def arg_max() -> ThresholdRule:
    return ThresholdRule(Decision("softmax"), {1: "anterior", 2: "posterior"})


REGIONS = ThresholdRule(Decision("sigmoid", (1, 2), overlaps=True), {0: "whole", 1: "core"})


def probable(folder, index: int, anterior: float) -> CaseMaps:
    """A case whose anterior voxels have that probability, as two in the background have 0.25."""
    found = maps(index, has_crumb=False)
    probs = np.zeros((3, 10, 10, 10))
    probs[1], probs[2] = anterior * (found.ref == 1), 0.9 * (found.ref == 2)
    probs[1, 9, 9, 8:], probs[1, 2 + index % 3, 2, 2] = 0.25, 0.6
    probs[0] = 1 - probs[1] - probs[2]
    path = folder / f"{index}.npz"
    np.savez_compressed(path, probs=np.round(255 * probs).astype(np.uint8))
    return CaseMaps(found.case, found.fold, found.patient, 2.0, found.ref, found.ref, path)


def test_a_structure_that_is_always_doubted_gets_the_threshold_that_draws_it(tmp_path):
    pool = [probable(tmp_path, index, anterior=0.35) for index in range(8)]
    chosen, steps = choose_thresholds(pool, LABELS, arg_max())
    assert chosen == {1: 0.3}
    assert [row.what for row in steps if row.is_chosen] == ["anterior: threshold 0.3"]
    for maps_ in redrawn(pool, chosen, arg_max()):
        assert np.array_equal(maps_.pred, maps_.ref)


def test_no_threshold_moves_where_none_helps(tmp_path):
    pool = [probable(tmp_path, index, anterior=0.9) for index in range(8)]
    assert choose_thresholds(pool, LABELS, arg_max())[0] == {}


@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.7])
def test_a_regions_threshold_is_the_probability_from_which_it_is_painted(tmp_path, threshold):
    probs = np.zeros((2, 1, 1, 256), np.uint8)
    probs[0] = np.arange(256)
    np.savez_compressed(tmp_path / "a.npz", probs=probs)
    empty = np.zeros((1, 1, 256), np.uint8)
    case = CaseMaps("a", 0, "a", 1.0, empty, empty, tmp_path / "a.npz")
    drawn = REGIONS.draw(case, {0: threshold})[0, 0]
    assert np.array_equal(drawn > 0, np.arange(256) >= np.ceil(255 * threshold - 1e-3))


def test_missing_fold_is_named(tmp_path):
    with pytest.raises(MissingInputError, match="fold_0"):
        fold_weights(tmp_path, 2)


@pytest.fixture
def trained(tmp_path):
    """A small bundle of two folds, each with weights of its own."""
    folder = fork("hippocampus_mri_segmentation", tmp_path / "small_segmentation")
    for task in ("train", "evaluate", "inference", "multi_gpu_train"):
        path = folder / "configs" / f"{task}.json"
        config = json.loads(path.read_text())
        config["network_def"] = SMALL
        config["folds"] = 2
        path.write_text(json.dumps(config))
    bundle = load(folder, is_trusted=True)
    for fold in range(2):
        torch.manual_seed(fold)
        network = bundle.parser("train").get_parsed_content("network_def")
        save_checkpoint(tmp_path / "runs" / f"fold_{fold}" / "model.pt", network.state_dict())
    return folder, tmp_path / "runs", write_blobs(tmp_path / "data", n=4)


def test_exported_bundle_averages_its_folds_and_says_what_it_rests_on(trained, tmp_path, capsys):
    folder, runs, data = trained
    out = tmp_path / "chosen_segmentation"
    words = ["select", str(folder), str(runs), "--data", str(data), "-o", str(out),
             "--trust-bundle", "--thresholds", "--json"]  # fmt: skip
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["members"]) == 2
    tried = [row["what"] for row in found["steps"] if "threshold" in row["what"]]
    assert len(tried) == 12
    assert found["networks"][0]["n"] == 4
    assert "not measured" in found["evidence"]
    bundle = load(out, is_trusted=True)
    assert verify(bundle) == []
    ensemble, x = bundle.network(), torch.randn(1, 1, 16, 16, 16)
    single = load(folder, is_trusted=True).parser("train")
    want = []
    for fold in range(2):
        network = single.get_parsed_content("network_def", instantiate=True)
        network.load_state_dict(load_weights(runs / f"fold_{fold}" / "model.pt"))
        with torch.no_grad():
            want.append(network.eval()(x).softmax(1))
        single = load(folder, is_trusted=True).parser("train")
    with torch.no_grad():
        torch.testing.assert_close(ensemble(x).softmax(1), sum(want) / 2, rtol=0, atol=1e-6)
    assert "## Selection" in (out / "docs" / "README.md").read_text()
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err


def test_folds_of_another_deal_are_refused(trained, tmp_path, capsys):
    folder, runs, data = trained
    record = {"status": "done", "settings": {"split_seed": "7"}}
    (runs / "fold_1" / "run.json").write_text(json.dumps(record))
    words = ["select", str(folder), str(runs), "--data", str(data), "-o", str(tmp_path / "x")]
    assert main([*words, "--trust-bundle"]) == 2
    assert "split_seed=7" in capsys.readouterr().err


def test_networks_trained_anew_in_the_same_folder_are_judged_anew(trained, tmp_path, capsys):
    folder, runs, data = trained
    seen = []
    for attempt in range(2):
        out = tmp_path / f"try{attempt}_segmentation"
        words = ["select", str(folder), str(runs), "--data", str(data), "-o", str(out)]
        assert main([*words, "--trust-bundle", "--single", "--json"]) == 0
        seen.append(json.loads(capsys.readouterr().out)["networks"][0]["dice"])
        for fold in range(2):  # a network that finds nothing
            path = runs / f"fold_{fold}" / "model.pt"
            state = {name: torch.zeros_like(value) for name, value in load_weights(path).items()}
            save_checkpoint(path, state)
    assert seen[1] < seen[0]


def test_hold_out_set_decides_between_one_fold_and_all(trained, tmp_path, capsys):
    folder, runs, data = trained
    held = write_blobs(tmp_path / "held", n=3, first_seed=50)
    words = ["select", str(folder), str(runs), "--data", str(data), "-o",
             str(tmp_path / "held_segmentation"), "--holdout", str(held), "--trust-bundle",
             "--json"]  # fmt: skip
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    one, all_folds = found["networks"][-2:]
    assert (one["what"], all_folds["what"]) == ("hold-out set: best fold alone",
                                                "hold-out set: all folds")  # fmt: skip
    assert one["n"] == 3
    assert len(found["members"]) == (1 if one["dice"] >= all_folds["dice"] else 2)


def test_chosen_thresholds_leave_probabilities_true_and_draw_the_mask_from_them(trained, tmp_path):
    import nibabel as nib

    from medvol.runners import PredictOptions, Session, find_cases, run_local
    from medvol.runners.thresholds import insert_thresholds, rule_of

    folder, runs, data = trained
    save_checkpoint(folder / "models" / "model.pt", load_weights(runs / "fold_0" / "model.pt"))
    images = find_cases([data / "imagesTr"])[:1]
    found = []
    for thresholds in ({}, {1: 0.2, 2: 0.7}):
        path = folder / "configs" / "inference.json"
        config = json.loads(path.read_text())
        if thresholds:
            insert_thresholds(config, rule_of(load(folder, is_trusted=True)), thresholds, 3)
            path.write_text(json.dumps(config))
        out = tmp_path / f"out{len(thresholds)}"
        asked = PredictOptions(str(folder), str(out), ("nifti", "probabilities"), trust_bundle=True)
        (record,) = run_local(images, asked)
        assert record.status == "done", record.reason
        case = out / record.case
        probs, mask = (np.asarray(nib.load(case / f"{name}.nii.gz").dataobj)  # pyright: ignore
                       for name in ("probabilities", "seg"))  # fmt: skip
        decision = Session(asked).own_pipeline.decision
        again = decision.labels(torch.from_numpy(probs).movedim(-1, 0)).numpy()
        np.testing.assert_array_equal(again, mask)
        found.append((probs, mask))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert (found[0][1] != found[1][1]).any()
