"""The same image gives the same mask, whichever way a bundle is run and whatever else is asked.

Ways: the verb plainly, with probabilities, with uncertainty, under a tight memory ceiling, in
worker processes, by ``monai.bundle run``, as MONAI Label's stock task does it, and in Ray (marked).
Bundles: forks of the shipped ones with many windows, with and without mirrors; a network of
several channels; networks that nnU-Net trained.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medvol.bundle import fork
from medvol.inferers import PredictionPipeline
from medvol.planning import import_nnunet
from medvol.runners import PredictOptions, Session, find_cases, run_local, run_workers

GOLDEN = Path(__file__).parents[1] / "golden" / "nnunet"


def head(seed: int, shape=(36, 50, 36)) -> np.ndarray:
    """A bent grey rod between white matter and a dark ventricle: networks find something there."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.arange(n) - n / 2 for n in shape], indexing="ij")
    volume = np.full(shape, 620.0)
    bend = 4 * np.cos(y / 14)
    volume[((x + bend) / 6) ** 2 + (y / 20) ** 2 + ((z + y / 6) / 5) ** 2 < 1] = 430
    ventricle = ((x + bend - 7) / 3) ** 2 + (y / 18) ** 2 + ((z + y / 6 - 4) / 4) ** 2
    volume[ventricle < 1] = 150
    return (gaussian_filter(volume, 0.8) + rng.normal(0, 18, shape)).astype(np.float32)


def write_heads(folder: Path, channels: int = 1) -> Path:
    """Axis-aligned, oblique, flipped, thick and cropped storage of heads."""
    folder.mkdir(parents=True, exist_ok=True)
    turn = np.array([[0.94, -0.34, 0.0], [0.34, 0.94, 0.0], [0.0, 0.0, 1.0]])
    oblique = np.eye(4)
    oblique[:3, :3], oblique[:3, 3] = turn, (4, -7, 11)
    flipped = np.diag([-1.0, 1.0, -1.0, 1.0])
    turned = np.array([[0, 0, 1.0, 0], [-1.0, 0, 0, 40], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    thick = np.diag([0.8, 0.9, 2.5, 1.0])
    for index, (name, affine, shape) in enumerate(
        [
            ("aligned", np.eye(4), (30, 42, 28)),
            ("oblique", oblique, (28, 41, 30)),
            ("flipped", flipped, (35, 42, 26)),
            ("turned", turned, (40, 29, 30)),
            ("thick", thick, (36, 44, 12)),
        ]
    ):
        volume = np.stack([head(index + 7 * c, shape) for c in range(channels)], -1)
        if name == "flipped":  # zeros around, which nnU-Net's preprocessing crops away
            volume[:5], volume[:, -6:] = 0, 0
        image = nib.Nifti1Image(volume if channels > 1 else volume[..., 0], affine)  # pyright: ignore[reportPrivateImportUsage]
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / f"{name}.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    return folder


def forked(folder: Path, name: str, roi: list[int], **inferer: object) -> Path:
    """A copy of a shipped bundle with many small windows, and two members of an ensemble."""
    bundle = fork(name, folder / f"many_{len(list(folder.iterdir()))}_{name}")
    for path in (bundle / "configs").glob("*.json"):
        config = json.loads(path.read_text())
        if "inferer" not in config:
            continue
        config["inferer"] |= {"roi_size": roi, **inferer}
        config["preprocessing"]["transforms"][-1]["min_size"] = [4, 4, 0]
        if config["decision"]["activation"] == "softmax":  # a phantom's rod is found at 1 in 50
            config["decision"]["factors"] = [1.0, 50.0, 50.0]
        path.write_text(json.dumps(config))
    weights = bundle / "models" / "model.pt"
    state = torch.load(weights, weights_only=True)
    torch.save({k: v for k, v in state.items() if k[:10] not in _LATER_MEMBERS}, weights)
    return bundle


_LATER_MEMBERS = {f"networks.{index}" for index in (2, 3, 4)}
BUNDLES = {
    "single windows": lambda folder, _: forked(
        folder, "hippocampus_mri_segmentation", [24, 32, 24], tta=None
    ),
    "single network": lambda folder, make: rooted(
        make(folder / "single_mri_segmentation", spacing_mm=(1.1, 1.3, 1.2), roi_size=[20, 16, 12])
    ),
    "mirrors": lambda folder, _: forked(folder, "hippocampus_mri_segmentation", [24, 32, 24]),
    "slices": lambda folder, _: forked(folder, "hippocampus_mri_slice_segmentation", [24, 32]),
    "nnU-Net plain": lambda folder, _: _imported(folder, "plain"),
    "nnU-Net residual": lambda folder, _: _imported(folder, "residual"),
}


def rooted(bundle: Path) -> Path:
    """A hand-made bundle whose config knows its folder, whatever the working directory."""
    path = bundle / "configs" / "inference.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bundle_root": str(bundle)}))
    return bundle


