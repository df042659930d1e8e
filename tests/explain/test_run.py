import json

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers import SimpleInferer
from monai.networks.nets import DenseNet121, resnet10
from monai.transforms import Compose, LoadImaged, Orientationd, ResizeWithPadOrCropd

from medvol.core import ConfigError, GridMismatchError, MissingInputError
from medvol.explain import (
    CAMInferer,
    Classifier,
    ExplainOptions,
    GradCAM,
    describe,
    explain_files,
    last_spatial_layer,
    make_explainer,
    write_overlay,
)
from medvol.io import read_image, write_nifti

AFFINE = np.array([[0, -1.5, 0.1, 10], [-2, 0, 0, 20], [0, 0.1, 1, -5], [0, 0, 0, 1]])
PREPROCESSING = Compose(
    [
        LoadImaged("image", reader="medvol.io.MedvolReader", ensure_channel_first=True),
        Orientationd("image", axcodes="RAS", labels=None),
        ResizeWithPadOrCropd("image", (24, 24, 24)),
    ]
)


@pytest.fixture
def volume(tmp_path):
    voxels = np.random.default_rng(0).normal(0, 1, (16, 20, 24)).astype(np.float32)
    write_nifti(tmp_path / "case.nii.gz", voxels, AFFINE)
    return tmp_path / "case.nii.gz"


def classifier(tiny):
    return Classifier(tiny(3).eval(), PREPROCESSING, {0: "a", 1: "b", 2: "c"}, "MR")


def test_map_raw_map_overlay_and_numbers_lie_on_the_images_grid(tmp_path, volume, tiny):
    options = ExplainOptions(layer="act", class_index=1)
    (row,) = explain_files(classifier(tiny), [volume], tmp_path / "out", options)
    folder = tmp_path / "out" / "case"
    assert json.loads((folder / "explanation.json").read_text()) == row
    cam = read_image(folder / "cam.nii.gz")
    assert cam.shape == (1, 16, 20, 24)
    np.testing.assert_allclose(cam.affine, AFFINE, atol=1e-5)
    assert float(cam.min()) >= 0
    assert float(cam.max()) <= 1
    peak = np.unravel_index(int(cam[0].argmax()), (16, 20, 24))
    assert row["peak_voxel"] == [int(i) for i in peak]
    np.testing.assert_allclose(row["peak_mm"], (AFFINE @ [*peak, 1])[:3], atol=1e-3)
    assert row["class"] == "b"
    assert row["layers"] == {"act": [6, 6, 6]}
    assert (folder / "overlay.png").stat().st_size > 0
    assert "mask" not in row


def test_a_dot_in_a_name_is_kept(tmp_path, volume, tiny):
    for name in ("case.01.nii.gz", "case.02.NII.GZ"):
        (tmp_path / name).write_bytes(volume.read_bytes())
    paths = [tmp_path / "case.02.NII.GZ", tmp_path / "case.01.nii.gz"]
    rows = explain_files(classifier(tiny), paths, tmp_path / "out", ExplainOptions("occlusion"))
    assert [row["case"] for row in rows] == ["case.02", "case.01"]


def test_raw_map_covers_the_world_that_the_network_saw(tmp_path, volume, tiny):
    explain_files(
        classifier(tiny), [volume], tmp_path / "out", ExplainOptions(layer="act", class_index=1)
    )
    raw = read_image(tmp_path / "out" / "case" / "raw_act.nii.gz")
    seen = PREPROCESSING({"image": str(volume)})["image"]
    middle = np.append((np.array(seen.shape[1:]) - 1) / 2, 1)
    coarse = np.append((np.array(raw.shape[1:]) - 1) / 2, 1)
    np.testing.assert_allclose(
        np.asarray(raw.affine) @ coarse, np.asarray(seen.affine) @ middle, atol=1e-4
    )
    x = seen[None].as_tensor()
    wanted = GradCAM(classifier(tiny).network, "act").raw(x, 1)[0, 0]
    np.testing.assert_allclose(raw[0].as_tensor(), wanted, rtol=1e-5)


def test_checks_and_masks_add_their_numbers(tmp_path, volume, tiny):
    (tmp_path / "masks").mkdir()
    mask = np.zeros((16, 20, 24), np.uint8)
    mask[4:8, 4:8, 4:8] = 1
    write_nifti(tmp_path / "masks" / "case.nii.gz", mask, AFFINE)
    options = ExplainOptions(class_index=2, masks=tmp_path / "masks", checks=True)
    (row,) = explain_files(classifier(tiny), [volume], tmp_path / "out", options)
    assert set(row["mask"]) == {"points_into", "energy_inside", "energy_lift"}
    assert 0 <= row["mask"]["energy_inside"] <= 1
    assert set(row["deletion"]) == {"area", "random"}
    assert row["randomisation"]["is_passed"] in (True, False, None)


