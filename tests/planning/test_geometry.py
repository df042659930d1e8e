import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.core import ConfigError
from medvol.networks import size_factors
from medvol.planning import CasePrint, Fingerprint, Request
from medvol.planning.designs import choose_design
from medvol.planning.geometry import choose_sampling, fit_patch


def prints(shape, spacing, voxels=20_000, cases=10):
    rows = [
        CasePrint(f"c{k}", tuple(shape), tuple(spacing), 1, {1: voxels}, 0.0, 0.0, True, ())
        for k in range(cases)
    ]
    return Fingerprint(tuple(rows), {1: "organ"})


shapes = st.tuples(*[st.integers(8, 300)] * 3)
spacings = st.tuples(*[st.sampled_from([0.5, 0.9, 1.0, 2.5, 5.0])] * 3)


@given(shape=shapes, spacing=spacings, most=st.integers(30_000, 2_000_000))
def test_a_patch_never_exceeds_the_case_nor_twice_what_is_affordable(shape, spacing, most):
    patch = fit_patch(prints(shape, spacing), spacing, most)
    assert all(1 <= p <= n for p, n in zip(patch, shape, strict=True))
    assert np.prod(patch) <= (2 * most if patch == shape else most)


@given(shape=shapes, spacing=spacings, network=st.sampled_from(["folded", "plain", "swin_unetr"]))
def test_a_design_takes_its_own_patch(shape, spacing, network):
    design = choose_design(Request(600, network=network), shape, spacing)
    if network == "plain":
        factors = size_factors([tuple(s) for s in design.values["strides"][0]])
    else:
        deep = 2 ** len(design.values["channels"][0]) if network == "folded" else 32
        factors = (deep,) * 3
    assert all(n % f == 0 for n, f in zip(design.roi_size, factors, strict=True))
    assert np.prod(design.roi_size) > np.prod(factors)


def test_cases_too_small_to_be_halved_get_the_folded_network_or_a_refusal():
    tiny = (5, 6, 4), (1.0, 1.0, 1.0)
    assert choose_design(Request(600, device="cuda"), *tiny).part == "folded"
    with pytest.raises(ConfigError, match=r"5 x 6 x 4 voxels .* --network folded"):
        choose_design(Request(600, network="residual"), *tiny)


def test_thick_slices_keep_their_axis_at_the_finer_end_and_out_of_the_first_kernels():
    thick = [prints((256, 256, 30), (0.8, 0.8, z)).cases[0] for z in (4.0, 5.0, 6.0)]
    found = choose_sampling(Fingerprint(tuple(thick), {1: "organ"}), 1e6, may_coarsen=False)
    assert found.spacing_mm == (0.8, 0.8, pytest.approx(4.2))
    design = choose_design(Request(3600, network="residual"), found.patch, found.spacing_mm)
    assert design.values["kernels"][0][0] == [3, 3, 1]


def test_a_short_run_looks_closely_where_structures_are_sparse_and_a_long_one_at_all():
    found = {
        voxels: [choose_sampling(prints((48, 48, 48), (4.0,) * 3, voxels), 120_000, is_short)
                 for is_short in (True, False)]
        for voxels in (400, 4000)
    }  # fmt: skip
    assert found[400][0].patch == (33, 33, 33)
    assert found[400][0].spacing_mm == (4.0, 4.0, 4.0)
    assert "small structures" in found[400][0].why_patch
    for whole in (found[400][1], *found[4000]):
        assert whole.patch == (48, 48, 48)


def test_a_short_budget_trades_detail_for_context_but_never_the_smallest_structure():
    large = prints((512, 512, 300), (0.8, 0.8, 1.5), voxels=500_000)
    coarse = choose_sampling(large, 150_000, may_coarsen=True)
    assert coarse.cover >= 0.5
    small = prints((512, 512, 300), (0.8, 0.8, 1.5), voxels=2_000)
    kept = choose_sampling(small, 150_000, may_coarsen=True)
    assert small.volume_mm(1) / np.prod(kept.spacing_mm) >= 500
    assert kept.cover < coarse.cover
