"""From files to label maps, records and refusals, in one process."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medvol.core.errors import ConfigError, MissingInputError, TooLargeError
from medvol.runners import Session, find_cases, run_local


def by_monai(options, image: Path) -> np.ndarray:
    """MONAI's inferer, inverse and arg-max, one after the other on all probabilities."""
    from monai.inferers.inferer import SlidingWindowInferer as MonaiInferer
    from monai.transforms.post.dictionary import Invertd

    session = Session(options)
    data = session.preprocessing({"image": str(image)})
    with torch.no_grad():
        outputs = MonaiInferer((16, 16, 8), 2, 0.5, "gaussian")(
            data["image"][None], session.network
        )
    data["pred"] = outputs[0].softmax(0)
    undo = Invertd("pred", session.preprocessing, "image", nearest_interp=False, to_tensor=True)
    return np.asarray(undo(data)["pred"]).argmax(0)


def test_label_maps_are_what_monais_steps_give(options, images, labels_of):
    records = run_local(find_cases([images]), options())
    assert [r.status for r in records] == ["done"] * 4
    for case in ("case0", "case3"):
        want = by_monai(options(), images / f"{case}.nii.gz")
        got = labels_of(options().output, case)
        assert set(np.unique(want)) == {0, 1, 2}
        assert (got == want).mean() > 0.999


def test_results_lie_on_the_input_grid(options, images):
    run_local(find_cases([images / "case0.nii.gz"]), options())
    got = nib.load(Path(options().output) / "case0" / "seg.nii.gz")
    want = nib.load(images / "case0.nii.gz")
    assert got.shape == want.shape
    np.testing.assert_allclose(got.affine, want.affine, atol=1e-5)
    assert got.get_data_dtype() == np.uint8


def test_a_record_says_what_it_rests_on(options, images, labels_of):
    run_local(find_cases([images / "case1.nii.gz"]), options())
    record = json.loads((Path(options().output) / "case1" / "prediction.json").read_text())
    assert record["status"] == "done"
    assert record["bundle"]["name"] == "phantom_ct_segmentation"
    for digest in ("config_sha256", "weights_sha256"):
        assert len(record["bundle"][digest]) == 64
    assert len(record["input_sha256"]) == 64
    assert set(record["seconds"]) == {"load", "infer", "write"}
    assert record["peak_ram_bytes"] > 10**8
    assert record["predicted"]["ram_bytes"] > 10**8
    assert "seconds" not in record["predicted"]  # nothing was timed beforehand
    voxels = labels_of(options().output, "case1")
    for row in record["structures"]:
        assert row["voxels"] == int((voxels == row["label"]).sum())
        assert row["volume_ml"] == pytest.approx(row["voxels"] * 1.2 * 1.0 * 2.5 / 1000, rel=1e-4)


def test_a_second_run_keeps_what_is_done(options, images):
    first = run_local(find_cases([images]), options())
    path = Path(options().output) / "case2" / "seg.nii.gz"
    before = path.stat().st_mtime_ns
    again = run_local(find_cases([images]), options())
    assert [r.is_resumed for r in first] == [False] * 4
    assert [r.is_resumed for r in again] == [True] * 4
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "change", ["image", "weights", "lost output", "emptied output", "cut output", "edited output"]
)
def test_what_changed_is_predicted_again(tmp_path, options, change, make_bundle, make_image):
    bundle = make_bundle(tmp_path / "b")
    image = make_image(tmp_path / "in" / "a.nii.gz", 0)
    asked = options(bundle=str(bundle))
    run_local(find_cases([image]), asked)
    if change == "image":
        make_image(image, 1)
    elif change == "weights":
        path = bundle / "models" / "model.pt"
        state = torch.load(path, weights_only=True)
        torch.save({k: v * 1.01 for k, v in state.items()}, path)
    else:
        mask = Path(asked.output) / "a" / "seg.nii.gz"
        content = mask.read_bytes()
        if change == "lost output":
            os.unlink(mask)
        else:
            other = nib.Nifti1Image(np.ones((22, 25, 12), np.uint8), np.eye(4)).to_bytes()
            changed = {"emptied": b"", "cut": content[:-40], "edited": gzip.compress(other)}
            mask.write_bytes(changed[change.split()[0]])
    assert not run_local(find_cases([image]), asked)[0].is_resumed


