import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medvol.core import ConfigError
from medvol.explain import layer_affine, upsample
from medvol.explain.grid import as_spatial, token_grid


def test_upsampling_keeps_the_centre_of_mass_in_world_space():
    # A blob inside the layer's grid: its world position must not move, whatever the two shapes.
    affine = np.array([[0.8, 0.3, 0, -5], [-0.2, 1.5, 0.1, 7], [0, 0, 3, 1], [0, 0, 0, 1]])
    size, layer_size = (40, 33, 24), (10, 11, 6)
    coarse = np.zeros(layer_size)
    coarse[6, 3, 2], coarse[6, 4, 2] = 2, 1
    fine = upsample(torch.tensor(coarse)[None, None], size)[0, 0].numpy()
    here = np.array([*ndimage.center_of_mass(fine), 1])
    there = np.array([*ndimage.center_of_mass(coarse), 1])
    np.testing.assert_allclose(affine @ here, layer_affine(affine, size, layer_size) @ there)


def test_layer_grid_covers_the_same_field_of_view():
    affine = np.array([[0, -2.0, 0, 1], [1, 0, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])
    size, layer_size = (16, 12, 8), (4, 4, 1)
    coarse = layer_affine(affine, size, layer_size)
    for corner in np.ndindex(2, 2, 2):
        outer = np.array(corner)
        fine_edge = np.append(outer * np.array(size) - 0.5, 1)
        coarse_edge = np.append(outer * np.array(layer_size) - 0.5, 1)
        np.testing.assert_allclose(affine @ fine_edge, coarse @ coarse_edge)


@given(grid=st.lists(st.integers(2, 6), min_size=2, max_size=3), edge=st.integers(2, 9),
       extra=st.integers(0, 1))  # fmt: skip
def test_token_grid_is_found_from_the_number_of_tokens(grid, edge, extra):
    tokens = int(np.prod(grid)) + extra
    found, lead = token_grid(tokens, [g * edge for g in grid])
    assert (found, lead) == (tuple(grid), extra)


def test_tokens_lie_row_by_row_behind_the_class_token():
    tokens = torch.arange(13.0).view(1, 13, 1)
    assert torch.equal(as_spatial(tokens, (12, 16))[0, 0], torch.arange(1.0, 13).view(3, 4))


def test_tokens_that_form_no_grid_are_rejected():
    with pytest.raises(ConfigError, match="not a grid"):
        token_grid(7, (32, 32))
