"""Two raters' organs, against surface-distance and SimpleITK under their conventions."""

import numpy as np
import pytest
import SimpleITK as sitk
import surface_distance

from medvol.core import Geometry
from medvol.io import read_scan
from medvol.metrics import dice, hausdorff, hausdorff_surfel, hd95, nsd_surfel

pytestmark = [
    pytest.mark.slow,
    # surface-distance 0.1 still uses old names of scipy's.
    pytest.mark.filterwarnings("ignore:Please import `:DeprecationWarning"),
]


def test_raters_agree_with_the_peers_to_rounding(shared_data):
    files = sorted((shared_data / "raters").glob("*/oncologist/*.nrrd"))
    assert len(files) == 12
    for first in files:
        second = first.parents[1] / "radiographer" / first.name
        ref, pred, spacing = cropped(read_scan(first), read_scan(second))
        peer = surface_distance.compute_surface_distances(ref, pred, spacing)
        where = f"{first.parents[1].name} {first.stem}"
        assert dice(pred, ref) == surface_distance.compute_dice_coefficient(ref, pred), where
        want = surface_distance.compute_surface_dice_at_tolerance(peer, 2.0)
        assert nsd_surfel(pred, ref, spacing, tau=2.0) == pytest.approx(want, abs=1e-7), where
        want = surface_distance.compute_robust_hausdorff(peer, 95)
        assert hausdorff_surfel(pred, ref, spacing) == pytest.approx(want), where
        classic, robust = by_simpleitk(pred, ref, spacing)
        assert hausdorff(pred, ref, spacing, percentile=100) == pytest.approx(classic), where
        assert hd95(pred, ref, spacing) == pytest.approx(robust, abs=1e-5), where


def cropped(first, second):
    """Both masks cut to their joint box with a margin, and the spacing."""
    assert np.allclose(first.affine, second.affine)
    masks = [scan.array[0] > 0 for scan in (first, second)]
    box = tuple(slice(max(0, k.min() - 3), k.max() + 4) for k in np.nonzero(masks[0] | masks[1]))
    spacing = Geometry(first.array.shape[1:], first.affine).spacing_mm
    return masks[0][box], masks[1][box], spacing


def by_simpleitk(pred, ref, spacing):
    """Hausdorff distance by its filter, and the robust one from its contours and distance maps."""
    images = []
    for mask in (pred, ref):
        image = sitk.GetImageFromArray(mask.T.astype(np.uint8))
        image.SetSpacing(spacing)
        images.append(image)
    classic = sitk.HausdorffDistanceImageFilter()
    classic.Execute(*images)
    edges = [sitk.LabelContour(image, fullyConnected=False) for image in images]
    far = [
        np.abs(sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(
            edge, squaredDistance=False, useImageSpacing=True)))
        for edge in edges
    ]  # fmt: skip
    on = [sitk.GetArrayFromImage(edge) > 0 for edge in edges]
    robust = max(np.percentile(far[0][on[1]], 95), np.percentile(far[1][on[0]], 95))
    return classic.GetHausdorffDistance(), robust
