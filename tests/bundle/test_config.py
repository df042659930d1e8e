import json

import pytest

from medvol.bundle import find_bundle, load, read_config
from medvol.core import ConfigError, MissingInputError, UnsafeFileError
from medvol.core.shipped import bundles_dir


def config(tmp_path, content) -> str:
    path = tmp_path / "train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        {"a": "$__import__('os').system('id')"},
        {"a": {"b": [1, " $print(1)"]}},
        {"net": {"_target_": "os.system", "command": "id"}},
        {"net": {"_target_": "builtins.eval", "source": "1"}},
        {"net": {"_target_": "monai.bundle.run"}},
        {"net": {"_target_": "medvol.cli.main"}},
        {"net": {"_target_": ["os.system"]}},
        {"net": {"_target_": "torch.nn.functional.torch.os.system", "command": "id"}},
        {"net": {"_target_": "monai.data.utils.pickle.loads", "data": ""}},
        {"net": {"_target_": "monai.networks.utils.torch.hub.load", "repo_or_dir": "a/b"}},
        {"net": {"_target_": "medvol.io.Path"}},
        {"net": {"_target_": "download_url", "url": "https://example.org", "filepath": "x"}},
        {"net": {"_target_": "ConfigWorkflow", "config_file": "x"}},
        {"net": "%/etc/passwd"},
        {"net": {"_target_": "torch.nn.Linear", "in_features": "@_meta_::evil"}},
    ],
)
def test_stranger_config_with_code_is_refused_by_id(tmp_path, content):
    path = config(tmp_path, content)
    with pytest.raises(UnsafeFileError, match=r"train\.json: (a|net)"):
        read_config(path)
    assert read_config(path, is_trusted=True) == content


def test_stranger_config_without_code_is_read(tmp_path):
    content = {
        "network_def": {"_target_": "UNet", "spatial_dims": 3},
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.1},
        "rate": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 2},
        "loss": {"_target_": "monai.losses.DiceCELoss"},
        "average": {"_target_": "ignite.handlers.EMAHandler"},
        "begin": {"_target_": "medvol.engines.begin_run"},
    }
    assert read_config(config(tmp_path, content)) == content


@pytest.mark.parametrize("content", ["{", "[1, 2]", "nonsense: ["])
def test_damaged_config_is_one_line(tmp_path, content):
    with pytest.raises(ConfigError, match=r"train\.json") as caught:
        read_config(config(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_missing_config_and_unknown_bundle_name_what_was_meant(tmp_path):
    with pytest.raises(MissingInputError, match=r"none\.json"):
        read_config(tmp_path / "none.json")
    with pytest.raises(MissingInputError, match=r"shipped bundles: .*hippocampus"):
        load("liver_ct_segmentation")


@pytest.mark.parametrize("written", ["./{}", "{}/", "../here/{}"])
def test_a_path_never_means_the_shipped_bundle_of_the_same_name(tmp_path, monkeypatch, written):
    name = "spleen_ct_segmentation"
    assert find_bundle(name) == (bundles_dir() / name).resolve()
    own = tmp_path / "here" / name
    (own / "configs").mkdir(parents=True)
    (own / "configs" / "metadata.json").write_text("{}")
    monkeypatch.chdir(own.parent)
    assert find_bundle(written.format(name)) == own