def test_a_bad_case_is_refused_and_the_rest_go_on(tmp_path, options, make_image):
    make_image(tmp_path / "in" / "a.nii.gz", 0)
    bad = make_image(tmp_path / "in" / "b.nii.gz", 1)
    image = nib.load(bad)
    values = np.asarray(image.dataobj).copy()
    values[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), bad)
    (tmp_path / "in" / "c.nii.gz").write_bytes(b"not an image")
    make_image(tmp_path / "in" / "d.nii.gz", 2)
    records = run_local(find_cases([tmp_path / "in"]), options())
    assert [r.status for r in records] == ["done", "rejected", "rejected", "done"]
    assert "NaN" in records[1].reason
    assert "c.nii.gz" in records[2].reason
    stored = json.loads((Path(options().output) / "b" / "prediction.json").read_text())
    assert stored["status"] == "rejected"


def test_names_collide_with_no_other(tmp_path, make_image):
    for place in ("x/image.nii.gz", "y/image.nii.gz", "y_/image.nii.gz", "solo.nii.gz"):
        make_image(tmp_path / place, 0, (4, 4, 4))
    names = [c.name for c in find_cases([tmp_path])]
    assert len({n.lower() for n in names}) == 4
    assert "solo" in names
    assert find_cases([tmp_path]) == find_cases([tmp_path, tmp_path / "x"])[:4]
    with pytest.raises(MissingInputError, match="does not exist"):
        find_cases([tmp_path / "nowhere"])


def test_a_ceiling_is_refused_before_loading(options, images):
    records = run_local(find_cases([images / "case0.nii.gz"]), options(max_ram=10**6))
    assert records[0].status == "rejected"
    assert "at least" in records[0].reason
    assert "load" not in records[0].seconds


def test_the_plan_knows_the_networks_grid(options, images):
    from medvol.io import inspect_image
    from medvol.transforms import output_grid

    session = Session(options())
    path = str(images / "case0.nii.gz")
    loaded = session.preprocessing({"image": path})["image"]
    grid = output_grid(session.preprocessing, inspect_image(path).geometry)
    assert grid.shape == tuple(loaded.shape[1:])
    np.testing.assert_allclose(grid.affine, loaded.affine, atol=1e-5)


def test_uncertainty_brings_maps_intervals_and_a_review_flag(
    tmp_path, options, images, labels_of, make_bundle
):
    bundle = make_bundle(tmp_path / "b", tta=[0, 1])
    asked = options(bundle=str(bundle), uncertainty=True)
    record = run_local(find_cases([images / "case0.nii.gz"]), asked)[0]
    assert record.status == "done", record.reason
    folder = Path(asked.output) / "case0"
    maps = {
        k: np.asarray(nib.load(folder / f"{k}.nii.gz").dataobj) for k in ("epistemic", "aleatoric")
    }
    assert maps["epistemic"].min() >= 0
    assert 0 < maps["epistemic"].max() < np.log(3)
    for row in record.structures:
        low, high = row["interval_ml"]
        assert low <= high
    assert record.review["flag"] == bool(record.review["reason"])
    labels = labels_of(asked.output, "case0")
    plain = run_local(
        find_cases([images / "case0.nii.gz"]),
        options(bundle=str(bundle), output=str(tmp_path / "o2")),
    )
    assert plain[0].status == "done"
    np.testing.assert_array_equal(labels, labels_of(tmp_path / "o2", "case0"))


def test_postprocessing_after_the_decision_runs_on_labels(
    tmp_path, options, images, labels_of, make_bundle
):
    after = [
        {
            "_target_": "KeepLargestConnectedComponentd",
            "keys": "pred",
            "applied_labels": [1, 2],
            "independent": True,
        }
    ]
    bundle = make_bundle(tmp_path / "b", after=after)
    run_local(find_cases([images / "case0.nii.gz"]), options(bundle=str(bundle)))
    from scipy.ndimage import label

    got = labels_of(options().output, "case0")
    for value in (1, 2):
        assert label(got == value, np.ones((3, 3, 3)))[1] <= 1


