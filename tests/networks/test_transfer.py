import logging
import re

import pytest
import torch
from monai.networks.nets import DenseNet121, EfficientNetBN, ResNet, ViT
from torch import nn

from medvol.core import ConfigError, WeightsError
from medvol.networks import (
    VisionTransformer,
    inflate_kernel,
    init_weights,
    medicalnet_resnet,
    merge_channels,
    pretrained,
    resize_positions,
    torchvision_efficientnet,
    torchvision_resnet,
)


def vit(**kwargs):
    size = {"img_size": 32, "patch_size": 8, "hidden_size": 24, "mlp_dim": 96,
            "num_layers": 3, "num_heads": 4}  # fmt: skip
    return VisionTransformer(**{"in_channels": 3, "num_classes": 5} | size | kwargs)


def densenet(in_channels=3, num_classes=5, spatial_dims=2):
    return DenseNet121(spatial_dims, in_channels, num_classes)


TARGETS = {
    "resnet18": lambda **k: torchvision_resnet(18, **k),
    "resnet50": lambda **k: torchvision_resnet(50, **k),
    "densenet121": densenet,
    "efficientnet-b0": lambda **k: torchvision_efficientnet("efficientnet-b0", **k),
    "efficientnet-b1": lambda **k: torchvision_efficientnet("efficientnet-b1", **k),
    "vit": vit,
}


def relative_gap(found, wanted):
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


