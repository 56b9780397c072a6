"""Names of text encoders' tensors in the original layouts: OpenAI's CLIP and OpenCLIP.

Source: ``convert_ldm_clip_checkpoint`` and ``convert_open_clip_checkpoint`` in ``diffusers/loaders/single_file_utils.py``,
backwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

LEVEL = "text_model."
OPEN_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
PARTS = ("q", "k", "v")


def clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A ``CLIPTextModel`` as the original checkpoints hold it: transformers' names of before version 5.6."""
    return {f"{prefix}{LEVEL}{key.removeprefix(LEVEL)}": tensor for key, tensor in state.items()}


def open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A CLIP text model, with or without projection, under OpenCLIP's names; query, key and value in one matrix."""
    plain = {key.removeprefix(LEVEL): tensor for key, tensor in state.items()}
    named: dict[str, Tensor] = {}
    for key, tensor in plain.items():
        found = LAYER.fullmatch(key)
        if key == "text_projection.weight":
            named["text_projection"] = tensor.T.contiguous()
        elif found is None:
            named[OPEN_ENDS[key]] = tensor
        elif found[2] in OPEN_LAYER:
            named[f"transformer.resblocks.{found[1]}.{OPEN_LAYER[found[2]]}.{found[3]}"] = tensor
        elif found[2] == "self_attn.q_proj":
            parts = [plain[f"encoder.layers.{found[1]}.self_attn.{part}_proj.{found[3]}"] for part in PARTS]
            named[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}"] = torch.cat(parts)
    return {prefix + key: tensor for key, tensor in named.items()}
