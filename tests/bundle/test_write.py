import json
import shutil

import pytest
import yaml

from medvol.bundle.places import configs_dir
from medvol.bundle.write import all_names, render, stale, write
from medvol.core import ConfigError

NAME = "spleen_ct_segmentation"


@pytest.fixture
def configs(tmp_path):
    """A copy of the shipped parts and one values file, to be broken."""
    shutil.copytree(configs_dir() / "parts", tmp_path / "parts")
    (tmp_path / "bundles").mkdir()
    for suffix in (".yaml", ".md"):
        shutil.copy(configs_dir() / "bundles" / f"{NAME}{suffix}", tmp_path / "bundles")
    return tmp_path


def edit(configs, **changes):
    path = configs / "bundles" / f"{NAME}.yaml"
    values = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        if value is None:
            values.pop(key)
        else:
            values[key] = value
    path.write_text(yaml.safe_dump(values))


def test_committed_bundles_are_fresh():
    names = all_names()
    assert len(names) >= 4
    assert {name: stale(name) for name in names} == {name: [] for name in names}


def test_one_number_reaches_every_task(configs):
    edit(configs, spacing_mm=[2.5, 2.5, 4.0])
    files = render(NAME, configs)
    for task in ("train", "evaluate", "inference", "multi_gpu_train"):
        steps = json.loads(files[f"configs/{task}.json"])["preprocessing"]["transforms"]
        spacing = next(step for step in steps if step["_target_"].endswith("Spacingd"))
        assert spacing["pixdim"] == [2.5, 2.5, 4.0]


def test_nothing_is_left_to_expand(configs):
    files = render(NAME, configs)
    flat = [text for name, text in files.items() if name.endswith(".json")]
    assert len(flat) == 5
    assert not any('"%' in text for text in flat)
    assert not any({"part", "values"} & set(json.loads(text)) for text in flat)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"learning_rate": None}, "'learning_rate' is missing"),
        ({"labels": None}, "'labels' is missing"),
        ({"learning_rates": 0.1}, "no part uses the value 'learning_rates'"),
        ({"learning_rate": "1e-4"}, "write the number out"),
        ({"network": "transformer"}, "network: 'transformer' is no part"),
        ({"tasks": ["train", "dance"]}, "task 'dance' has no part"),
        ({"labels": ["spleen"]}, "write each value and its name"),
        ({"labels": {"spleen": 1}}, "write each value and its name"),
        ({"labels": {1: "spleen", 1001: "cortex"}}, "label 1001 is above 255"),
        ({"labels": {1: "$__import__('os').system('id')"}}, "take for code"),
        ({"labels": {1: "lesion #2"}}, "takes # for the separator"),
        ({"roi_size": 96}, "roi_size is 96"),
        ({"meta": {"version": "1"}}, "meta holds no 'changelog'"),
    ],
)
def test_wrong_values_are_refused_by_name(configs, changes, fault):
    edit(configs, **changes)
    with pytest.raises(ConfigError, match=fault):
        render(NAME, configs)


def test_write_leaves_weights_alone(configs, tmp_path):
    folder = tmp_path / "out_segmentation"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "model.pt").write_bytes(b"weights")
    write(NAME, folder, configs)
    assert (folder / "models" / "model.pt").read_bytes() == b"weights"
    assert (folder / "docs" / "README.md").is_file()


def test_a_values_file_anywhere_becomes_a_bundle_beside_it_or_around_its_plan(configs, tmp_path):
    source = configs / "bundles" / f"{NAME}.yaml"
    assert write(source) == source.with_suffix("")
    inside = tmp_path / "my_segmentation" / "plan" / "my_segmentation.yaml"
    inside.parent.mkdir(parents=True)
    for suffix in (".yaml", ".md"):
        shutil.copy(source.with_suffix(suffix), inside.with_suffix(suffix))
    folder = write(inside)
    assert stale(inside) == []
    (folder / "configs" / "train.json").write_text("{}")
    assert stale(inside) == ["configs/train.json"]
    write(inside)
    assert folder == tmp_path / "my_segmentation"
    assert json.loads((folder / "configs/metadata.json").read_text())["medvol"]["name"] == (
        "my_segmentation"
    )


def test_regions_become_sigmoid_channels_and_labels_stay_what_masks_hold(configs):
    regions = {"all": [1, 2], "core": [2]}
    edit(configs, labels={1: "rim", 2: "core_label"}, regions=regions, region_labels=[1, 2],
         output="regions", ignore_label=3)  # fmt: skip
    files = render(NAME, configs)
    train, metadata = (json.loads(files[f"configs/{n}.json"]) for n in ("train", "metadata"))
    assert train["network_def"]["out_channels"] == 2
    assert train["loss"]["members"] == [[1, 2], [2]]
    assert train["loss"]["ignore_label"] == 3
    assert train["labels"] == metadata["medvol"]["labels"] == {"1": "rim", "2": "core_label"}
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert channels == {"0": "all", "1": "core"}
    gate = train["preprocessing"]["transforms"][1]
    assert gate["labels"] == [1, 2, 3]