def test_a_bundle_without_a_pipeline_runs_through_its_own_evaluator(
    tmp_path, options, images, labels_of, make_bundle
):
    bundle = make_bundle(tmp_path / "b")
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    del config["pipeline"], config["decision"], config["network"]
    steps = config["postprocessing"]["transforms"]
    steps[0] = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
    steps.insert(1, {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing",
                     "orig_keys": "image", "nearest_interp": False, "to_tensor": True})  # fmt: skip
    steps.insert(2, {"_target_": "AsDiscreted", "keys": "pred", "argmax": True})
    config["dataset"] = {"_target_": "Dataset", "data": [], "transform": "@preprocessing"}
    config["dataloader"] = {"_target_": "DataLoader", "dataset": "@dataset"}
    config["loader"] = {"_target_": "CheckpointLoader", "load_path": "@checkpoint",
                        "load_dict": {"model": "@network_def"}}  # fmt: skip
    config["evaluator"] = {
        "_target_": "SupervisedEvaluator", "device": "$torch.device(@device)",
        "val_data_loader": "@dataloader", "network": "@network_def", "inferer": "@inferer",
        "postprocessing": "@postprocessing", "val_handlers": ["@loader"],
    }  # fmt: skip
    path.write_text(json.dumps(config))
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({"model": state}, bundle / "models" / "model.pt")
    records = run_local(find_cases([images]), options(bundle=str(bundle), trust_bundle=True))
    assert [r.status for r in records] == ["done"] * 4, records[0].reason
    foreign = [labels_of(options().output, f"case{n}") for n in range(4)]
    run_local(find_cases([images]), options(output=str(tmp_path / "own")))
    for number, found in enumerate(foreign):
        own = labels_of(tmp_path / "own", f"case{number}")
        assert (found == own).mean() > 0.999
    for wrong in ({"uncertainty": True}, {"max_ram": 10**9}, {"formats": ("probabilities",)}):
        with pytest.raises(ConfigError, match="own evaluator"):
            Session(options(bundle=str(bundle), trust_bundle=True, **wrong))


def test_formats_are_checked_when_asked_for(options):
    with pytest.raises(ConfigError, match="format"):
        options(formats=("jpeg",))
    assert "dicomseg" in options(formats=("sr",)).formats


def test_memory_running_out_is_survived(options, images, monkeypatch, labels_of):
    session = Session(options())
    calls = []

    class TooGreedy(torch.nn.Module):
        def forward(self, x):
            calls.append(len(x))
            if len(x) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return session.network(x)

    from medvol.runners import predict_case

    session.predictor = TooGreedy()
    record = predict_case(session, find_cases([images / "case0.nii.gz"])[0])
    assert (record.status, record.fallback) == ("done", "batch 1")
    got = labels_of(options().output, "case0")
    want = by_monai(options(), images / "case0.nii.gz")
    assert (got == want).mean() > 0.999


def test_the_text_of_a_too_large_image_names_sizes(options, images):
    from medvol.runners.cost import job_plan

    with pytest.raises(TooLargeError, match="22x25x12"):
        job_plan(Session(options(max_ram=1000)), str(images / "case0.nii.gz"))


def test_a_case_that_turned_bad_keeps_no_old_result(tmp_path, options, make_image):
    image = make_image(tmp_path / "in" / "a.nii.gz", 0)
    assert run_local(find_cases([image]), options())[0].status == "done"
    image.write_bytes(b"no longer an image")
    assert run_local(find_cases([image]), options())[0].status == "rejected"
    left = [p.name for p in (Path(options().output) / "a").iterdir()]
    assert left == ["prediction.json"]


def test_what_the_user_says_of_inputs_reaches_the_reader(options):
    session = Session(options(reader={"channels": True, "series": "2"}))
    load = session.preprocessing.transforms[0]
    said = load._loader.readers[-1].options
    assert said.channels
    assert said.dicom.series == "2"
    assert options(reader={"channels": True}).digest() != options().digest()


def test_a_run_without_a_ceiling_is_estimated_with_three_cases_at_once(options, images):
    from medvol.runners import job_plan, run_estimate

    paths = [str(images / f"case{n}.nii.gz") for n in range(3)]
    session = Session(options())
    plans = [job_plan(session, path) for path in paths]
    alone, many = run_estimate(session, plans[:1]), run_estimate(session, plans)
    assert alone.ram_bytes == plans[0].ram_bytes
    middle = plans[1].phases["infer"] + plans[2].phases["prepare"] + plans[0].phases["write"]
    assert many.ram_bytes >= session.own_pipeline.base_bytes + middle
    session.options = options(max_ram=10**10)
    assert run_estimate(session, plans).ram_bytes == max(plan.ram_bytes for plan in plans)


