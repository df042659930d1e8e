"""Attention rollout: which patches a vision transformer's class token has gathered from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn

from medvol.core import ConfigError
from medvol.explain.cam import Explainer, plain_input
from medvol.explain.capture import ClassIndex, undisturbed
from medvol.explain.grid import token_grid


class AttentionRollout(Explainer):
    """Product over the layers of (attention averaged over heads + identity) / 2.

    The map does not depend on the class: it shows what was looked at, not what counted for it.

    Args:
        network: A transformer made of MONAI's ``SABlock``, such as ``monai.networks.nets.ViT``.

    Source:
        Abnar & Zuidema 2020, ACL, doi:10.18653/v1/2020.acl-main.385.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.blocks = [m for m in network.modules() if isinstance(m, SABlock)]
        if not self.blocks:
            raise ConfigError(
                f"{type(network).__name__} holds no self-attention; use Grad-CAM instead"
            )

    def raw_maps(self, x: Tensor, class_index: ClassIndex = None) -> dict[str, Tensor]:
        """Share of the class token (of the mean token, without one) that each patch holds."""
        del class_index
        x = plain_input(x)
        with undisturbed(self.network), _attention_kept(self.blocks):
            self.network(x)
            maps = [block.att_mat.mean(1) for block in self.blocks]
        flow = own = torch.eye(maps[0].shape[-1], device=maps[0].device)[None]
        for matrix in maps:
            mixed = matrix + own
            flow = (mixed / mixed.sum(-1, keepdim=True)) @ flow
        grid, extra = token_grid(flow.shape[-1], x.shape[2:])
        gathered = flow[:, 0, 1:] if extra else flow.mean(1)
        return {"attention": gathered.reshape(len(x), 1, *grid)}


@contextmanager
def _attention_kept(blocks: list[SABlock]) -> Iterator[None]:
    before = [
        (block, block.save_attn, block.use_flash_attention, block.att_mat) for block in blocks
    ]
    for block in blocks:
        block.save_attn, block.use_flash_attention = True, False
    try:
        yield
    finally:
        for block, save, flash, matrix in before:
            block.save_attn, block.use_flash_attention, block.att_mat = save, flash, matrix
