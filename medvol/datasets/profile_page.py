"""A profile as JSON, figures and one HTML page."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from medvol.core.files import write_json
from medvol.core.labels import find_label
from medvol.datasets.manifest import Case, Manifest
from medvol.datasets.pages import Part, figure, plain, save_figure, write_page
from medvol.datasets.profile import DatasetProfile

_BLUE, _ORANGE = "#2166ac", "#e08214"
_MOST_EXAMPLES = 6


def write_profile_page(
    profile: DatasetProfile, manifest: Manifest, folder: str | os.PathLike[str]
) -> Path:
    """Write ``profile.json``, figures and ``profile.html``; returns the page's path."""
    folder = Path(folder)
    write_json(folder / "profile.json", profile.to_dict())
    figures = {
        name: save_figure(fig, folder / f"{name}.png")
        for name, fig in _figures(profile, manifest).items()
    }
    page = folder / "profile.html"
    verdict = f"{len(profile.warnings)} warnings." if profile.warnings else "No warnings."
    write_page(
        page,
        f"Profile of {profile.name}",
        verdict,
        "warn" if profile.warnings else "good",
        _parts(profile, figures),
    )
    return page


def _parts(profile: DatasetProfile, figures: dict[str, Path]) -> list[Part]:
    effort = profile.effort
    counts = [("what", "n"), *profile.counts.items()]
    balance: list[Any] = [("class", "images", "patients")]
    balance += [(n, count, profile.patients_by_class[n]) for n, count in profile.classes.items()]
    labels: list[Any] = [("structure", "cases", "median", "10% to 90%")]
    unit = "ml" if 3 in profile.grids["dimensions"] else "pixels"
    labels += [
        (
            name,
            int(row["cases"]),
            f"{row['volume_median']:.4g} {unit}",
            f"{row['volume_p10']:.4g} to {row['volume_p90']:.4g}",
        )
        for name, row in profile.labels.items()
    ]
    sums = [f"Effective sample size: {profile.effective_n:.0f} (independent, balanced patients)."]
    if np.isfinite(profile.imbalance_ratio):
        sums.append(f"Imbalance ratio: {profile.imbalance_ratio:.2f} to 1.")
    sums.append(
        f"Annotation: {profile.annotation_hours:.1f} reader hours, {profile.annotation_cost:,.0f} "
        f"{effort.currency} ({effort.readers} reader(s), {effort.rate_per_hour:g} "
        f"{effort.currency} an hour; an assumption, not a measurement)."
    )
    grids = [
        ("what", "value"),
        *((name, str(value)) for name, value in profile.grids.items()),
        *((f"intensity {name}", f"{value:g}") for name, value in profile.intensities.items()),
    ]
    parts = [
        Part("Warnings", profile.warnings or ["None."]),
        Part("Size and balance", sums, counts),
        Part("Classes", (), balance if profile.classes else (), _named(figures, "classes")),
        Part("Structures", (), labels if profile.labels else (), _named(figures, "volumes")),
        Part("Grids and intensities", (), grids, _named(figures, "grids", "intensities")),
        Part("Examples", (), (), _named(figures, "examples")),
    ]
    return [part for part in parts if part.lines or part.rows or part.figures]


def _named(figures: dict[str, Path], *names: str) -> list[Path]:
    return [figures[name] for name in names if name in figures]


def _figures(profile: DatasetProfile, manifest: Manifest) -> dict[str, Any]:
    figures = {"grids": _draw_grids(profile), "intensities": _draw_intensities(profile)}
    if profile.classes:
        figures["classes"] = _draw_classes(profile)
    if any(row["cases"] for row in profile.labels.values()):
        figures["volumes"] = _draw_volumes(profile)
    figures["examples"] = _draw_examples(profile, manifest)
    return figures


def _draw_classes(profile: DatasetProfile) -> Any:
    fig = figure(6.5, 0.9 + 0.4 * len(profile.classes))
    axes = fig.add_subplot()
    names = list(profile.classes)[::-1]
    shown = [plain(name) for name in names]
    axes.barh(shown, [profile.classes[name] for name in names], color=_BLUE, label="images")
    axes.barh(
        shown,
        [profile.patients_by_class[name] for name in names],
        height=0.35,
        color=_ORANGE,
        label="patients",
    )
    axes.legend(fontsize=8)
    return fig