def _imported(folder: Path, kind: str) -> Path:
    import_nnunet(GOLDEN / kind, folder / f"{kind}_mri_segmentation", "hippocampus")
    return folder / f"{kind}_mri_segmentation"


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    return write_heads(tmp_path_factory.mktemp("heads"))


@pytest.fixture(params=sorted(BUNDLES))
def bundle(request, tmp_path, make_bundle) -> Path:
    return BUNDLES[request.param](tmp_path, make_bundle)


def masks_of(out: Path, images: Path) -> dict[str, np.ndarray]:
    names = sorted(path.name.removesuffix(".nii.gz") for path in images.iterdir())
    assert len(names) == 5
    return {name: _array(out / name / "seg.nii.gz") for name in names}


def _array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)  # pyright: ignore


def require_equal(found: dict[str, np.ndarray], want: dict[str, np.ndarray], way: str) -> None:
    for name, mask in want.items():
        np.testing.assert_array_equal(found[name], mask, err_msg=f"{way}: {name}")


def bundle_run(bundle: Path, images: Path, out: Path, *extra: str) -> dict[str, np.ndarray]:
    config = bundle / "configs" / "inference.json"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config),
               "--dataset_dir", str(images), "--output_dir", str(out), *extra]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.name.removesuffix("_seg.nii.gz"): _array(path)
            for path in out.rglob("*_seg.nii.gz")}  # fmt: skip


def stock_label_task(bundle: Path, images: Path) -> dict[str, np.ndarray]:
    """MONAI Label's stock order: preprocessing, inferer on the network, postprocessing."""
    session = Session(PredictOptions(str(bundle), ".", trust_bundle=True))
    steps = session.bundle.config("inference")["postprocessing"]["transforms"]
    parser = session.bundle.parser(
        "inference", device="cpu", **{"postprocessing#transforms": steps[:-1]}
    )
    found = {}
    for path in images.iterdir():
        data = parser.get_parsed_content("preprocessing")({"image": str(path)})
        inferer, network = (parser.get_parsed_content(k) for k in ("inferer", "network"))
        with torch.no_grad():
            data["pred"] = inferer(data["image"][None], network.eval())[0]
        with torch.no_grad():  # medvol's own task takes the pipeline for the inferer
            pipeline = parser.get_parsed_content("pipeline")
            ours = pipeline(data["image"][None], network)[0]
        label = parser.get_parsed_content("postprocessing")(data)["pred"]
        assert np.array_equal(np.asarray(ours), np.asarray(label))
        found[path.name.removesuffix(".nii.gz")] = np.asarray(label)[0]
    return found


