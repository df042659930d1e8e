"""Figures of augmented samples beside the original, each with its scores."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from medvol.core import LPS_TO_RAS, Geometry, find_label
from medvol.transforms.validator import AugmentationScore, AugmentationValidator

_PLANES = {
    "axial": ("LR", "AP", "SI"),
    "coronal": ("LR", "SI", "AP"),
    "sagittal": ("AP", "SI", "LR"),
}
#: Radiological display: the patient's right, front and top lie left or up on the screen.
_FIRST = {"LR": "R", "AP": "A", "SI": "S"}


@dataclass(frozen=True)
class PreviewSample:
    """One augmented sample, or the original, whose score is then None.

    Attributes:
        image: Shape (C, X, Y[, Z]).
        label: Label map on the same grid, or None.
        score: What the sample kept of the original.
    """

    image: torch.Tensor
    label: torch.Tensor | None
    score: AugmentationScore | None = None


def preview(
    transform: Callable[[dict[str, Any]], Mapping[str, Any]],
    data: Mapping[str, Any],
    validator: AugmentationValidator,
    *,
    samples: int = 8,
    seed: int = 0,
) -> list[PreviewSample]:
    """Draw augmented samples of one prepared case; the original comes first.

    Args:
        transform: The random transforms, a dictionary transform that can be seeded.
        data: The case after preprocessing, with ``image`` and perhaps ``label``.
        validator: Scores every sample.
        samples: How many to draw.
        seed: The draws depend on nothing else.
    """
    found = [PreviewSample(data["image"], data.get("label"))]
    for number in range(samples):
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=seed + number)  # pyright: ignore[reportFunctionMemberAccess]
        drawn = transform(dict(data))
        score = validator.score(data["image"], drawn["image"])
        found.append(PreviewSample(drawn["image"], drawn.get("label"), score))
    return found


def draw_png(samples: Sequence[PreviewSample], labels: Mapping[int, str], title: str = "") -> bytes:
    """A grid as PNG: one column per sample, one row per plane, label outlines in colour.

    All samples are shown as the original lies in the patient (the right side on the left of the
    image), so that a mirrored sample looks mirrored.

    Args:
        samples: From ``preview``; the first is the original.
        labels: Label value to name, for the colours.
        title: Printed on top.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    views = _views(samples[0].image)
    low, high = np.percentile(_array(samples[0].image), (0.5, 99.5))
    figure = Figure((1.9 * len(samples), 1.9 * len(views) + 1.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    axes = np.atleast_2d(figure.subplots(len(views), len(samples), squeeze=False))
    for column, sample in enumerate(samples):
        centre = _centre(sample)
        for row, view in enumerate(views):
            axis = axes[row, column]
            axis.imshow(
                view.cut(_array(sample.image), centre), cmap="gray", vmin=low,
                vmax=max(high, low + 1e-6), aspect=view.aspect,
            )  # fmt: skip
            _outline(axis, sample, view, centre, labels)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(view.name, fontsize=8)
        caption, colour = _caption(sample)
        axes[0, column].set_title(caption, fontsize=7, color=colour)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def draw_html(samples: Sequence[PreviewSample], labels: Mapping[int, str], title: str = "") -> str:
    """The grid and a table of scores as one HTML page that needs no network."""
    encoded = base64.b64encode(draw_png(samples, labels, title)).decode("ascii")
    rows = "".join(
        f"<tr><td>{number}</td><td>{sample.score.signal:.2f}</td>"
        f"<td>{html.escape(_sides(sample.score) or 'none judged')}</td>"
        f"<td>{sample.score.folding:.2%}</td>"
        f"<td>{html.escape('; '.join(sample.score.faults) or 'passed')}</td></tr>"
        for number, sample in enumerate(samples)
        if sample.score is not None
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>body{{font:14px sans-serif;margin:2em}}"
        "td,th{padding:.2em .8em;text-align:left}img{max-width:100%}</style>"
        f"<h1>{html.escape(title)}</h1>"
        f"<img alt='augmented samples' src='data:image/png;base64,{encoded}'>"
        "<table><tr><th>sample</th><th>signal</th><th>sides</th><th>folding</th><th>verdict</th>"
        f"</tr>{rows}</table></html>"
    )


@dataclass(frozen=True)
class _View:
    """How to cut one plane out of an array and lay it on the screen."""

    name: str
    across: int
    down: int
    normal: int | None
    flips: tuple[bool, bool]
    aspect: float

    def cut(self, array: NDArray[Any], centre: Sequence[int]) -> NDArray[Any]:
        plane = array
        across, down = self.across, self.down
        if self.normal is not None:
            plane = np.take(array, centre[self.normal], axis=self.normal)
            across -= across > self.normal
            down -= down > self.normal
        plane = plane.T if across < down else plane
        rows, columns = (slice(None, None, -1 if flip else 1) for flip in self.flips[::-1])
        return plane[rows, columns]


def _views(image: torch.Tensor) -> list[_View]:
    affine = np.asarray(image.affine) if isinstance(image, MetaTensor) else LPS_TO_RAS
    if image.ndim == 3:
        spacing = np.linalg.norm(affine[:-1, :2], axis=0)
        return [_View("image", 0, 1, None, (False, False), spacing[1] / spacing[0])]
    shape = image.shape[1:]
    geometry = Geometry((shape[0], shape[1], shape[2]), affine)
    codes, spacing = geometry.axis_codes, geometry.spacing_mm
    views = []
    for name, directions in _PLANES.items():
        across, down, normal = (
            next(i for i, code in enumerate(codes) if code in pair) for pair in directions
        )
        # an index that grows towards what belongs left or up has to run backwards
        flips = tuple(
            codes[axis] == _FIRST[pair]
            for axis, pair in zip((across, down), directions, strict=False)
        )
        aspect = spacing[down] / spacing[across]
        views.append(_View(name, across, down, normal, (flips[0], flips[1]), aspect))
    return views


def _array(image: torch.Tensor) -> NDArray[np.floating]:
    return image.detach().cpu().numpy()[0].astype(np.float32)


def _centre(sample: PreviewSample) -> list[int]:
    """Where to cut: through the label's middle slice that holds most of it, else the middle."""
    shape = sample.image.shape[1:]
    if sample.label is None or not bool((sample.label > 0).any()):
        return [size // 2 for size in shape]
    mask = (sample.label[0] > 0).cpu().numpy()
    others = [tuple(b for b in range(mask.ndim) if b != a) for a in range(mask.ndim)]
    return [int(np.argmax(mask.sum(axis=other))) for other in others]


def _outline(
    axis: Any,
    sample: PreviewSample,
    view: _View,
    centre: Sequence[int],
    labels: Mapping[int, str],
) -> None:
    if sample.label is None:
        return
    plane = view.cut(_array(sample.label), centre)
    for value, name in labels.items():
        mask = plane == value
        if mask.any() and not mask.all():
            colour = tuple(c / 255 for c in find_label(name).colour)
            axis.contour(mask, levels=[0.5], colors=[colour], linewidths=0.9)


def _caption(sample: PreviewSample) -> tuple[str, str]:
    score = sample.score
    if score is None:
        return "original", "black"
    lines = [f"signal {score.signal:.2f}, folds {score.folding:.1%}", *_sides(score).split(", ")]
    return "\n".join(line for line in lines if line), "black" if score.passed else "red"


def _sides(score: AugmentationScore) -> str:
    known = [f"{name} {v:.2f}" for name, v in score.sides.items() if not math.isnan(v)]
    return ", ".join(known)
