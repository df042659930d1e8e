"""Clean-up of label maps, against phantoms whose parts are counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.transforms.post.dictionary import KeepLargestConnectedComponentd

from medvol.core.errors import ConfigError, InputError
from medvol.transforms import CleanLabelMapd


def scene() -> np.ndarray:
    """Label 1: a hollow cube of 5^3 and one speck; label 2: two bars of 3 and 2 voxels."""
    out = np.zeros((12, 12, 12), np.uint8)
    out[1:6, 1:6, 1:6] = 1
    out[3, 3, 3] = 0
    out[9, 9, 9] = 1
    out[8, 1:4, 1] = 2
    out[8, 8:10, 1] = 2
    return out


def meta(values: np.ndarray, spacing_mm=(1.0, 1.0, 1.0)) -> MetaTensor:
    return MetaTensor(torch.from_numpy(values[None].copy()), affine=torch.diag(
        torch.tensor([*spacing_mm, 1.0], dtype=torch.float64)))  # fmt: skip


def clean(values, **arguments) -> np.ndarray:
    return np.asarray(CleanLabelMapd("pred", **arguments)({"pred": values})["pred"])[0]


def test_only_the_named_labels_keep_one_component():
    out = clean(meta(scene()), largest=[1])
    assert (out == 1).sum() == 124
    assert (out == 2).sum() == 5


def test_holes_are_filled_and_only_with_what_was_background():
    values = scene()
    values[3, 3, 3] = 2  # an inclusion of another label is no hole
    values[2, 2, 2] = 0
    out = clean(meta(values), fill_holes=[1])
    assert out[3, 3, 3] == 2
    assert out[2, 2, 2] == 1


def test_components_under_the_volume_go_and_the_spacing_counts():
    assert (clean(meta(scene()), min_mm3={2: 3.0}) == 2).sum() == 3
    assert (clean(meta(scene(), (0.5, 2.0, 3.0)), min_mm3={2: 6.0}) == 2).sum() == 5
    assert (clean(meta(scene(), (0.5, 2.0, 3.0)), min_mm3=9.1) == 2).sum() == 0


def test_nothing_asked_changes_nothing_and_the_grid_stays():
    source = meta(scene(), (1.0, 2.0, 3.0))
    out = CleanLabelMapd("pred", largest=[1])({"pred": source})["pred"]
    np.testing.assert_array_equal(out.affine, source.affine)
    np.testing.assert_array_equal(clean(source), scene())
    empty = np.zeros((3, 3, 1), np.uint8)
    np.testing.assert_array_equal(clean(meta(empty), largest=[1], fill_holes=[1]), empty)


@given(seed=st.integers(0, 10_000))
def test_the_largest_component_is_monais(seed):
    values = (np.random.default_rng(seed).random((7, 6, 5)) > 0.72).astype(np.uint8)
    want = KeepLargestConnectedComponentd("pred", connectivity=3)({"pred": meta(values)})["pred"]
    got = clean(meta(values), largest=[1])
    assert got.sum() == int(want.sum())  # equal sizes leave the choice open


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="below 0"):
        CleanLabelMapd("pred", min_mm3={1: -1})
    with pytest.raises(InputError, match="affine"):
        clean(torch.from_numpy(scene()[None]), min_mm3=1.0)