def test_masks_that_do_not_fit_are_rejected_and_not_left_out(tmp_path, volume, tiny):
    masks = tmp_path / "masks"
    with pytest.raises(MissingInputError, match="holds no mask named like an image"):
        explain_files(classifier(tiny), [volume], tmp_path / "out", ExplainOptions(masks=masks))
    masks.mkdir()
    write_nifti(masks / "case.nii.gz", np.ones((4, 5, 6), np.uint8), AFFINE)
    with pytest.raises(GridMismatchError, match=r"case\.nii\.gz: has shape \(4, 5, 6\)"):
        explain_files(
            classifier(tiny), [volume], tmp_path / "out", ExplainOptions(layer="act", masks=masks)
        )


def test_two_files_of_one_name_do_not_overwrite_each_other(tmp_path, volume, tiny):
    other = tmp_path / "b" / "case.nii.gz"
    other.parent.mkdir()
    other.write_bytes(volume.read_bytes())
    rows = explain_files(
        classifier(tiny), [volume, other], tmp_path / "out", ExplainOptions(layer="act")
    )
    assert [row["case"] for row in rows] == ["case", "case_2"]


def test_last_spatial_layer_is_the_one_before_the_pooling(tiny):
    assert last_spatial_layer(tiny(3), torch.ones(1, 1, 16, 16, 16)) == "act"
    dense = DenseNet121(2, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2))
    assert last_spatial_layer(dense, torch.ones(1, 1, 32, 32)) == "class_layers.relu"
    net = resnet10(spatial_dims=2, n_input_channels=1)
    assert last_spatial_layer(net, torch.ones(1, 1, 32, 32)).startswith("layer4.0")
    with pytest.raises(ConfigError, match="no layer keeps a grid"):
        last_spatial_layer(torch.nn.Sequential(torch.nn.Flatten()), torch.ones(1, 1, 4, 4))


def test_inferer_returns_the_map_in_place_of_the_scores(tiny, batch):
    network, x = tiny(3).eval(), MetaTensor(batch(3), affine=torch.eye(4) * 2)
    inferer = CAMInferer("gradcam", "act", class_index=1)
    found = inferer(x, network)
    assert torch.equal(found, GradCAM(network, "act")(x, 1))
    assert torch.equal(inferer.raw["act"], GradCAM(network, "act").raw(x, 1))
    scores = SimpleInferer()(x.as_tensor(), network).softmax(1)
    torch.testing.assert_close(inferer.probabilities, scores.detach())


def test_unknown_methods_and_classes_are_rejected(tiny):
    with pytest.raises(ConfigError, match="'magic' is unknown; known: gradcam"):
        make_explainer(tiny(2), "magic")
    with pytest.raises(ConfigError, match="class 'z' is unknown; known: a, b, c"):
        classifier(tiny).number_of("z")
    assert classifier(tiny).number_of("c") == classifier(tiny).number_of("2") == 2


def test_description_of_an_empty_map_states_so():
    assert describe(np.zeros((4, 4)), np.ones((4, 4)), np.eye(4))["is_empty"]


def test_energy_outside_the_body_is_what_lies_in_air():
    image = np.full((20, 20, 20), -1000.0)
    image[5:15, 5:15, 5:15] = 40
    cam = np.zeros(image.shape)
    cam[10, 10, 10], cam[1, 1, 1] = 1, 0.25
    assert describe(cam, image, np.eye(4), -500)["energy_outside_body"] == 0.2


def test_overlay_shows_the_image_where_the_map_is_zero(tmp_path):
    from PIL import Image

    image = np.linspace(0, 1, 200).reshape(20, 10)
    cam = np.zeros((20, 10))
    cam[15, 5] = 1
    write_overlay(image, cam, tmp_path / "o.png")
    pixels = np.asarray(Image.open(tmp_path / "o.png"))
    assert pixels.shape == (10, 24, 3)
    shown = pixels[:, :20].transpose(1, 0, 2).astype(int)
    grey = cam == 0
    assert (shown[grey].max(1) == shown[grey].min(1)).all()
    assert shown[15, 5, 0] > image[15, 5] * 255
