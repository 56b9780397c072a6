"""Other libraries' compressed layers, each used only where it is installed: shape, dtype, device -> a layer, or
None."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

Shape = tuple[int, int]
Make = Callable[[Shape, torch.dtype, str], nn.Module | None]


def nf4(shape: Shape, dtype: torch.dtype, device: str) -> nn.Module | None:
    """bitsandbytes NF4, blocks of 64."""
    if device != "cuda" or find_spec("bitsandbytes") is None:
        return None
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(shape[1], shape[0], compute_dtype=dtype, quant_type="nf4")
    return layer.to(device)


def int4(shape: Shape, dtype: torch.dtype, device: str) -> nn.Module | None:
    """torchao int4 weight-only, groups of 128 (its kernels take bfloat16 on a GPU)."""
    if device != "cuda" or dtype != torch.bfloat16 or find_spec("torchao") is None or shape[1] % 128:
        return None
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    holder = nn.Sequential(nn.Linear(shape[1], shape[0], dtype=dtype, device=device))
    quantize_(holder, Int4WeightOnlyConfig(group_size=128))
    return holder[0]


def aqlm(shape: Shape, dtype: torch.dtype, device: str) -> nn.Module | None:
    """AQLM's layer in the geometry its kernels serve: 2 codebooks of 256, groups of 8 inputs."""
    if device != "cuda" or find_spec("aqlm") is None:
        return None
    from aqlm import QuantizedLinear

    layer = QuantizedLinear(shape[1], shape[0], 8, 1, 2, 8, bias=True, device=device, dtype=dtype)
    layer.codes.data.random_(-128, 128)
    for name in ("codebooks", "scales", "bias"):
        nn.init.normal_(getattr(layer, name), std=0.02)
    return layer


class _Gguf(nn.Module):
    """Q4_0 blocks decoded by diffusers, then multiplied: what its GGUF layers do in their forward."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        blocks = shape[0] * shape[1] // 32
        packed = torch.randint(0, 256, (blocks, 18), dtype=torch.uint8, device=device)
        packed[:, :2] = torch.full((blocks, 1), 0.01, dtype=torch.float16, device=device).view(torch.uint8)
        self.register_buffer("packed", packed)
        self.shape, self.dtype = shape, dtype

    def forward(self, x: Tensor) -> Tensor:
        from diffusers.quantizers.gguf.utils import dequantize_blocks_Q4_0

        weight = dequantize_blocks_Q4_0(self.packed, 32, 18, self.dtype)
        return nn.functional.linear(x, weight.reshape(self.shape).to(x.dtype))


def gguf(shape: Shape, dtype: torch.dtype, device: str) -> nn.Module | None:
    """GGUF Q4_0 through diffusers."""
    if find_spec("gguf") is None or find_spec("diffusers") is None or shape[1] % 32:
        return None
    return _Gguf(shape, dtype, device)


PEERS: dict[str, Make] = {
    "bitsandbytes NF4": nf4,
    "torchao int4": int4,
    "AQLM 2x8": aqlm,
    "GGUF Q4_0": gguf,
}