def _draw_volumes(profile: DatasetProfile) -> Any:
    rows = {
        name: [
            e.volumes_ml[int(row["value"])]
            for e in profile.stats
            if int(row["value"]) in e.volumes_ml
        ]
        for name, row in profile.labels.items()
        if row["cases"]
    }
    fig = figure(6.5, 0.9 + 0.4 * len(rows))
    axes = fig.add_subplot()
    axes.boxplot(
        list(rows.values())[::-1],
        orientation="horizontal",
        tick_labels=[plain(name) for name in rows][::-1],
        flierprops={"markersize": 3},
    )
    axes.set_xscale("log")
    axes.set_xlabel("volume in ml" if 3 in profile.grids["dimensions"] else "area in pixels")
    return fig


def _draw_grids(profile: DatasetProfile) -> Any:
    columns = ["shape", "spacing_mm"] if any(e.spacing_mm for e in profile.stats) else ["shape"]
    fig = figure(4.2 * len(columns), 2.8)
    for number, name in enumerate(columns, start=1):
        axes = fig.add_subplot(1, len(columns), number)
        for axis, letter in enumerate("XYZ"):
            values = [getattr(e, name)[axis] for e in profile.stats if len(getattr(e, name)) > axis]
            if values:
                axes.hist(values, bins=20, histtype="step", lw=1.6, label=letter)
        axes.set_xlabel("voxels" if name == "shape" else "spacing in mm")
        axes.set_ylabel("cases")
        axes.legend(fontsize=8)
    return fig


def _draw_intensities(profile: DatasetProfile) -> Any:
    table = np.asarray([entry.percentiles for entry in profile.stats])
    table = table[np.argsort(table[:, 2])]
    fig = figure(6.5, 2.8)
    axes = fig.add_subplot()
    place = np.arange(len(table))
    axes.fill_between(place, table[:, 1], table[:, 3], color=_BLUE, alpha=0.25, label="1% to 99%")
    axes.plot(place, table[:, 2], color=_BLUE, label="median")
    axes.set_xlabel("cases, by median")
    axes.set_ylabel("intensity")
    axes.legend(fontsize=8)
    return fig


def _draw_examples(profile: DatasetProfile, manifest: Manifest) -> Any:
    """A case of every class, or cases spread over the data set, with their labels' outlines."""
    good = {entry.case for entry in profile.stats}
    cases = [case for case in manifest.cases if case.case in good]
    first = {case.category: case for case in reversed(cases)}
    chosen = [first[name] for name in manifest.classes if name in first]
    if not chosen:
        chosen = [cases[k] for k in np.unique(np.linspace(0, len(cases) - 1, 4).astype(int))]
    chosen = chosen[:_MOST_EXAMPLES]
    fig = figure(2.6 * len(chosen), 3.0)
    for number, case in enumerate(chosen, start=1):
        axes = fig.add_subplot(1, len(chosen), number)
        _draw_case(axes, case, manifest)
    return fig


def _draw_case(axes: Any, case: Case, manifest: Manifest) -> None:
    from medvol.io import ReadOptions, read_label, read_scan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shown by the check
        scan = read_scan(case.image, ReadOptions(channels=True))
        legal = manifest.legal_labels or range(1, 1 << 16)
        label = read_label(case.label, legal, reference=scan).array[0] if case.label else None
    image = scan.array[0]
    if image.ndim == 3:
        z = (
            image.shape[2] // 2
            if label is None or not label.any()
            else int(np.argmax(np.count_nonzero(label, axis=(0, 1))))
        )
        image, label = image[:, :, z], None if label is None else label[:, :, z]
    low, high = np.percentile(image, (1, 99))
    axes.imshow(
        image.T,
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        origin="lower" if scan.array.ndim == 4 else "upper",
    )
    if label is not None:
        for value in (v for v in np.unique(label) if v):
            colour = (
                np.asarray(
                    find_label(manifest.legal_labels.get(int(value), f"label {value}")).colour
                )
                / 255
            )
            axes.contour((label == value).T, levels=[0.5], colors=[colour], linewidths=1)
    axes.set_title(plain(f"{case.case[:24]}\n{case.category or ''}"), fontsize=7)
    axes.set_axis_off()
