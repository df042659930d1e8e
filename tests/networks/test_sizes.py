import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.nets import DynUNet

from medvol.core import ConfigError
from medvol.networks import legal_size, pooling_plan, size_factors

sizes = st.lists(st.integers(8, 200), min_size=3, max_size=3)
spacings = st.lists(st.floats(0.4, 6), min_size=3, max_size=3)


@pytest.mark.parametrize(
    ("size", "spacing", "halvings"),
    [
        ((40, 56, 40), (1, 1, 1), (3, 3, 3)),
        ((64, 192, 160), (1.6, 0.79, 0.79), (4, 5, 5)),
        ((20, 320, 256), (3.6, 0.62, 0.62), (2, 6, 6)),
    ],
)
def test_plan_is_nnunets(size, spacing, halvings):
    # Published patches and poolings per axis of MSD tasks 4, 9 and 5 (nnU-Net, supplement).
    plan = pooling_plan(size, spacing, max_levels=7)
    assert plan.factors == tuple(2**n for n in halvings)
    assert plan.size == legal_size(size, plan.factors)


@given(size=sizes, spacing=spacings)
def test_plan_never_goes_below_the_smallest_edge_and_rounds_up_only(size, spacing):
    plan = pooling_plan(size, spacing)
    assert len(plan.strides) == len(plan.kernels) <= 6
    assert plan.factors == size_factors(plan.strides)
    for wanted, got, bottom, factor in zip(size, plan.size, plan.bottom, plan.factors, strict=True):
        assert wanted <= got < wanted + factor
        assert got == bottom * factor
        assert bottom >= 4 or factor == 1


def test_coarse_axis_is_neither_halved_nor_mixed_before_the_others_catch_up():
    plan = pooling_plan((32, 128, 128), (5, 1, 1))
    assert plan.strides[1] == plan.strides[2] == (1, 2, 2)
    assert plan.kernels[0] == plan.kernels[1] == (1, 3, 3)
    assert plan.kernels[3] == (3, 3, 3)


@given(size=st.lists(st.integers(1, 300), min_size=1, max_size=3), factor=st.integers(1, 32))
def test_legal_size_is_the_smallest_multiple_not_below(size, factor):
    for n, got in zip(size, legal_size(size, [factor] * len(size)), strict=True):
        assert got % factor == 0
        assert n <= got < n + factor


def test_planned_network_returns_its_inputs_size():
    plan = pooling_plan((15, 33, 20), (3, 1, 1.5))
    network = DynUNet(3, 1, 2, plan.kernels, plan.strides, plan.strides[1:],
                      filters=[4] * len(plan.strides))  # fmt: skip
    x = torch.randn(2, 1, *plan.size)
    assert network(x).shape == (2, 2, *plan.size)


@pytest.mark.parametrize(("size", "spacing"), [((4, 4), (1,)), ((0, 4), (1, 1)), ((4,), (-1,))])
def test_nonsense_is_rejected(size, spacing):
    with pytest.raises(ConfigError, match="do not go together"):
        pooling_plan(size, spacing)
