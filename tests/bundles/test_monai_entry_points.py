"""MONAI's own ways into a bundle work by default, for every task of every shipped bundle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow

from medvol.bundle import fork, list_bundles, load
from medvol.core import MissingInputError, WeightsError
from medvol.core.errors import error_line

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

BUNDLES = list_bundles()
TASKS = [(bundle.name, task) for bundle in BUNDLES for task in bundle.tasks]
WITH_WEIGHTS = [bundle.name for bundle in BUNDLES if bundle.has_weights]
ENSEMBLE = "hippocampus_mri_segmentation"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test runs in the checkout, and none leaves a file where it did not say so."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


def window_of(bundle):
    image = bundle.metadata["network_data_format"]["inputs"]["image"]
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, image["num_channels"], *image["spatial_shape"], generator=generator)


def workflow_type(task: str) -> str:
    return "train" if "train" in task else "infer"


def test_there_are_bundles_and_tasks_to_open():
    assert len(WITH_WEIGHTS) >= 6
    assert len(TASKS) >= 40
    assert {task for _, task in TASKS} == {"train", "multi_gpu_train", "evaluate", "inference"}


@pytest.mark.parametrize("options", [{}, {"workflow_type": "inference"}], ids=["default", "infer"])
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_load_gives_the_shipped_network_with_its_weights(name, options):
    bundle = load(name)
    network = monai.bundle.load(name, bundle_dir=str(bundle.path.parent), device="cpu", **options)
    state = torch.load(bundle.weights, weights_only=True)
    found = network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    window = window_of(bundle)
    with torch.no_grad():
        assert torch.equal(network.eval()(window), bundle.network()(window))


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_a_workflow_starts_and_has_its_properties_without_data(name, task):
    path = load(name).config_path(task)
    workflow = create_workflow(config_file=str(path), workflow_type=workflow_type(task))
    assert workflow.check_properties() == []


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_a_plain_parser_finds_the_bundle(name, task):
    parser = ConfigParser()
    parser.read_config(str(load(name).config_path(task)))
    assert Path(parser.get_parsed_content("bundle_root")) == load(name).path
    assert isinstance(parser.get_parsed_content("network"), torch.nn.Module)


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_the_data_are_asked_for_when_a_run_begins(name, task, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # as torchrun does; one process needs no group
    bundle = load(name)
    workflow = ConfigWorkflow(
        config_file=str(bundle.config_path(task)), logging_file=False,
        device="cpu", **({} if "train" in task else {"checkpoint": __file__}),
    )  # fmt: skip
    workflow.initialize()
    before = sys.excepthook
    try:
        with pytest.raises(Exception, match=r".") as caught:
            workflow.run()
    finally:
        sys.excepthook = before
    assert "--dataset_dir" in (error_line(caught.value) or "")


@pytest.mark.parametrize("bundle", [b for b in BUNDLES if not b.has_weights], ids=lambda b: b.name)
def test_a_network_without_its_weights_never_predicts(bundle):
    parser = ConfigParser()
    parser.read_config(str(bundle.config_path("inference")))
    network = parser.get_parsed_content("network")
    with pytest.raises(WeightsError, match=r"model\.pt: no such weights file"):
        network(torch.zeros(1))


def run_monai(config: Path, *words: str, cwd: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ,
                          check=False)  # fmt: skip
    return done.returncode, [line for line in done.stderr.splitlines() if line.strip()][-1]


def test_a_rejected_run_ends_with_its_fault(elsewhere):
    config = load(ENSEMBLE).config_path("inference")
    assert run_monai(config, cwd=elsewhere) == (1, "medvol: no data: pass --dataset_dir FOLDER")
    absent = elsewhere / "absent"
    code, last = run_monai(config, "--dataset_dir", str(absent), cwd=elsewhere)
    assert code == 1
    assert last.startswith(f"medvol: {absent}: ")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--learning_rte", "0.1"], "'learning_rate'"),
        (["--train#trainer#max_epoch=3"], "'train::trainer::max_epochs'"),
        (["--args_file", "ARGS"], "'max_epochs'"),
    ],
)
def test_a_misspelt_override_is_rejected_with_the_right_name(elsewhere, tmp_path, words, hint):
    (tmp_path / "args.json").write_text(json.dumps({"max_epoch": 3}))
    words = [word.replace("ARGS", str(tmp_path / "args.json")) for word in words]
    code, last = run_monai(load(ENSEMBLE).config_path("train"), *words, cwd=elsewhere)
    assert code == 1
    assert f"did you mean {hint}" in last


def test_every_way_of_naming_the_config_finds_the_bundle(elsewhere, tmp_path):
    folder = fork(ENSEMBLE, tmp_path / "mine_segmentation")
    (folder / "models" / "model.pt").unlink()
    config = folder / "configs" / "inference.json"
    relative = Path(os.path.relpath(config, elsewhere))
    missing = f"medvol: {folder / 'models' / 'model.pt'}: no such weights file"
    for path in (config, relative):
        assert run_monai(path, "--dataset_dir", str(tmp_path), cwd=elsewhere) == (1, missing)


def test_a_fork_is_not_taken_for_the_bundle_that_it_comes_from(tmp_path, monkeypatch):
    folder = fork(ENSEMBLE, tmp_path / "mine_segmentation")
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    with pytest.raises(Exception, match=r".") as caught:
        parser.get_parsed_content("bundle_root")
    assert "override bundle_root" in (error_line(caught.value) or "")
    monkeypatch.chdir(folder)
    assert Path(parser.get_parsed_content("bundle_root")) == folder
    monkeypatch.chdir(tmp_path / "elsewhere")


def test_a_copy_is_itself_in_its_own_folder(tmp_path, monkeypatch):
    import shutil

    folder = shutil.copytree(load(ENSEMBLE).path, tmp_path / "copy_segmentation")
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    monkeypatch.chdir(folder)
    assert Path(parser.get_parsed_content("bundle_root")) == folder
    monkeypatch.chdir(tmp_path / "elsewhere")


def test_training_an_ensemble_starts_from_one_of_its_members():
    bundle = load(ENSEMBLE)
    state = torch.load(bundle.weights, weights_only=True)
    options = {"weights": str(bundle.weights), "device": "cpu"}
    for member in (0, 3):
        parser = bundle.parser("train", member=member, **options)
        found = parser.get_parsed_content("network").state_dict()
        assert all(torch.equal(state[f"networks.{member}.{key}"], found[key]) for key in found)
        assert len(found) * 5 == len(state)
    with pytest.raises(Exception, match=r".") as caught:
        bundle.parser("train", member=5, **options).get_parsed_content("network")
    assert "holds 5 members, 0 to 4, not 5" in (error_line(caught.value) or "")


def test_several_processes_need_torchrun(elsewhere):
    config = load(ENSEMBLE).config_path("multi_gpu_train")
    code, last = run_monai(config, "--dataset_dir", ".", cwd=elsewhere)
    assert code == 1
    assert "torchrun --nproc_per_node=2 -m monai.bundle run" in last


def test_missing_data_is_an_input_error():
    from medvol.engines import require_cases

    with pytest.raises(MissingInputError):
        require_cases([])
    require_cases([{"image": "x.nii.gz"}])