def test_the_mean_of_two_checkpoints_takes_the_place_of_the_bundles_weights(
    tmp_path, options, images, toy_bundle
):
    from medvol.core.errors import WeightsError
    from medvol.inferers import members_of
    from medvol.networks import Ensemble

    state = torch.load(toy_bundle / "models" / "model.pt", weights_only=True)
    places = []
    for factor in (1.0, 1.5):
        path = tmp_path / f"fold_{factor}.pt"
        torch.save({k: v * factor for k, v in state.items()}, path)
        places.append(str(path))
    asked = options(ensemble=tuple(places), uncertainty=True)
    session = Session(asked)
    assert isinstance(session.network, Ensemble)
    assert len(members_of(session.network)) == 2
    assert [m["name"] for m in session.identity["members"]] == ["fold_1.0.pt", "fold_1.5.pt"]
    assert session.identity["weights_sha256"] != Session(options()).identity["weights_sha256"]
    record = run_local(find_cases([images / "case0.nii.gz"]), asked)[0]
    assert record.status == "done", record.reason
    epistemic = nib.load(Path(asked.output) / "case0" / "epistemic.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    assert np.asarray(epistemic.dataobj).max() > 1e-3  # pyright: ignore[reportAttributeAccessIssue]
    whole = Session(options(ensemble=(str(toy_bundle), places[1])))
    assert len(members_of(whole.network)) == 2
    with pytest.raises(MissingInputError, match="neither"):
        Session(options(ensemble=("nowhere.pt",)))
    torch.save({"x": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError):
        Session(options(ensemble=(str(tmp_path / "other.pt"),)))


def test_a_member_with_other_labels_is_refused(tmp_path, options, make_bundle):
    other = make_bundle(tmp_path / "other_ct_segmentation")
    path = other / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["labels"] = {"1": "liver", "2": "spleen"}
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="its labels differs"):
        Session(options(ensemble=(str(other),)))


def test_thresholds_and_cleaning_are_applied_and_recorded(
    tmp_path, options, images, labels_of, make_bundle
):
    from scipy.ndimage import label

    after = [{"_target_": "medvol.transforms.CleanLabelMapd", "keys": "pred", "largest": [1]}]
    bundle = make_bundle(tmp_path / "b", after=after)
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["decision"] |= {"values": [0, 1, 2], "thresholds": [0.0, 0.45, 0.4]}
    path.write_text(json.dumps(config))
    asked = options(bundle=str(bundle), formats=("nifti", "probabilities"))
    record = run_local(find_cases([images / "case0.nii.gz"]), asked)[0]
    assert record.status == "done", record.reason
    assert record.bundle["decision"]["thresholds"] == [0.0, 0.45, 0.4]
    assert record.bundle["cleaning"] == [{"name": "CleanLabelMapd", "largest": [1]}]
    found = nib.load(Path(asked.output) / "case0" / "probabilities.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    values = np.asarray(found.dataobj)  # pyright: ignore[reportAttributeAccessIssue]
    winner, best = values.argmax(-1), values.max(-1)
    want = np.where(best >= np.array([0, 0.45, 0.4])[winner], winner, 0)
    got = labels_of(asked.output, "case0")
    assert label(got == 1, np.ones((3, 3, 3)))[1] == 1
    np.testing.assert_array_equal(got == 2, want == 2)
    assert ((got == 1) <= (want == 1)).all()


def test_probabilities_are_written_on_the_scans_grid_and_explain_the_mask(
    options, images, labels_of
):
    asked = options(formats=("nifti", "probabilities"))
    record = run_local(find_cases([images / "case0.nii.gz"]), asked)[0]
    assert record.outputs == {"nifti": "seg.nii.gz", "probabilities": "probabilities.nii.gz"}
    assert not any("interval_ml" in row for row in record.structures)
    found = nib.load(Path(asked.output) / "case0" / "probabilities.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    values = np.asarray(found.dataobj)  # pyright: ignore[reportAttributeAccessIssue]
    assert values.shape == (22, 25, 12, 3)
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
    assert (values.argmax(-1) == labels_of(asked.output, "case0")).all()


def test_uncertainty_draws_the_mask_that_an_average_of_logits_draws(options, images, tmp_path):
    from medvol.networks import Ensemble
    from medvol.runners import predict_case

    class Says(torch.nn.Module):
        def __init__(self, logit: float) -> None:
            super().__init__()
            self.logit = logit

        def forward(self, x):
            return torch.cat([0 * x, 0 * x + self.logit, 0 * x - 9], 1)

    (case,) = find_cases([images / "case0.nii.gz"])
    voxels = []
    for uncertainty in (False, True):
        session = Session(options(output=str(tmp_path / str(uncertainty)), uncertainty=uncertainty))
        network = Ensemble([Says(6), Says(-1.5), Says(-1.5)], averages="logits")
        session.network = session.predictor = network
        record = predict_case(session, case)
        assert record.status == "done", record.reason
        voxels.append(record.structures[0]["voxels"])
    assert voxels[0] == voxels[1] == 22 * 25 * 12
