"""Names of a Stable Diffusion UNet's tensors in the original (LDM) layout.

Source: ``convert_ldm_unet_checkpoint`` in ``diffusers/loaders/single_file_utils.py``, inverted.
"""

from __future__ import annotations

import re

from vqcompress.errors import UnsupportedError

UNET_PREFIX = "model.diffusion_model."
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_MIDDLE = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}
UNET_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
UNET_MIDDLE_BLOCK = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


class UNetNames:
    """Original names for a UNet of ``depth`` layers a block with the tensors ``keys``."""

    def __init__(self, depth: int, keys: frozenset[str]) -> None:
        self.depth, self.keys = depth, keys

    def of(self, key: str) -> str:
        """The original name of the tensor that diffusers calls ``key``."""
        layer, _, leaf = key.rpartition(".")
        if layer in UNET_ENDS:
            return f"{UNET_ENDS[layer]}.{leaf}"
        if found := UNET_BLOCK.fullmatch(key):
            return self._block(found[1], int(found[2]), found[3], int(found[4]), found[5])
        found = UNET_MIDDLE_BLOCK.fullmatch(key)
        if found and (found[1], found[2]) in UNET_MIDDLE:
            return f"middle_block.{UNET_MIDDLE[found[1], found[2]]}.{_inner(found[1], found[3])}"
        raise UnsupportedError(
            f"the UNet's tensor {key!r} has no name in the original layout; write a diffusers folder instead"
        )

    def _block(self, side: str, block: int, kind: str, layer: int, rest: str) -> str:
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (self.depth + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            place = 2 if self._has_attention(block) else 1
            return f"output_blocks.{block * (self.depth + 1) + self.depth}.{place}.{rest}"
        number = block * (self.depth + 1) + layer + (1 if side == "down" else 0)
        place = 0 if kind == "resnets" else 1
        return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{place}.{_inner(kind, rest)}"

    def _has_attention(self, block: int) -> bool:
        return any(key.startswith(f"up_blocks.{block}.attentions.{self.depth}.") for key in self.keys)


def _inner(kind: str, rest: str) -> str:
    """A name inside a ResNet block; attention blocks have the same names in both layouts."""
    layer, _, leaf = rest.rpartition(".")
    return f"{UNET_RESNET[layer]}.{leaf}" if kind == "resnets" and layer in UNET_RESNET else rest
