import monai.transforms as mt
import numpy as np
import pytest
from monai.transforms import (
    Lambdad,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandShiftIntensityd,
    Transposed,
)
from scipy.ndimage import gaussian_filter

from medvol.core import PolicyError, array_axis, check_mirror, check_rotation
from medvol.transforms import AugmentationPolicy, RandSpatiald, policy_violations
from medvol.transforms.strength import _deformation_gradient

RAS = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}


def step(target, **arguments):
    return {"_target_": target, "keys": "image", **arguments}


# transform, body part, and the word that its error must contain; None where it is legal
CASES = [
    (step("RandFlipd", spatial_axis=0), "chest", "left-right"),
    (step("RandFlipd", spatial_axis=1), "chest", "anterior-posterior"),
    (step("RandFlipd", spatial_axis=[2]), "hippocampus", "superior-inferior"),
    (step("RandFlipd", spatial_axis=0), "hippocampus", None),
    (step("RandFlipd", spatial_axis=-3), "chest", "left-right"),
    (step("RandFlipd"), "hippocampus", "anterior-posterior"),
    (step("Flipd", spatial_axis=0), "chest", "left-right"),
    (step("Flipd", spatial_axis=0), "hippocampus", None),
    (step("Affined", scale_params=[-1, 1, 1]), "chest", "left-right"),
    (step("Affined", scale_params=[2, 1, 1]), "chest", None),
    (step("Rotated", angle=0.6), "brain", "34 degrees"),
    (step("Rotate90d"), "brain", "90 degrees"),
    (step("monai.transforms.RandFlipDict", spatial_axis=0), "chest", "left-right"),
    (step("RandAxisFlipd"), "brain", "superior-inferior"),
    (step("RandAxisFlipd"), "tissue", None),
    (step("RandRotate90d"), "brain", "90 degrees"),
    (step("RandRotate90d"), "skin", None),
    (step("RandRotated", range_x=0.6), "brain", "34 degrees"),
    (step("RandRotated", range_z=[-0.2, 0.2]), "chest", None),
    (step("RandAffined", rotate_range=[[-0.1, 0.9], 0.1]), "brain", "52 degrees"),
    (step("RandAffined", rotate_range="$np.pi / 3"), "brain", "60 degrees"),
    (step("RandAffined", rotate_range="@angle"), "brain", "cannot be judged"),
    (step("RandAffined", scale_range=[[-2.5, 0.1]]), "brain", "can mirror"),
    (step("Rand3DElasticd", rotate_range=0.4), "chest", "23 degrees"),
    (step("Rand2DElasticd", rotate_range=0.2), "chest", None),
    (step("medvol.transforms.RandSpatiald", flip_axes=["left-right"]), "chest", "dextrocardia"),
    (step("medvol.transforms.RandSpatiald", rotate_range=0.3), "chest", "17 degrees"),
    (step("medvol.transforms.RandSpatiald", rotate_range=0.3), "brain", None),
    (step("RandCoarseDropoutd"), "tissue", "erases"),
    (step("TorchVisiond", name="RandomHorizontalFlip"), "chest", "unknown"),
    (step("TorchVisiond", name="ColorJitter", hue=0.1), "skin", "hue"),
    (step("TorchVisiond", name="ColorJitter", brightness=0.5), "chest", "brightness"),
    (step("TorchVisiond", name="ColorJitter", brightness=0.2), "chest", None),
    (step("RandScaleIntensityd", factors=0.5), "chest", "50%"),
    (step("RandScaleIntensityd", factors=0.25), "chest", None),
    (step("RandIntensityd", effects={"contrast": [1, 0.5, 1]}), "chest", "contrast"),
    (step("medvol.inferers.SlidingWindowInferer", tta=["left-right"]), "chest", "left-right"),
    (step("medvol.inferers.SlidingWindowInferer", tta=[0, 1]), "brain", "anterior-posterior"),
    (step("medvol.inferers.SlidingWindowInferer", tta=True), "chest", None),
    (step("RandGaussianNoised"), "chest", None),
    (step("RandZoomd", min_zoom=0.9), "chest", None),
    (step("RandFlipd", _disabled_=True), "chest", None),
]  # fmt: skip


@pytest.mark.parametrize(("transform", "body_part", "word"), CASES)
def test_config_is_rejected_exactly_where_the_anatomy_rejects_it(transform, body_part, word):
    found = policy_violations([RAS, transform], "XR", body_part)
    if word is None:
        assert found == []
    else:
        assert found
        assert any(word in line for line in found)
        assert all(line.startswith(transform["_target_"].rsplit(".", 1)[-1]) for line in found)


