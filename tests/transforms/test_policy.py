import monai.transforms as mt
import pytest

from medvol.core import PolicyError, array_axis, check_mirror, check_rotation
from medvol.transforms import AugmentationPolicy, RandSpatiald, policy_violations

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
