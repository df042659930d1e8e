import base64
import io

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from PIL import Image

from medvol.transforms import AugmentationPolicy, AugmentationValidator, RandSpatiald
from medvol.transforms.preview import _views, draw_html, draw_png, preview


def case(shape, affine):
    """A bright block at the patient's right, front and top (2D: left and top of the image)."""
    image = torch.zeros(1, *shape)
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    for axis in range(len(shape)):
        image += torch.linspace(0, 0.2, shape[axis]).reshape(-1, *[1] * (len(shape) - axis - 1))
    label[(0, *(slice(2, 6) for _ in shape))] = 1
    image[label > 0] = 3
    return {"image": MetaTensor(image, affine), "label": MetaTensor(label, affine)}


VALIDATOR = AugmentationValidator(AugmentationPolicy("CT", "chest"), min_signal=0.3)
MOVE = RandSpatiald(["image", "label"], body_part="chest", elastic=False)


@pytest.mark.parametrize(
    ("code", "corner"),
    [
        ("RAS", lambda v: v[-1, -1, -1]),
        ("LPS", lambda v: v[0, 0, -1]),
        ("SAR", lambda v: v[-1, -1, -1]),
    ],
)
def test_the_patients_right_front_and_top_are_shown_left_and_up(code, corner):
    directions = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(code):
        affine[directions[letter][0], axis] = directions[letter][1]
    volume = np.random.default_rng(0).random((5, 6, 7))
    image = MetaTensor(torch.from_numpy(volume)[None], affine)
    ends = [4 if "RAS".count(c) else 0 for c in code]
    ends = [size - 1 if end else 0 for size, end in zip(volume.shape, ends, strict=True)]
    for view in _views(image):
        assert view.cut(volume, ends)[0, 0] == corner(volume), view.name


@pytest.mark.parametrize(("shape", "rows"), [((24, 20, 16), 3), ((40, 30), 1)])
def test_the_image_has_a_column_per_sample_and_a_row_per_plane(shape, rows):
    data = case(shape, np.eye(4))
    drawn = preview(MOVE, data, VALIDATOR, samples=2, seed=5)
    assert len(drawn) == 3
    assert drawn[0].score is None
    assert torch.equal(drawn[0].image, data["image"])
    image = Image.open(io.BytesIO(draw_png(drawn, {1: "spleen"}, "title")))
    assert image.width == round(1.9 * 3 * 110)
    assert image.height == pytest.approx((1.9 * rows + 1.0) * 110, abs=2)
    colours = np.asarray(image.convert("RGB")).astype(int)
    outlined = (np.abs(colours - (157, 108, 162)).sum(-1) < 40).sum()
    assert outlined > 20


def test_preview_depends_on_the_seed_alone():
    data = case((24, 20, 16), np.eye(4))
    one, two = (preview(MOVE, data, VALIDATOR, samples=2, seed=1) for _ in "ab")
    assert all(torch.equal(a.image, b.image) for a, b in zip(one, two, strict=True))


def test_the_page_is_whole_and_escaped_and_names_a_mirrored_sample():
    data = case((24, 20, 16), np.eye(4))

    def mirror(item):
        return {key: value.flip(1) for key, value in item.items()}

    drawn = preview(mirror, data, VALIDATOR, samples=1)
    assert not drawn[1].score.passed
    page = draw_html(drawn, {1: "spleen"}, "<b>title</b>")
    assert "<b>title" not in page
    assert "left-right is mirrored" in page
    assert "http" not in page
    image = page.split("base64,")[1].split("'")[0]
    assert base64.b64decode(image)[:4] == b"\x89PNG"