def test_the_transform_is_named_with_its_place_in_the_config():
    config = {
        "train": {"preprocessing": {"_target_": "Compose", "transforms": [RAS, step("RandFlipd")]}}
    }
    found = policy_violations(config, "XR", "chest")
    assert found[0].startswith("RandFlipd (train#preprocessing#transforms#1): ")


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "SRA", "AIL"])
def test_the_rejected_array_axis_follows_the_orientation(axcodes):
    left_right = next(i for i, code in enumerate(axcodes) if code in "LR")
    for axis in range(3):
        config = [step("Orientationd", axcodes=axcodes), step("RandFlipd", spatial_axis=axis)]
        rejected = policy_violations(config, "MR", "brain")
        assert bool(rejected) == (axis != left_right)


def test_without_orientation_every_array_axis_may_be_the_wrong_one():
    assert (
        "Orientationd" in policy_violations([step("RandFlipd", spatial_axis=0)], "MR", "brain")[0]
    )


def test_lateral_labels_reject_what_the_body_allows_unless_they_are_swapped():
    labels = {1: "left hippocampus", 2: "right hippocampus"}
    flip = step("medvol.transforms.RandSpatiald", flip_axes=["left-right"])
    assert "names a side" in policy_violations([flip], "MR", "brain", labels)[0]
    swapped = {**flip, "swap_labels": [[1, 2]]}
    assert policy_violations([swapped], "MR", "brain", labels) == []
    assert policy_violations([swapped], "XR", "chest", labels)


def test_constructed_transforms_are_judged_like_their_configs():
    made = mt.Compose([
        mt.Orientationd("image", axcodes="RAS", labels=None),
        mt.RandFlipd("image", spatial_axis=0),
        mt.OneOf([mt.RandAffined("image", rotate_range=(0.5, 0, 0)), mt.RandAxisFlipd("image")]),
        mt.RandGaussianNoised("image"),
        RandSpatiald("image", body_part="brain", flip_axes=["left-right"]),
    ])  # fmt: skip
    found = AugmentationPolicy("XR", "chest").violations(made)
    assert [line.split(" ")[0] for line in found] == [
        "RandFlipd", "RandAffined", "RandAxisFlipd", "RandAxisFlipd", "RandAxisFlipd",
        "RandSpatiald", "RandSpatiald",
    ]  # fmt: skip


STORAGE = {
    "RAS": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "LPS": [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],
    "PIR": [[0, 0, 1], [-1, 0, 0], [0, -1, 0]],
    "oblique": [[0.985, -0.174, 0], [0.174, 0.985, 0], [0, 0, 1]],
}


@pytest.mark.parametrize("name", STORAGE)
def test_a_policy_finds_the_mirror_axis_through_the_affine(name):
    affine = [[*(2.5 * v for v in row), 7.0] for row in STORAGE[name]] + [[0, 0, 0, 1]]
    expected = (2,) if name == "PIR" else (0,)
    assert AugmentationPolicy("MR", "brain").mirrored_axes(affine, 3) == expected
    assert AugmentationPolicy("CT", "chest").mirrored_axes(affine, 3) == ()
    assert AugmentationPolicy("MR", "brain", ["left ear"]).mirrored_axes(affine, 3) == ()


