"""A Conv2d layer with a packed weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vqcompress import kernels
from vqcompress.formats import FormatSpec
from vqcompress.layers.packed import PackedLayer
from vqcompress.layers.shared_codebooks import SharedCodebooks

GEOMETRY: tuple[str, ...] = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
)
GEOMETRY += ("output_padding", "groups", "padding_mode", "_reversed_padding_repeated_twice")


class VQConv2d(PackedLayer, nn.Conv2d):
    """Takes the place of ``dense``; ``tensors`` as `FormatSpec.tensor_shapes` lists them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """PEFT makes a conv adapter as ``type(base_layer)(in_channels, rank, …, bias=False)`` and wants it dense."""
        if args and isinstance(args[0], int):
            return nn.Conv2d(*args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        dense: nn.Conv2d,
        spec: FormatSpec,
        tensors: Mapping[str, Tensor],
        shared: SharedCodebooks | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {name: dense.__dict__[name] for name in GEOMETRY}
        shape = (dense.out_channels, dense.in_channels, *dense.kernel_size)
        self._hold(spec, shape, tensors, dense.bias, shared)
        self.training = dense.training

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, in, height, width] -> [batch, out, …]`` in the dtype of ``x``."""
        self._check_input(x)
        padding = self.padding
        if isinstance(padding, str) or self.padding_mode != "zeros":
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), (0, 0)
        return kernels.packed_conv2d(x, self.layout, self.tensors(), self.bias, self.stride, padding, self.dilation)
