"""Names of an autoencoder's tensors in the original (LDM) layout.

Source: ``convert_ldm_vae_checkpoint`` in ``diffusers/loaders/single_file_utils.py``, backwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

PREFIX = "first_stage_model."
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
RESNET = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)")
SAMPLER = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(down|up)samplers\.0\.(.+)")
MIDDLE_RESNET = re.compile(r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.(.+)")
MIDDLE_ATTENTION = re.compile(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)")


def ldm_vae(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an ``AutoencoderKL`` under their original names; attention matrices are 1×1 convolutions there."""
    last = len(config["block_out_channels"]) - 1
    return {PREFIX + _name(key, last): _shaped(key, tensor) for key, tensor in state.items()}


def _name(key: str, last: int) -> str:
    """``last`` is the number of the last block: the original counts the decoder's from the image."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if found := RESNET.fullmatch(key):
        return f"{found[1]}.{_block(found, last)}.block.{found[3]}.{found[4]}"
    if found := SAMPLER.fullmatch(key):
        return f"{found[1]}.{_block(found, last)}.{found[3]}sample.{found[4]}"
    if found := MIDDLE_RESNET.fullmatch(key):
        return f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}"
    if found := MIDDLE_ATTENTION.fullmatch(key):
        return f"{found[1]}.mid.attn_1.{ATTENTION[found[2]]}.{found[3]}"
    return key


def _block(found: re.Match[str], last: int) -> int:
    return int(found[2]) if found[1] == "encoder.down" else last - int(found[2])


def _shaped(key: str, tensor: Tensor) -> Tensor:
    found = MIDDLE_ATTENTION.fullmatch(key)
    return tensor[:, :, None, None] if found and tensor.ndim == 2 else tensor