def test_an_image_tilted_too_far_has_no_mirror_axis():
    diagonal = [[0.7, -0.7, 0, 0], [0.7, 0.7, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert AugmentationPolicy("MR", "brain").mirrored_axes(diagonal, 3) == ()
    assert array_axis(diagonal, 3, "superior-inferior") == 2


def test_random_spatial_asks_the_same_policy_when_it_is_made():
    with pytest.raises(PolicyError, match="dextrocardia"):
        RandSpatiald("image", flip_axes=["left-right"], body_part="chest")
    with pytest.raises(PolicyError, match="names a side"):
        RandSpatiald("image", flip_axes=["left-right"], body_part="brain", labels={1: "left ear"})
    with pytest.raises(PolicyError, match="17 degrees"):
        RandSpatiald("image", rotate_range=0.3, body_part="chest")
    assert RandSpatiald("image", body_part="chest").ranges.rotate == pytest.approx(0.2618, abs=1e-4)


def test_core_checks_speak_for_themselves():
    check_mirror("brain", "left-right", ["background", "left ear", "right ear"], [(1, 2)])
    with pytest.raises(PolicyError, match="left ear"):
        check_mirror("brain", "left-right", ["background", "left ear", "right ear"], [(2, 3)])
    assert check_rotation(None, None) == 0.3
    assert check_rotation(None, [3.0, 0.1]) == [3.0, 0.1]


def test_a_swap_of_what_are_not_two_sides_of_one_structure_is_rejected():
    labels = {1: "left_kidney", 2: "right_kidney", 3: "left_lung", 4: "right_lung"}
    check_mirror("brain", "left-right", labels, [(1, 2), (3, 4)])
    for pairs in ([(1, 4), (2, 3)], [(1, 3), (2, 4)]):
        with pytest.raises(PolicyError, match="not the two sides"):
            check_mirror("brain", "left-right", labels, pairs)


LIVER = {1: "liver"}
STRONG = [
    {"_target_": "Lambdad", "keys": ["image", "label"], "func": "$lambda x: x.flip(1)"},
    {"_target_": "Lambdad", "keys": ["image", "label"], "func": "$numpy.fliplr"},
    {"_target_": "RandLambdad", "keys": "image", "func": "$lambda x: x + 1"},
    {"_target_": "Transposed", "keys": ["image", "label"], "indices": [0, 2, 1, 3]},
    {"_target_": "RandAdjustContrastd", "keys": "image", "gamma": [0.1, 8]},
    {"_target_": "RandAdjustContrastd", "keys": "image"},  # MONAI's own default is 0.5 to 4.5
    {"_target_": "RandShiftIntensityd", "keys": "image", "offsets": 5},
    {"_target_": "RandShiftIntensityd", "keys": "image", "offsets": [-5, 0]},
    {"_target_": "RandGaussianNoised", "keys": "image", "std": 5},
    {"_target_": "Rand3DElasticd", "keys": "image", "sigma_range": [5, 8],
     "magnitude_range": [100, 2000]},
    {"_target_": "Rand2DElasticd", "keys": "image", "spacing": [20, 20],
     "magnitude_range": [1, 50]},
]  # fmt: skip
MILD = [
    {"_target_": "Lambdad", "keys": "label", "func": "$lambda x: x > 0"},
    {"_target_": "Transposed", "keys": ["image", "label"], "indices": [0, 1, 2, 3]},
    {"_target_": "RandAdjustContrastd", "keys": "image", "gamma": [0.7, 1.5]},
    {"_target_": "RandShiftIntensityd", "keys": "image", "offsets": 0.1},
    {"_target_": "RandGaussianNoised", "keys": "image", "std": 0.1},
    {"_target_": "Rand3DElasticd", "keys": "image", "sigma_range": [5, 8],
     "magnitude_range": [100, 200]},
    {"_target_": "Rand2DElasticd", "keys": "image", "spacing": [20, 30], "magnitude_range": [1, 2]},
]  # fmt: skip


@pytest.mark.parametrize("transform", STRONG, ids=lambda t: t["_target_"])
def test_what_no_scanner_makes_or_nobody_can_judge_is_rejected(transform):
    assert policy_violations([transform], "CT", "abdomen", LIVER)


@pytest.mark.parametrize("transform", MILD, ids=lambda t: t["_target_"])
def test_usual_strengths_pass(transform):
    assert policy_violations([transform], "CT", "abdomen", LIVER) == []


def test_constructed_transforms_are_judged_by_the_same_strengths():
    strong = [
        Lambdad(["image", "label"], func=lambda x: x.flip(1)),
        Transposed(["image", "label"], indices=(0, 2, 1, 3)),
        RandAdjustContrastd("image", gamma=(0.1, 8)),
        RandShiftIntensityd("image", offsets=5),
        Rand3DElasticd("image", sigma_range=(5, 8), magnitude_range=(100, 2000)),
    ]
    for transform in strong:
        assert policy_violations([transform], "CT", "abdomen", LIVER), transform
    mild = [RandAdjustContrastd("image", gamma=(0.7, 1.5)), RandShiftIntensityd("image", 0.1)]
    assert policy_violations(mild, "CT", "abdomen", LIVER) == []


@pytest.mark.parametrize("labels", [["lungleft", "lungright"], ["OD", "OS"], ["LeftKidney"]])
def test_sides_in_any_spelling_reject_the_left_right_mirror(labels):
    flip = [{"_target_": "RandSpatiald", "keys": "image", "flip_axes": ["left-right"]}]
    assert policy_violations(flip, "MR", "brain", labels)
    assert policy_violations(flip, "MR", "brain", ["os coxae", "cleft", "bright spot"]) == []


def test_a_folding_field_is_recognised_by_its_formula():
    # The claim behind the limit: the smoothed field's derivative has the stated spread.
    rng, sigma = np.random.default_rng(0), 3.0
    field = gaussian_filter(rng.uniform(-1, 1, (64, 64, 64)), sigma, mode="wrap")
    stated = _deformation_gradient("Rand3DElastic", {"sigma_range": 3, "magnitude_range": 1})
    assert np.diff(field, axis=0).std() == pytest.approx(stated, rel=0.15)
