import io
import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medvol.cli.main import main
from medvol.datasets import read_dataset, split_patients
from medvol.datasets.leakage import check_leakage, draw_leakage, find_duplicates, read_features
from medvol.datasets.leakage.check import LeakageReport
from medvol.datasets.leakage.contingency import contingencies
from medvol.datasets.leakage.duplicates import Duplicate

from .conftest import texture


def duplicates_of(folder):
    manifest = read_dataset(folder)
    features, unreadable = read_features(manifest.cases)
    assert not unreadable
    return find_duplicates(features, manifest.cases)


def jpeg(array, quality):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        return np.asarray(image)


VARIANTS = {
    "the same bytes": (lambda a: a, "pixels"),
    "recompressed": (lambda a: jpeg(a, 40), "near"),
    "smaller": (lambda a: np.asarray(Image.fromarray(a).resize((70, 70))), "near"),
    "cropped": (lambda a: a[4:-2, 3:-4], "near"),
    "brighter": (lambda a: np.round(40 + a * 0.7).astype(np.uint8), "near"),
    "noisy": (
        lambda a: np.clip(a + np.random.default_rng(0).normal(0, 4, a.shape), 0, 255).astype("u1"),
        "near",
    ),
    "mirrored": (lambda a: a[:, ::-1], "mirrored"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_planted_duplicate_is_found_and_nothing_else(image_set, name):
    change, kind = VARIANTS[name]
    folder = image_set(40, lambda a, _c, n: change(texture(7)) if n == 30 else a)
    (found,) = duplicates_of(folder)
    assert (found.first, found.second) == ("p007", "p030")
    assert found.kind in (kind, "file") if kind == "pixels" else found.kind == kind
    assert set(found.crosses) == {"class", "patient"}


def test_several_findings_of_a_kind_are_given_in_words():
    pairs = [Duplicate(a, b, "suspect", 0.9, ("patient",)) for a, b in ("ab", "cd")]
    (line,) = LeakageReport("x", 4, duplicates=pairs).findings
    assert line.startswith("2 suspiciously alike pairs (one patient under two names?), 2 across")


def test_duplicate_volumes_are_found(tmp_path):
    for number in range(8):
        rng = np.random.default_rng(number if number != 5 else 2)
        volume = rng.normal(size=(20, 22, 18)).astype(np.float32)
        if number == 5:
            volume = volume * 2 + 1
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"v{number}.nii")
    (found,) = duplicates_of(tmp_path)
    assert (found.first, found.second, found.kind) == ("v2", "v5", "near")


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".hdr"])
def test_equal_headers_of_different_voxels_are_not_duplicates(tmp_path, suffix):
    import SimpleITK as sitk

    for number in range(3):
        voxels = np.random.default_rng(number % 2).normal(size=(12, 12, 12)).astype(np.float32)
        (tmp_path / f"p{number}").mkdir()
        image = sitk.GetImageFromArray(voxels)
        sitk.WriteImage(image, str(tmp_path / f"p{number}" / f"scan{suffix}"))
    headers = {(tmp_path / f"p{number}" / f"scan{suffix}").read_bytes() for number in range(3)}
    assert len(headers) == 1
    lines = [f"c{number},p{number}/scan{suffix}" for number in range(3)]
    (tmp_path / "datalist.csv").write_text("\n".join(["case,image", *lines]))
    (found,) = duplicates_of(tmp_path)
    assert (found.first, found.second, found.kind) == ("c0", "c2", "file")
    first, second, third = (case.sha256() for case in read_dataset(tmp_path).cases)
    assert first == third != second


def test_a_clean_data_set_is_called_clean(image_set):
    report = check_leakage(read_dataset(image_set()))
    assert (report.verdict, report.findings) == ("clean", [])
    assert len(report.probes) >= 8


def test_a_marker_in_the_corner_of_one_class_is_caught(image_set):
    def stamp(array, category, _number):
        if category == "a":
            array[:8, :8] = 255
        return array

    report = check_leakage(read_dataset(image_set(change=stamp)))
    assert report.verdict == "leak"
    assert {"frame", "corners"} <= {probe.probe for probe in report.shortcuts}