def saved(tmp_path, network, prefix=""):
    path = tmp_path / "source.pth"
    torch.save({prefix + name: value for name, value in network.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("name", TARGETS)
def test_adapted_network_computes_what_the_source_computes(tmp_path, source, name):
    original = source(name)
    network = TARGETS[name](in_channels=3, num_classes=5)
    report = init_weights(network, saved(tmp_path, original))
    assert report.share == 1
    assert not report.unexpected
    assert not report.skipped
    x = torch.randn(2, 3, *((32, 32) if name == "vit" else (64, 71)))
    assert relative_gap(network.eval()(x), original(x)) <= 1e-5


@pytest.mark.parametrize("name", TARGETS)
def test_grey_image_gives_what_its_copy_in_three_colours_gave(tmp_path, source, name):
    original = source(name)
    network = TARGETS[name](in_channels=1, num_classes=5)
    report = init_weights(network, saved(tmp_path, original))
    assert list(report.adapted.values()) == ["3 to 1 channels"]
    x = torch.randn(2, 1, *((32, 32) if name == "vit" else (64, 64)))
    assert relative_gap(network.eval()(x), original(x.expand(-1, 3, -1, -1))) <= 1e-5


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_medicalnet_computes_what_the_dilated_source_computes(tmp_path, source, depth):
    original = source(f"medicalnet{depth}")
    network = medicalnet_resnet(depth, num_classes=2)
    state = {f"module.{name}": value for name, value in original.state_dict().items()}
    state |= {"module.conv_seg.0.weight": torch.ones(512, 32, 2, 2, 2)}
    torch.save({"state_dict": state, "epoch": 9}, tmp_path / "resnet.pth")
    report = init_weights(network, tmp_path / "resnet.pth")
    assert report.source == "MedicalNet ResNet"
    assert report.skipped == ("fc.weight", "fc.bias")
    assert report.unexpected == ("conv_seg.0.weight",)
    network.fc = nn.Identity()
    x = torch.randn(1, 1, 32, 40, 24)
    assert relative_gap(network.eval()(x), original(x)) <= 1e-5


def test_vision_tower_is_found_inside_an_open_clip_checkpoint(tmp_path, source):
    original = source("vit")
    tower = {f"visual.trunk.{k}": v for k, v in original.state_dict().items() if "head" not in k}
    text = {f"text.transformer.{i}.weight": torch.ones(2) for i in range(4)}
    projection = {"visual.head.proj.weight": torch.ones(3, 24), "logit_scale": torch.ones(())}
    torch.save({"state_dict": tower | text | projection}, tmp_path / "clip.bin")
    network = vit()
    report = init_weights(network, tmp_path / "clip.bin")
    assert report.share == 1
    assert len(report.unexpected) == 6
    assert report.skipped == ("classification_head.weight", "classification_head.bias")
    original.head = network.classification_head
    x = torch.randn(2, 3, 32, 32)
    assert relative_gap(network.eval()(x), original(x)) <= 1e-5


def test_monais_own_vit_takes_the_same_weights_up_to_its_epsilon(tmp_path, source):
    original = source("vit")
    network = ViT(3, 32, 8, 24, 96, 3, 4, classification=True, num_classes=5, spatial_dims=2,
                  qkv_bias=True, post_activation="")  # fmt: skip
    path = saved(tmp_path, original)
    with pytest.raises(WeightsError, match="LayerNorm epsilon"):
        init_weights(network, path)
    report = init_weights(network, path, exact=False)
    assert all("norm_cross_attn" in name for name in report.skipped)
    x = torch.randn(2, 3, 32, 32)
    assert relative_gap(network.eval()(x)[0], original(x)) <= 1e-4


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnet-b0"])
def test_centrally_inflated_network_sees_a_repeated_image_as_the_image(tmp_path, source, name):
    original = source(name)
    network = TARGETS[name](in_channels=1, num_classes=5, spatial_dims=3)
    report = init_weights(network, saved(tmp_path, original), inflation="centre")
    assert report.share == 1
    x = torch.randn(1, 1, 40, 32)
    volume = x.unsqueeze(-1).expand(-1, -1, -1, -1, 32)
    assert relative_gap(network.eval()(volume), original(x.expand(-1, 3, -1, -1))) <= 1e-5


def test_mean_inflation_keeps_the_output_on_a_repeated_image():
    kernel, x = torch.randn(4, 2, 3, 3), torch.randn(1, 2, 9, 8)
    flat = nn.functional.conv2d(x, kernel)
    deep = nn.functional.conv3d(
        x.unsqueeze(-1).expand(-1, -1, -1, -1, 5), inflate_kernel(kernel, 5)
    )
    assert relative_gap(deep[..., 0], flat) <= 1e-5


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_equal_channels_give_the_same_sum_whatever_their_number(channels):
    kernel, x = torch.randn(4, 3, 3, 3), torch.randn(1, 1, 9, 8)
    wanted = nn.functional.conv2d(x.expand(-1, 3, -1, -1), kernel).sum(1)
    merged = merge_channels(kernel.mean(1, keepdim=True).expand(-1, 3, -1, -1), channels)
    found = nn.functional.conv2d(x.expand(-1, channels, -1, -1), merged).sum(1)
    assert relative_gap(found, wanted) <= 1e-4


def test_positions_are_resized_and_repeated_in_depth(tmp_path, source):
    path = saved(tmp_path, source("vit"))
    wide = vit(img_size=(48, 32))
    assert init_weights(wide, path).adapted == {
        "patch_embedding.position_embeddings": "grid 4x4 to 6x4"
    }
    deep = vit(spatial_dims=3, img_size=32, in_channels=1)
    report = init_weights(deep, path)
    assert report.share == 1
    assert report.adapted["patch_embedding.position_embeddings"] == "grid 4x4 to 4x4x4"
    field = deep.patch_embedding.position_embeddings.view(4, 4, 4, -1)
    assert torch.equal(field[:, :, 0], field[:, :, 3])


def test_resized_positions_keep_a_constant_and_the_order_of_axes():
    ramp = torch.arange(4.0).view(4, 1, 1).expand(4, 4, 2).reshape(1, 16, 2)
    assert torch.allclose(resize_positions(torch.ones(1, 16, 2), (4, 4), (6, 5)), torch.tensor(1.0))
    wide = resize_positions(ramp, (4, 4), (8, 4)).view(8, 4, 2)
    assert bool((wide.diff(dim=0) > 0).all())
    assert torch.allclose(wide[:, 0], wide[:, 3])


def test_network_with_agreeing_keys_and_another_stride_is_rejected(tmp_path, source, caplog):
    path = saved(tmp_path, source("resnet18"))
    monai = ResNet("basic", [2, 2, 2, 2], [64, 128, 256, 512], 2, 3, num_classes=5,
                   bias_downsample=False)  # fmt: skip
    before = monai.conv1.weight.clone()
    with pytest.raises(WeightsError, match=r"first stride is \(1, 1\), not 2"):
        init_weights(monai, path)
    assert torch.equal(before, monai.conv1.weight)
    with caplog.at_level(logging.WARNING):
        assert init_weights(monai, path, exact=False).share == 1
    assert "first stride" in caplog.text


def test_other_hidden_differences_are_named(tmp_path, source):
    path = saved(tmp_path, source("efficientnet-b0"))
    monai = EfficientNetBN("efficientnet-b0", pretrained=False, num_classes=5)
    with pytest.raises(WeightsError, match="padding is TensorFlow's"):
        init_weights(monai, path)
    path = saved(tmp_path, source("medicalnet10"))
    with pytest.raises(WeightsError, match=r"layer3 has dilation .* layer4 has dilation"):
        init_weights(medicalnet_resnet(10, dilated=False), path)


def test_efficientnet_pytorch_weights_fill_monais_network(tmp_path):
    torch.manual_seed(0)
    monai = EfficientNetBN("efficientnet-b1", pretrained=False, num_classes=5).eval()
    flat = {re.sub(r"_blocks\.\d+\.(\d+)", r"_blocks.\1", k): v
            for k, v in monai.state_dict().items()}  # fmt: skip
    torch.save(flat, tmp_path / "b1.pth")
    other = EfficientNetBN("efficientnet-b1", pretrained=False, num_classes=5).eval()
    report = init_weights(other, tmp_path / "b1.pth")
    assert report.source == "EfficientNet-PyTorch"
    assert report.share == 1
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(x), monai(x))


def test_old_densenet_files_with_dotted_names_load(tmp_path, source):
    original = source("densenet121")
    dotted = {re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", k): v
              for k, v in original.state_dict().items()}  # fmt: skip
    torch.save(dotted, tmp_path / "old.pth")
    network = densenet()
    assert init_weights(network, tmp_path / "old.pth").share == 1
    x = torch.randn(1, 3, 64, 64)
    assert relative_gap(network.eval()(x), original(x)) <= 1e-5


def test_too_little_is_rejected_with_a_report_and_changes_nothing(tmp_path, source):
    state = {k: v for k, v in source("resnet18").state_dict().items() if "layer4" not in k}
    torch.save(state, tmp_path / "part.pth")
    network = torchvision_resnet(18, in_channels=3)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(WeightsError, match=r"part\.pth: fills 7\d\.\d% .* missing \(layer4"):
        init_weights(network, tmp_path / "part.pth")
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    report = init_weights(network, tmp_path / "part.pth", minimum=0.5)
    assert 0.7 < report.share < 0.8
    assert report.skipped[-2:] == ("fc.weight", "fc.bias")
    with pytest.raises(WeightsError, match=r"fills 0\.0% of DenseNet121"):
        init_weights(densenet(), tmp_path / "part.pth")


def test_a_resnet_with_a_deep_stem_is_rejected_with_a_report(tmp_path, caplog):
    network = torchvision_resnet(18)
    state = dict(network.state_dict())
    state["conv1.0.weight"] = state.pop("conv1.weight")  # as timm's resnet18d has it
    torch.save({name: state[name] for name in state if not name.startswith("bn1.")},
               tmp_path / "deep.pth")  # fmt: skip
    with pytest.raises(WeightsError, match="fills 9"):
        init_weights(network, tmp_path / "deep.pth", minimum=0.99)
    init_weights(network, tmp_path / "deep.pth")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "missing (conv1.weight" in caplog.text


def test_head_is_kept_when_asked_and_pretrained_passes_the_network_through(tmp_path, source):
    path = saved(tmp_path, source("resnet18"))
    network = torchvision_resnet(18, in_channels=3, num_classes=5)
    head = network.fc.weight.clone()
    init_weights(network, path, keep_head=True)
    assert torch.equal(head, network.fc.weight)
    assert pretrained(network) is network
    assert pretrained(network, path) is network
    assert not torch.equal(head, network.fc.weight)


def test_our_own_checkpoint_is_not_a_transfer(tmp_path):
    network = ResNet("basic", [1, 1, 1, 1], [8, 8, 8, 8], 3, 1, num_classes=2)
    path = saved(tmp_path, network)
    assert init_weights(network, path).source == "same network"


def test_unknown_sizes_are_rejected():
    with pytest.raises(ConfigError, match="depth 19"):
        torchvision_resnet(19)
    with pytest.raises(ConfigError, match="efficientnet-b9"):
        torchvision_efficientnet("efficientnet-b9")


def test_large_efficientnets_have_torchvisions_epsilon():
    network = torchvision_efficientnet("efficientnet-b5", num_classes=2)
    assert {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
