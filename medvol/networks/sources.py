"""What published checkpoints call their tensors, in MONAI's words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True)
class WeightSource:
    """One kind of checkpoint.

    Attributes:
        name: What reports call it.
        fits: Whether a state for this network is of this kind.
        rename: The state with MONAI's names, for this network.
        faults: How the network differs from the source's, though keys and shapes agree.
    """

    name: str
    fits: Callable[[Mapping[str, Tensor], nn.Module], bool]
    rename: Callable[[Mapping[str, Tensor], nn.Module], State]
    faults: Callable[[nn.Module], list[str]]


def find_source(state: Mapping[str, Tensor], network: nn.Module) -> WeightSource:
    """The kind of a checkpoint; one with the network's own names is ``same network``."""
    return next(source for source in SOURCES if source.fits(state, network))


# -- DenseNet of torchvision

_DENSE = re.compile(r"(denselayer\d+)\.(norm|conv)\.?([12])\.")


def _rename_densenet(state: Mapping[str, Tensor], _network: nn.Module) -> State:
    return {
        _DENSE.sub(r"\1.layers.\2\3.", key).replace("classifier.", "class_layers.out."): value
        for key, value in state.items()
    }


# -- ResNet of torchvision and of MedicalNet: MONAI kept their names


def _is_resnet(state: Mapping[str, Tensor], dims: int) -> bool:
    first = state.get("conv1.weight")  # other ResNets start with a stem of several layers
    return "layer1.0.conv1.weight" in state and first is not None and first.ndim == dims + 2


def _is_medicalnet(state: Mapping[str, Tensor], _network: nn.Module) -> bool:
    return _is_resnet(state, 3) and "fc.weight" not in state


def _is_torchvision_resnet(state: Mapping[str, Tensor], _network: nn.Module) -> bool:
    return (
        _is_resnet(state, 2)
        and state["conv1.weight"].shape[1:] == (3, 7, 7)
        and not any(name.endswith("downsample.0.bias") for name in state)
    )


def _resnet_faults(network: Any) -> list[str]:
    faults = []
    if set(network.conv1.stride) != {2}:
        faults.append(f"its first stride is {network.conv1.stride}, not 2")
    if network.no_max_pool:
        faults.append("it has no max pooling")
    return faults + _epsilon_faults(network, 1e-5)


def _medicalnet_faults(network: Any) -> list[str]:
    faults = _resnet_faults(network)
    for stage, dilation in (("layer3", 2), ("layer4", 4)):
        conv = network.get_submodule(f"{stage}.0.conv2")
        if set(conv.dilation) != {dilation}:
            faults.append(f"its {stage} has dilation {conv.dilation}, not {dilation}")
    return faults


# -- EfficientNet of torchvision and of efficientnet_pytorch

_BLOCK = re.compile(r"features\.(\d)\.(\d+)\.block\.(\d)\.(.+)")
_OLD_BLOCK = re.compile(r"_blocks\.(\d+)\.(.+)")


def _rename_efficientnet(state: Mapping[str, Tensor], network: nn.Module) -> State:
    blocks = _block_names(network)
    has_expansion = {
        match.group(1, 2) for key in state if (match := _BLOCK.match(key)) and match[3] == "3"
    }
    return {_efficientnet_key(k, blocks, has_expansion): v for k, v in state.items()}


def _efficientnet_key(
    key: str, blocks: dict[int, list[str]], has_expansion: set[tuple[str | Any, ...]]
) -> str:
    if match := _BLOCK.match(key):
        stage, item, part = int(match[1]) - 1, int(match[2]), int(match[3])
        names = blocks.get(stage, [])
        if item >= len(names):
            return key
        inner = _inner_key(part + (match.group(1, 2) not in has_expansion), match[4])
        return f"_blocks.{stage}.{names[item]}.{inner}"
    for old, new in (
        ("features.0.0.", "_conv_stem."),
        ("features.0.1.", "_bn0."),
        ("features.8.0.", "_conv_head."),
        ("features.8.1.", "_bn1."),
        ("classifier.1.", "_fc."),
    ):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _inner_key(part: int, rest: str) -> str:
    """Parts are 0 expansion, 1 depthwise, 2 squeeze, 3 projection; in each, 0 conv and 1 norm."""
    if part == 2:
        return rest.replace("fc1.", "_se_reduce.").replace("fc2.", "_se_expand.")
    conv = {0: "_expand_conv.", 1: "_depthwise_conv.", 3: "_project_conv."}[part]
    norm = {0: "_bn0.", 1: "_bn1.", 3: "_bn2."}[part]
    return (conv if rest.startswith("0.") else norm) + rest[2:]