def test_coarser_grey_values_in_one_class_are_caught_by_the_bytes(image_set):
    def posterise(array, category, _number):
        return array // 4 * 4 if category == "a" else array

    report = check_leakage(read_dataset(image_set(change=posterise)))
    assert {"bytes", "compressibility"} <= {probe.probe for probe in report.shortcuts}


def test_a_class_from_one_site_only_is_confounded(image_set):
    folder = image_set(row=lambda c, n: "north" if c == "a" else "south")
    report = check_leakage(read_dataset(folder))
    (table,) = report.contingencies
    assert table.is_confounded
    assert table.exclusive == ("a", "b")
    assert any("confounded" in line for line in report.findings)
    fair = read_dataset(image_set(row=lambda c, n: "north" if n % 4 < 2 else "south"))
    (table,) = contingencies(fair.cases)
    assert not table.is_confounded
    assert table.cramers_v < 0.2


def test_cramers_v_agrees_with_scipy():
    from scipy.stats.contingency import association

    from medvol.datasets.leakage.contingency import _cramers_v

    table = np.array([[300, 20, 5], [10, 400, 80.0]])
    assert _cramers_v(table) == pytest.approx(association(table.astype(int), "cramer"), abs=0.01)


def test_patients_on_both_sides_and_with_two_classes_are_listed_by_case(image_set):
    manifest = read_dataset(image_set(20))
    cases = [
        replace(c, patient="secret") if c.case in ("p000", "p001") else c for c in manifest.cases
    ]
    manifest = replace(manifest, cases=tuple(cases))
    split = split_patients(manifest, folds=2)
    split.place["p000"] = 1 - split.place["p001"]
    report = check_leakage(manifest, split)
    assert report.shared == report.several_classes == [["p000", "p001"]]
    assert report.verdict == "leak"
    assert "secret" not in str(report.to_dict())


def test_a_duplicate_beside_the_split_crosses_no_split(image_set):
    manifest = read_dataset(image_set(20, lambda a, _c, n: texture(7) if n == 9 else a))
    place = split_patients(manifest, folds=2).place
    features, _ = read_features(manifest.cases)
    for name, is_crossed in (("p009", False), ("p000", place["p007"] != place["p009"])):
        places = {case: fold for case, fold in place.items() if case != name}
        (found,) = find_duplicates(features, manifest.cases, places)
        assert ("split" in found.crosses) == is_crossed


def test_unreadable_images_are_named_and_the_rest_is_checked(image_set):
    folder = image_set(20)
    (folder / "p003.png").write_bytes(b"no image")
    report = check_leakage(read_dataset(folder))
    assert [case for case, _ in report.unreadable] == ["p003"]
    assert report.n == 19


def test_images_show_what_was_found(image_set, tmp_path):
    folder = image_set(
        24,
        lambda a, _c, n: texture(7) if n == 20 else a,
        row=lambda c, n: "north" if c == "a" else "south",
    )
    manifest = read_dataset(folder)
    drawn = draw_leakage(check_leakage(manifest), manifest, tmp_path / "out")
    assert [path.name for path in drawn] == [
        "probes.png",
        "class_means.png",
        "duplicates.png",
        "source_site.png",
    ]
    for path in drawn:
        with Image.open(path) as image:
            assert min(image.size) > 100


def test_names_with_dollars_are_drawn_as_they_are(image_set, tmp_path):
    from medvol.datasets.profile import profile_dataset
    from medvol.datasets.profile_page import write_profile_page

    folder = image_set(
        24,
        lambda a, _c, n: texture(7) if n == 20 else a,
        columns="image,class,patient_id,a$_$",
        row=lambda c, n: "no$^$rth" if c == "a" else "south",
    )
    manifest = read_dataset(folder)
    cases = tuple(replace(c, category=f"{c.category}$^$", case=f"$_${c.case}")
                  for c in manifest.cases)  # fmt: skip
    manifest = replace(manifest, cases=cases)
    assert len(draw_leakage(check_leakage(manifest), manifest, tmp_path / "out")) == 4
    assert write_profile_page(profile_dataset(manifest), manifest, tmp_path / "page").is_file()


