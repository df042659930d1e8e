import json
import subprocess
import sys

import pytest

from medvol import MedvolError
from medvol.core import InputError, MissingInputError
from medvol.datasets import read_dataset, write_manifest

MSD = {
    "name": "Spleen",
    "modality": {"0": "CT"},
    "numTraining": 2,
    "labels": {"0": "background", "1": "spleen"},
    "training": [
        {"image": f"./imagesTr/s_{n}.nii.gz", "label": f"./labelsTr/s_{n}.nii.gz"} for n in (1, 2)
    ],
    "test": ["./imagesTs/s_9.nii.gz"],
}
NNUNET = {
    "channel_names": {"0": "T1", "1": "FLAIR"},
    "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def msd_files(touch):
    return touch(
        *[f"{f}/s_{n}.nii.gz" for n in (1, 2) for f in ("imagesTr", "labelsTr")],
        "imagesTs/s_9.nii.gz",
    )


def test_decathlon_folder_gives_training_and_test_cases(touch, write_index):
    folder = msd_files(touch)
    write_index(MSD)
    found = read_dataset(folder)
    assert (found.layout, found.labels, found.modality) == ("msd", {1: "spleen"}, "CT")
    assert [(case.case, case.split) for case in found.cases] == [
        ("s_1", None),
        ("s_2", None),
        ("s_9", "test"),
    ]
    assert found.cases[0].label == folder / "labelsTr/s_1.nii.gz"
    assert [case.case for case in found.training] == ["s_1", "s_2"]
    assert found.datalist(["s_1"]) == [
        {
            "case": "s_1",
            "image": str(folder / "imagesTr/s_1.nii.gz"),
            "label": str(folder / "labelsTr/s_1.nii.gz"),
        }
    ]


def test_nnunet_folder_gives_channels_regions_and_the_ignore_label(touch, write_index):
    folder = touch("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    write_index(NNUNET)
    found = read_dataset(folder)
    assert found.layout == "nnunet"
    assert [path.name for path in found.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert found.labels == {1: "label_1", 2: "core"}
    assert found.regions == {"whole": (1, 2), "core": (2,)}
    assert (found.ignore_label, found.legal_labels[3]) == (3, "ignore")


def test_regions_keep_their_listed_order_which_their_paint_goes_by(touch, write_index):
    folder = touch("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    labels = {"background": 0, "core": 2, "whole": [1, 2], "ignore": 3}
    write_index({**NNUNET, "labels": labels, "regions_class_order": [2, 1]})
    found = read_dataset(folder)
    assert list(found.regions.items()) == [("core", (2,)), ("whole", (1, 2))]
    assert found.region_labels == (2, 1)
    write_manifest(found, folder / "manifest.json")
    assert read_dataset(folder / "manifest.json").region_labels == (2, 1)
    (folder / "manifest.json").unlink()
    write_index({**NNUNET, "labels": labels, "regions_class_order": [2]})
    with pytest.raises(InputError, match="one label value for each"):
        read_dataset(folder)


def test_nnunet_case_without_one_of_its_channels_is_refused(touch, write_index):
    touch("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    with pytest.raises(MissingInputError, match=r"a_0000.*1 of 2 channels"):
        read_dataset(write_index(NNUNET))


def test_version_one_names_without_channel_number_are_found(touch, write_index):
    folder = touch("imagesTr/s_1_0000.nii.gz", "labelsTr/s_1.nii.gz")
    write_index({**MSD, "training": MSD["training"][:1], "test": []})
    assert read_dataset(folder).cases[0].image == folder / "imagesTr/s_1_0000.nii.gz"


def test_bids_label_maps_find_the_image_of_their_session(touch, write_index):
    folder = touch(
        *[f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T1w.nii.gz" for s in "12"],
        *[
            f"derivatives/manual/sub-01/ses-{s}/anat/"
            f"sub-01_ses-{s}_space-orig_desc-manual_dseg.nii.gz"
            for s in "12"
        ],
    )
    write_index({"Name": "two visits", "BIDSVersion": "1.8.0"}, "dataset_description.json")
    (folder / "derivatives/manual/desc-manual_dseg.tsv").write_text("index\tname\n1\thippocampus\n")
    found = read_dataset(folder)
    assert (found.layout, found.name, found.labels) == ("bids", "two visits", {1: "hippocampus"})
    assert [(c.patient, c.study) for c in found.cases] == [("sub-01", "1"), ("sub-01", "2")]
    assert all(f"ses-{c.study}" in c.label.name for c in found.cases)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (("i/c0_m0", "i/c0_m1"), "c0"),
        (("x/B-00_t1", "x/B-00_t1ce"), "B-00"),
        (("case7/t1", "case7/t2"), "case7"),
        (("i/a_0000", "i/a_0001"), "a"),
        (("i/whole",), "whole"),
    ],
)
def test_files_of_channels_name_their_case_by_what_they_share(touch, write_index, files, name):
    paths = [f"{file}.nii.gz" for file in files]
    folder = touch(*paths, "l/x.nii.gz")
    write_index({"training": [{"image": paths, "label": "l/x.nii.gz"}]})
    assert [case.case for case in read_dataset(folder).cases] == [name]


CONTRASTS = ("T1w", "ce-gd_T1w", "T2w", "FLAIR")


@pytest.mark.parametrize("is_described", [True, False])
def test_bids_contrasts_that_share_a_label_map_are_channels_of_one_case(
    touch, write_index, is_described
):
    names = [f"sub-0{k}/anat/sub-0{k}" for k in (1, 2)]
    folder = touch(*[f"{name}_{c}.nii.gz" for name in names for c in CONTRASTS],
                   *[f"derivatives/x/{name}_dseg.nii.gz" for name in names])  # fmt: skip
    if is_described:
        write_index({"Name": "tumours"}, "dataset_description.json")
    found = read_dataset(folder)
    assert found.layout == "bids"
    assert [case.case for case in found.cases] == ["sub-01", "sub-02"]
    assert found.channels == ("FLAIR", "T1w", "T2w", "gd_T1w")
    for case in found.cases:
        assert [path.name.partition("_")[2] for path in case.images] == [
            "FLAIR.nii.gz", "T1w.nii.gz", "T2w.nii.gz", "ce-gd_T1w.nii.gz"
        ]  # fmt: skip


def test_bids_images_of_unequal_contrasts_stay_cases_of_their_own(touch, write_index):
    folder = touch("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz",
          "sub-02/anat/sub-02_T1w.nii.gz",
          *[f"derivatives/x/sub-0{k}/anat/sub-0{k}_dseg.nii.gz" for k in (1, 2)])  # fmt: skip
    write_index({"Name": "mixed"}, "dataset_description.json")
    assert [len(case.images) for case in read_dataset(folder).cases] == [1, 1, 1]


@pytest.mark.parametrize("index", [NNUNET, MSD])
def test_a_number_of_training_cases_that_is_not_there_is_stated(touch, write_index, index, caplog):
    touch("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz",
          "imagesTr/s_1.nii.gz", "labelsTr/s_1.nii.gz")  # fmt: skip
    index = {**index, "numTraining": 7}
    if "training" in index:
        index |= {"training": MSD["training"][:1], "test": []}
    read_dataset(write_index(index))
    assert "numTraining is 7, but 1 training cases are there" in caplog.text


def test_csv_datalist_reads_usual_columns_and_keeps_the_rest(touch, write_index):
    folder = touch("a.png", "b.png")
    write_index(
        "file,label,patient_id,source,fold,width,patient_name\n"
        "a.png,ill,p1,here,0,17,Doe\nb.png,well,p2,there,1,18,Roe\n",
        "labels.csv",
    )
    found = read_dataset(folder)
    first = found.cases[0]
    assert (first.category, first.patient, first.site, first.fold) == ("ill", "p1", "here", 0)
    assert first.extra == {"width": 17}
    assert found.classes == ("ill", "well")
    assert found.datalist()[1]["class"] == 1


def test_csv_label_that_ends_like_an_image_is_a_label_map(touch, write_index):
    folder = touch("x/image.nii.gz", "x/seg.nii.gz", "y/image.nii.gz", "y/seg.nii.gz")
    write_index("image,label\nx/image.nii.gz,x/seg.nii.gz\ny/image.nii.gz,y/seg.nii.gz\n", "d.csv")
    found = read_dataset(folder)
    assert [case.case for case in found.cases] == ["x_image", "y_image"]
    assert found.cases[1].label == folder / "y/seg.nii.gz"


def test_json_datalist_with_folds_and_several_channels(touch, write_index):
    touch("t1.nii.gz", "t2.nii.gz", "seg.nii.gz")
    path = write_index(
        {"training": [{"image": ["t1.nii.gz", "t2.nii.gz"], "label": "seg.nii.gz", "fold": 3}]},
        "datalist.json",
    )
    (case,) = read_dataset(path).cases
    assert (case.fold, len(case.images), case.label.name) == (3, 2, "seg.nii.gz")


def test_class_tree_below_train_and_test_folders(touch):
    folder = touch(
        *[f"{s}/{c}/{s}{c}{n}.png" for s in ("train", "test") for c in "AB" for n in "12"]
    )
    found = read_dataset(folder)
    assert (found.layout, found.classes, len(found.cases)) == ("class-tree", ("A", "B"), 8)
    assert {case.split for case in found.cases} == {"train", "test"}


def test_a_folder_per_patient_is_no_class_tree(touch):
    folder = touch(*[f"p{n}/{name}.nii.gz" for n in "12" for name in ("t1", "t2")])
    found = read_dataset(folder)
    assert (found.layout, found.classes) == ("folder", ())
    assert [case.case for case in found.cases] == ["p1_t1", "p1_t2", "p2_t1", "p2_t2"]


def test_plain_folder_pairs_masks_by_their_ending(touch):
    folder = touch("ct.nii.gz", "ct_seg.nii.gz", "other.mha", ".hidden.nii", "readme.txt")
    found = read_dataset(folder)
    assert [(c.case, c.label and c.label.name) for c in found.cases] == [
        ("ct", "ct_seg.nii.gz"),
        ("other", None),
    ]


def test_manifest_comes_back_the_same_and_names_no_absolute_path(touch, write_index, tmp_path):
    folder = msd_files(touch)
    write_index(MSD)
    found = read_dataset(folder)
    write_manifest(found, tmp_path / "deep/er/manifest.json", sha256=True)
    text = (tmp_path / "deep/er/manifest.json").read_text()
    assert str(tmp_path) not in text
    assert len(json.loads(text)["cases"][0]["sha256"]["image"]) == 64
    again = read_dataset(tmp_path / "deep/er")
    assert again.cases == found.cases
    assert (again.labels, again.channels) == (found.labels, found.channels)


MANIFEST = {"medvol_manifest": 1, "name": "x", "labels": {}, "regions": {}, "ignore_label": None,
            "channels": [], "cases": [{"case": "a", "images": ["a.nii"]}]}  # fmt: skip
LISTED = {"a": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{not json", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "holds no case"),
        ({"foo": 1}, "'training'"),
        ({**MSD, "training": "x"}, "not a list"),
        ({**MSD, "training": [3]}, "neither a path nor a table"),
        ({**MSD, "training": [{"label": "x"}]}, "names no image"),
        ({**MSD, "training": [{"image": 7}]}, "not a path"),
        ({**MSD, "training": MSD["training"] * 2}, "appears twice"),
        ({**MSD, "training": [{"image": "imagesTr/none.nii.gz"}]}, r"none\.nii\.gz: no such image"),
        ({**MSD, "training": [{**MSD["training"][0], "case": "../../evil"}]}, "control character"),
        ({**MSD, "training": [{**MSD["training"][0], "case": "x\nERROR"}]}, "control character"),
        (
            {**MSD, "training": [{"image": "labelsTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]},
            "its image as its label",
        ),
        ({**MSD, "training": [{"image": "http://x.org/a.nii.gz"}]}, "no such image"),
        ({**MSD, "training": [{**MSD["training"][0], "fold": 0.5}]}, "not a whole number"),
        ({**MSD, "labels": 3}, "'labels'"),
        ({**MSD, "labels": {"a": 1, "b": 1}}, "two names"),
        ({**MSD, "labels": {"a": 1.5}}, "not an integer"),
        ({**MSD, "labels": {"a": []}}, "'a' has no value"),
        ({**MSD, "labels": {"1" * 5000: "a"}}, "not an integer"),
        ('{"training": [], "x": ' + "1" * 5000 + "}", "not valid JSON"),
        ({**MSD, "training": [{"image": "a" * 300 + ".nii.gz"}]}, "no such image"),
        (
            {
                **NNUNET,
                "channel_names": {"0": "CT"},
                "labels": {"w": [1, 2]},
                "regions_class_order": [[1]],
                "dataset": LISTED,
            },
            "regions_class_order",
        ),
        ({**MANIFEST, "labels": {"abc": "liver"}}, "not a valid manifest"),
        ({**MANIFEST, "ignore_label": "x"}, "not a valid manifest"),
        ({**MANIFEST, "cases": [{"case": "a", "images": "a.nii"}]}, "no list of images"),
        ({**MANIFEST, "cases": [{"case": "a", "images": ["a.nii"], "split": "Test"}]}, "'Test'"),
        ({**MANIFEST, "cases": [{"case": "a", "images": ["a.nii"], "fold": "1"}]}, "fold '1'"),
        ({**MSD, "modality": {"x": "CT"}}, "channel keys"),
        ({**NNUNET, "labels": {}}, "no such folder|no image"),
        ({"medvol_manifest": 9}, "version 9"),
        ({"medvol_manifest": 1, "name": "x"}, "not a valid manifest"),
    ],
)
def test_malformed_index_is_refused_in_one_line(touch, write_index, content, fault):
    if "labelsTr" in str(content) and "file_ending" not in str(content):
        msd_files(touch)
    path = write_index(content)
    with pytest.raises(MedvolError, match=fault) as refusal:
        read_dataset(path)
    assert "\n" not in str(refusal.value)
    assert str(path.parent) in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no row"),
        ("image,label\n", "no row"),
        ("a,b\n1,2\n", "no image column"),
        ("image,label\nx.png\n", "line 2"),
        ("image,fold\nx.png,two\n", "fold 'two'"),
        ("image,split\nx.png,maybe\n", "split 'maybe'"),
        ("image,label\nx.png,gone.nii.gz\n", "gone.nii.gz: no such label"),
        ("case,image\n1,x.png\n1,y.png\n", "'1' appears twice"),
        ("image,image\nx.png,y.png\n", "column 'image' twice"),
        ("image\nx\0.png\n", "control character"),
    ],
)
def test_malformed_csv_is_refused_in_one_line(touch, write_index, text, fault):
    touch("x.png", "y.png")
    with pytest.raises(InputError, match=fault):
        read_dataset(write_index(text, "labels.csv"))


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        ({"label": "la.png", "fold": 1}, "leak"),
        ({"label": "lb.png", "split": "test"}, "leak"),
        ({"label": "./la.png", "fold": 0}, "duplicate"),
        ({"label": "lb.png", "fold": 0}, None),
    ],
)
def test_an_image_under_two_names_is_refused_unless_two_readers_drew_it(
    touch, write_index, second, fault
):
    touch("x.png", "la.png", "lb.png")
    first = {"case": "a", "image": "x.png", "label": "la.png", "fold": 0}
    path = write_index({"training": [first, {"case": "b", "image": "./x.png", **second}]})
    if fault is None:
        assert len(read_dataset(path).cases) == 2
        return
    with pytest.raises(InputError, match=rf"'a' and 'b' .*{fault}"):
        read_dataset(path)


def test_a_bids_table_of_labels_that_is_no_text_is_refused(touch, write_index, tmp_path):
    touch("sub-1/sub-1_T1w.nii.gz")
    write_index({}, "dataset_description.json")
    (tmp_path / "x_dseg.tsv").write_bytes(b"index\tname\n1\t\xff\xfe\n")
    with pytest.raises(InputError, match=r"x_dseg\.tsv: is not a valid table"):
        read_dataset(tmp_path)


def test_missing_empty_and_useless_folders_are_refused(tmp_path, touch):
    with pytest.raises(MissingInputError, match="gone: no such"):
        read_dataset(tmp_path / "gone")
    with pytest.raises(MissingInputError, match="is empty"):
        read_dataset(tmp_path)
    touch("notes.txt")
    with pytest.raises(MissingInputError, match="holds no image"):
        read_dataset(tmp_path)
    touch("imagesTr/a.nii.gz")
    with pytest.raises(MissingInputError, match=r"dataset\.json"):
        read_dataset(tmp_path)


def test_reading_an_index_loads_no_torch(touch, write_index):
    msd_files(touch)
    code = (
        "import sys; from medvol.datasets import read_dataset, split_patients; "
        f"read_dataset({str(write_index(MSD))!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hippocampus_and_chest_xrays_are_read_as_their_readme_says(shared_data):
    hippocampus = read_dataset(shared_data / "hippocampus")
    assert (len(hippocampus.cases), hippocampus.labels) == (208, {1: "anterior", 2: "posterior"})
    chest = read_dataset(shared_data / "chest_xray")
    assert (len(chest.cases), chest.classes) == (874, ("covid19", "no_findings", "pneumonia"))