def _rename_old_efficientnet(state: Mapping[str, Tensor], network: nn.Module) -> State:
    where = {
        int(n): f"{stage}.{n}" for stage, names in _block_names(network).items() for n in names
    }

    def rename(key: str) -> str:
        match = _OLD_BLOCK.match(key)
        if match is None or int(match[1]) not in where:
            return key
        return f"_blocks.{where[int(match[1])]}.{match[2]}"

    return {rename(key): value for key, value in state.items()}


def _block_names(network: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = defaultdict(list)
    for stage, stack in getattr(network, "_blocks", nn.Sequential()).named_children():
        names[int(stage)] = [name for name, _ in stack.named_children()]
    return dict(names)


def _efficientnet_faults(network: Any) -> list[str]:
    if not isinstance(network._conv_stem_padding, nn.Identity):
        return ["its padding is TensorFlow's, one-sided"]
    large = len(next(iter(network._blocks.children()))) > 2
    return _epsilon_faults(network, 1e-3 if large else 1e-5)


def _old_efficientnet_faults(network: Any) -> list[str]:
    if isinstance(network._conv_stem_padding, nn.Identity):
        return ["its padding is symmetric, not TensorFlow's"]
    return _epsilon_faults(network, 1e-3)


# -- Vision transformers of timm, also inside open_clip (BiomedCLIP)

_PATCHES = "patch_embed.proj.weight"


def _rename_timm(state: Mapping[str, Tensor], _network: nn.Module) -> State:
    prefix = next(key for key in state if key.endswith(_PATCHES)).removesuffix(_PATCHES)
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    others = {k: v for k, v in state.items() if not k.startswith(prefix)}
    renamed = {_timm_key(key): value for key, value in own.items()}
    if {"cls_token", "pos_embed"} <= own.keys():
        # timm adds a position to the class token too; MONAI adds none, so it moves into the token.
        renamed["cls_token"] = own["cls_token"] + own["pos_embed"][:, :1]
        renamed["patch_embedding.position_embeddings"] = own["pos_embed"][:, 1:]
        renamed.pop("pos_embed")
    return renamed | others


def _timm_key(key: str) -> str:
    key = key.replace("patch_embed.proj.", "patch_embedding.patch_embeddings.")
    key = key.replace(".attn.proj.", ".attn.out_proj.")
    key = key.replace(".mlp.fc1.", ".mlp.linear1.").replace(".mlp.fc2.", ".mlp.linear2.")
    if key in ("head.weight", "head.bias"):
        key = f"classification_{key}"
    return key


def _timm_faults(network: Any) -> list[str]:
    epsilons = {m.eps for m in network.modules() if isinstance(m, nn.LayerNorm)}
    return [] if epsilons == {1e-6} else [f"its LayerNorm epsilon is {epsilons}, not 1e-6"]


# -- shared


def _epsilon_faults(network: nn.Module, wanted: float) -> list[str]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    found = {m.eps for m in network.modules() if isinstance(m, kinds)}
    return [] if found <= {wanted} else [f"its BatchNorm epsilon is {found}, not {wanted}"]


def _has(key: str) -> Callable[[Mapping[str, Tensor], nn.Module], bool]:
    return lambda state, _network: any(name.endswith(key) for name in state)


def _own_names(state: Mapping[str, Tensor], network: nn.Module) -> bool:
    """Every tensor of the network is there with its shape: our own file, no transfer."""
    wanted = network.state_dict()
    return all(k in state and state[k].shape == v.shape for k, v in wanted.items())


def _unchanged(state: Mapping[str, Tensor], _network: nn.Module) -> State:
    return dict(state)


def _faultless(_network: nn.Module) -> list[str]:
    return []


SOURCES = (
    WeightSource("timm ViT", _has(_PATCHES), _rename_timm, _timm_faults),
    WeightSource("torchvision ResNet", _is_torchvision_resnet, _unchanged, _resnet_faults),
    WeightSource("same network", _own_names, _unchanged, _faultless),
    WeightSource("MedicalNet ResNet", _is_medicalnet, _unchanged, _medicalnet_faults),
    WeightSource("torchvision DenseNet", _has("features.denseblock1.denselayer1.norm1.weight"),
           _rename_densenet, _faultless),
    WeightSource("torchvision DenseNet", _has("features.denseblock1.denselayer1.norm.1.weight"),
           _rename_densenet, _faultless),
    WeightSource("torchvision EfficientNet", _has("features.1.0.block.0.0.weight"),
           _rename_efficientnet, _efficientnet_faults),
    WeightSource("EfficientNet-PyTorch", _has("_blocks.0._depthwise_conv.weight"),
           _rename_old_efficientnet, _old_efficientnet_faults),
    WeightSource("same network", lambda _s, _n: True, _unchanged, _faultless),
)  # fmt: skip