@pytest.fixture(scope="module")
def chest(shared_data):
    manifest = read_dataset(shared_data / "chest_xray")
    features, unreadable = read_features(manifest.cases)
    assert not unreadable
    return manifest, features


def test_chest_xrays_show_every_leak_their_readme_tells_of(chest, monkeypatch):
    manifest, features = chest
    monkeypatch.setattr("medvol.datasets.leakage.check.read_features", lambda *_: (features, []))
    report = check_leakage(manifest)
    found = {(probe.pair, probe.probe): probe for probe in report.probes}
    assert found["covid19 vs no_findings", "size"].auc >= 0.99
    assert found["covid19 vs no_findings", "frame"].auc >= 0.90
    assert found["covid19 vs no_findings", "thumbnail"].auc >= 0.97
    assert found["no_findings vs pneumonia", "thumbnail"].auc >= 0.82
    assert found["no_findings vs pneumonia", "compressibility"].auc >= 0.78
    assert {pair.kind for pair in report.duplicates} == {"near", "suspect"}
    assert len(report.several_classes) == 15  # of the 21 patients in the whole collection
    (site,) = report.contingencies
    assert site.is_confounded
    assert site.exclusive == ("covid19",)
    assert report.verdict == "leak"


@pytest.mark.parametrize(
    "seeds", [range(3), pytest.param(range(20), marks=pytest.mark.slow)], ids=["three", "twenty"]
)
def test_permuted_chest_labels_fire_in_at_most_one_probe_of_twenty(chest, seeds):
    from medvol.datasets.leakage import run_probes

    manifest, features = chest
    nih = [case for case in manifest.cases if case.category != "covid19"]
    names = {case.case for case in nih}
    kept = [feature for feature in features if feature.case in names]
    fired, ran = 0, 0
    for seed in seeds:
        labels = np.random.default_rng(seed).permutation([str(case.category) for case in nih])
        probes = [p for p in run_probes(kept, list(labels), seed=seed) if not p.why_undefined]
        fired, ran = fired + sum(p.fires for p in probes), ran + len(probes)
    assert ran >= 6 * len(seeds)
    assert fired <= 0.05 * ran


def test_another_scanner_program_for_one_class_is_caught(tmp_path):
    lines = ["image,class"]
    for number in range(40):
        image = nibabel.Nifti1Image(np.random.default_rng(number).normal(size=(9, 9, 9)), np.eye(4))
        image.header["descrip"] = b"FSL5.0" if number % 2 else b""
        nibabel.save(image, tmp_path / f"v{number:02d}.nii")
        lines.append(f"v{number:02d}.nii,{'ab'[number % 2]}")
    (tmp_path / "datalist.csv").write_text("\n".join(lines))
    report = check_leakage(read_dataset(tmp_path))
    assert [probe.probe for probe in report.shortcuts] == ["format"]