def test_every_way_draws_the_same_mask(bundle, heads, tmp_path):
    def asked(way: str, **options: object) -> PredictOptions:
        out = tmp_path / way
        return PredictOptions(str(bundle), str(out), trust_bundle=True, **options)

    cases = find_cases([heads])
    plain = asked("plain")
    records = run_local(cases, plain)
    assert [r.status for r in records] == ["done"] * 5, records[0].reason
    want = masks_of(tmp_path / "plain", heads)
    assert any(mask.any() for mask in want.values())

    session = Session(plain)
    least = session.own_pipeline.base_bytes
    tight = max(int(r.predicted["ram_bytes"]) for r in records)
    ways = {
        "probabilities": {"formats": ("nifti", "probabilities")},
        "uncertainty": {"uncertainty": True},
        "ceiling": {"max_ram": max(tight, least) + 2**27},
    }
    for way, options in ways.items():
        done = run_local(cases, asked(way, **options))
        assert [r.status for r in done] == ["done"] * 5, (way, done[0].reason)
        require_equal(masks_of(tmp_path / way, heads), want, way)
    decision = session.own_pipeline.decision
    for name, mask in want.items():
        probs = torch.from_numpy(_array(tmp_path / "probabilities" / name / "probabilities.nii.gz"))
        again = decision.labels(probs.movedim(-1, 0)).numpy()
        np.testing.assert_array_equal(again, mask, err_msg=f"decided again: {name}")
    require_equal(bundle_run(bundle, heads, tmp_path / "run", "--max_ram", "8GB"),
                  want, "monai.bundle run")  # fmt: skip
    stock = stock_label_task(bundle, heads)
    for name, mask in want.items():  # softmax of a logarithm: the last bit may differ
        assert (stock[name] == mask).mean() > 0.9999, f"MONAI Label's stock task: {name}"


def test_workers_draw_the_same_mask(heads, tmp_path):
    bundle = BUNDLES["mirrors"](tmp_path, None)
    cases = find_cases([heads])
    run_local(cases, PredictOptions(str(bundle), str(tmp_path / "one"), trust_bundle=True))
    run_workers(cases, PredictOptions(str(bundle), str(tmp_path / "two"), trust_bundle=True), 2)
    require_equal(masks_of(tmp_path / "two", heads), masks_of(tmp_path / "one", heads), "workers")


@pytest.mark.slow
def test_ray_draws_the_same_mask(heads, tmp_path):
    pytest.importorskip("ray")
    from medvol.runners import run_ray

    bundle = BUNDLES["mirrors"](tmp_path, None)
    cases = find_cases([heads])
    run_local(cases, PredictOptions(str(bundle), str(tmp_path / "one"), trust_bundle=True))
    run_ray(cases, PredictOptions(str(bundle), str(tmp_path / "two"), trust_bundle=True), 2)
    require_equal(masks_of(tmp_path / "two", heads), masks_of(tmp_path / "one", heads), "Ray")


def test_several_channels_draw_the_same_mask(tmp_path, make_bundle):
    from monai.networks.nets.unet import UNet

    bundle = make_bundle(tmp_path / "two_mri_segmentation", spacing_mm=(1.1, 1.3, 1.2))
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["network_def"]["in_channels"] = 2
    config["preprocessing"]["transforms"][0]["channels"] = True
    path.write_text(json.dumps(config))
    torch.manual_seed(0)
    arguments = {k: v for k, v in config["network_def"].items() if k != "_target_"}
    torch.save(UNet(**arguments).state_dict(), bundle / "models" / "model.pt")
    images = write_heads(tmp_path / "images", channels=2)
    want = None
    for way, options in {
        "plain": {},
        "probabilities": {"formats": ("nifti", "probabilities")},
        "uncertainty": {"uncertainty": True},
    }.items():
        out = tmp_path / way
        asked = PredictOptions(str(bundle), str(out), trust_bundle=True, **options)
        done = run_local(find_cases([images]), asked)
        assert [r.status for r in done] == ["done"] * 5, done[0].reason
        found = masks_of(out, images)
        want = want or found
        require_equal(found, want, way)
    assert want is not None
    assert all(mask.any() for mask in want.values())


def test_foreground_never_lies_outside_of_what_nnunet_cropped(heads, tmp_path):
    bundle = BUNDLES["nnU-Net plain"](tmp_path, None)
    session = Session(PredictOptions(str(bundle), str(tmp_path), trust_bundle=True))
    assert isinstance(session.pipeline, PredictionPipeline)
    network = session.predictor

    class Foreground(torch.nn.Module):
        def forward(self, window):
            return network(window) + torch.tensor([0.0, 99.0, 0.0]).reshape(1, 3, 1, 1, 1)

    data = session.preprocessing({"image": str(heads / "flipped.nii.gz")})
    mask = session.pipeline.predict(data["image"], Foreground()).labels
    inside = _array(heads / "flipped.nii.gz") != 0
    assert mask[5:, :-6].all()
    assert not mask[:5].any()
    assert not mask[:, -6:].any()
    assert inside[5:, :-6].mean() > 0.99
