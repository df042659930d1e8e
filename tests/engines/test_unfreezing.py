import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.networks.nets import DenseNet121
from torch import nn

from medvol.core import ConfigError
from medvol.engines import GradualUnfreezing, discriminative_groups

STAGES = [["head"], ["top"], [""]]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.top = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.top(self.stem(x)).mean((2, 3)))


def run(epochs, max_epochs=4, keep_norm=False, first_epoch=0):
    """Which tensors changed in each epoch of a real MONAI training run."""
    torch.manual_seed(0)
    network = Net()
    unfreezing = GradualUnfreezing(network, STAGES, epochs, keep_norm=keep_norm)
    optimizer = torch.optim.AdamW(discriminative_groups(network, STAGES), weight_decay=0.1)
    data = [{"image": torch.randn(4, 1, 9, 9), "label": torch.tensor([0, 1, 0, 1])}] * 2
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=max_epochs,
        train_data_loader=data,
        network=network,
        optimizer=optimizer,
        loss_function=nn.CrossEntropyLoss(),
        train_handlers=[unfreezing],
        decollate=False,
    )
    moved, before = [], {}

    def remember(_engine):
        before.update({k: v.clone() for k, v in network.state_dict().items()})

    def compare(_engine):
        state = network.state_dict()
        moved.append({k for k, v in before.items() if not torch.equal(v, state[k])})

    trainer.add_event_handler(Events.EPOCH_STARTED, remember)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, compare)
    if first_epoch:
        trainer.add_event_handler(
            Events.STARTED, lambda e: (setattr(e.state, "epoch", first_epoch),
                                       setattr(e.state, "iteration", 2 * first_epoch))
        )  # fmt: skip
    trainer.run()
    return moved


def names(*stages):
    return {name for name in Net().state_dict() if name.split(".")[0] in stages}


def test_each_epoch_moves_exactly_the_stages_that_are_due():
    moved = run([1, 2, 4])
    assert moved[0] == names("head")
    assert moved[1] == names("head", "top")
    assert moved[2] == names("head", "top")
    assert moved[3] == names("head", "top", "stem")


def test_resumed_run_continues_with_the_stages_of_its_epoch():
    assert run([1, 2, 4], first_epoch=1) == [
        names("head", "top"), names("head", "top"), names("head", "top", "stem")
    ]  # fmt: skip


def test_kept_norms_learn_their_scale_but_keep_their_statistics():
    moved = run([1, 1, 1], max_epochs=1, keep_norm=True)[0]
    still = {n for n in Net().state_dict() if "running" in n or "num_batches" in n}
    assert moved == names("head", "top", "stem") - still


def test_evaluation_mode_is_left_alone():
    network = Net().eval()
    GradualUnfreezing(network, STAGES, [1, 2, 3])
    network(torch.randn(2, 1, 9, 9))
    assert not any(module.training for module in network.modules())


def test_groups_hold_every_parameter_once_at_its_stages_rate():
    network = Net()
    groups = discriminative_groups(network, STAGES, head_lr=0.001, backbone_lr=0.00001, decay=0.5)
    assert [g["lr"] for g in groups] == pytest.approx([1e-3, 1e-5, 5e-6])
    assert [g["name"] for g in groups] == ["head", "top", "rest"]
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters())


def test_stages_of_monais_densenet_are_named_by_their_modules():
    stages = [["class_layers"], ["features.norm5", "features.denseblock4"], [""]]
    groups = discriminative_groups(DenseNet121(2, 1, 2), stages)
    assert len(groups[0]["params"]) == 2
    assert len(groups[1]["params"]) == 2 + 16 * 6


@pytest.mark.parametrize(
    ("stages", "epochs", "words"),
    [
        ([["head"], ["top"]], [1, 2], r"'stem\.0\.weight' is in no stage"),
        ([["haed"], [""]], [1, 2], r"\['haed'\] names nothing in Net; its modules: stem, top"),
        (STAGES, [1, 2], "2 epochs were given for 3 stages"),
        (STAGES, [1, 3, 2], "must rise"),
        (STAGES, [2, 3, 4], "the first one being 1"),
    ],
)
def test_wrong_schedules_are_rejected(stages, epochs, words):
    with pytest.raises(ConfigError, match=words):
        GradualUnfreezing(Net(), stages, epochs)


def test_rates_must_be_positive():
    with pytest.raises(ConfigError, match="above 0"):
        discriminative_groups(Net(), STAGES, backbone_lr=0)