def write_radiograph(path, array, manufacturer, spacing_mm=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    header.Modality, header.Manufacturer = "DX", manufacturer
    if spacing_mm is not None:
        header.ImagerPixelSpacing = [spacing_mm, spacing_mm]
    header.SeriesInstanceUID, header.StudyInstanceUID = generate_uid(), generate_uid()
    header.PatientName, header.PatientID = "Doe^Planted", "planted-7"
    header.Rows, header.Columns = array.shape
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation, header.SamplesPerPixel = 7, 0, 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.PixelData = array.tobytes()
    header.save_as(path, enforce_file_format=True)


def test_dicom_radiographs_of_a_class_tree_are_probed_by_their_tags(tmp_path):
    for number in range(32):
        category = "ab"[number % 2]
        write_radiograph(
            tmp_path / category / f"{number:02d}.dcm",
            texture(number, (64, 64)),
            "North" if category == "a" else "South",
        )
    manifest = read_dataset(tmp_path)
    assert (manifest.layout, len(manifest.cases)) == ("class-tree", 32)
    report = check_leakage(manifest)
    assert report.unreadable == []
    assert [probe.probe for probe in report.shortcuts] == ["tag Manufacturer"]
    assert "lanted" not in str(report.to_dict())


def test_the_spacing_of_images_of_one_plane_is_probed(tmp_path):
    for number in range(32):
        category = "ab"[number % 2]
        spacing_mm = 0.1 if category == "a" else 0.2
        write_radiograph(tmp_path / "xr" / category / f"{number:02d}.dcm",
                         texture(number, (64, 64)), "North", spacing_mm)  # fmt: skip
        slice_ = nibabel.Nifti1Image(texture(number, (64, 64))[:, :, None].astype(np.float32),
                                     np.diag([spacing_mm * 9, 1, 1, 1]))  # fmt: skip
        (tmp_path / "mr" / category).mkdir(parents=True, exist_ok=True)
        nibabel.save(slice_, tmp_path / "mr" / category / f"{number:02d}.nii")
    for name in ("xr", "mr"):
        report = check_leakage(read_dataset(tmp_path / name))
        assert [probe.probe for probe in report.shortcuts] == ["spacing"], name


@pytest.mark.parametrize(("stored", "numbers"), [(b"0.14", [0.14]), (b"x\\y ", [])])
def test_a_slip_in_the_spacing_of_a_radiograph_ends_no_check(tmp_path, stored, numbers):
    write_radiograph(tmp_path / "a.dcm", texture(0, (64, 64)), "North", 0.25)
    whole = (tmp_path / "a.dcm").read_bytes()
    assert whole.count(b"0.25\\0.25 ") == 1
    (tmp_path / "a.dcm").write_bytes(whole.replace(b"\x0a\x000.25\\0.25 ",
                                     bytes([len(stored), 0]) + stored))  # fmt: skip
    (found,), unreadable = read_features(read_dataset(tmp_path).cases)
    assert unreadable == []
    assert found.words["spacing:ImagerPixelSpacing"]
    assert [v for name, v in found.numbers.items() if name.startswith("spacing")] == numbers


def test_images_among_volumes_state_which_probes_cannot_run(tmp_path):
    lines = ["image,class"]
    for number in range(20):
        if number % 4 < 2:
            Image.fromarray(texture(number)).save(tmp_path / f"{number}.png")
            lines.append(f"{number}.png,{'ab'[number % 2]}")
            continue
        volume = np.random.default_rng(number).normal(size=(9, 9, 9))
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"{number}.nii")
        lines.append(f"{number}.nii,{'ab'[number % 2]}")
    (tmp_path / "datalist.csv").write_text("\n".join(lines))
    manifest = read_dataset(tmp_path)
    report = check_leakage(manifest)
    why = {probe.probe: probe.why_undefined for probe in report.probes}
    for name in ("frame", "corners", "thumbnail", "histogram"):
        assert "mixes 2D images and volumes" in why[name]
    assert why["size"] == ""
    assert [path.name for path in draw_leakage(report, manifest, tmp_path / "out")] == [
        "probes.png"
    ]


def test_verb_exits_1_on_a_leak_and_0_on_none(image_set, tmp_path, capsys):
    clean = image_set()
    assert main(["data", "check", str(clean), "--leakage", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["leakage"]["verdict"] == "clean"
    leaking = image_set(row=lambda c, n: "north" if c == "a" else "south")
    out = tmp_path / "out"
    assert main(["data", "check", str(leaking), "--leakage", "-o", str(out)]) == 1
    assert "leakage: leak" in capsys.readouterr().out
    assert "confounded" in (out / "check.html").read_text()
    answer = json.loads((out / "check.json").read_text())
    assert answer["leakage"]["contingencies"][0]["is_confounded"] is True
