"""A Linear layer with a packed weight."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vqcompress import kernels
from vqcompress.formats import FormatSpec
from vqcompress.layers.packed import PackedLayer
from vqcompress.layers.shared_codebooks import SharedCodebooks


class VQLinear(PackedLayer, nn.Linear):
    """Takes the place of ``dense``; ``tensors`` as `FormatSpec.tensor_shapes` lists them."""

    def __init__(
        self,
        dense: nn.Linear,
        spec: FormatSpec,
        tensors: Mapping[str, Tensor],
        shared: SharedCodebooks | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self._hold(spec, (dense.out_features, dense.in_features), tensors, dense.bias, shared)
        self.training = dense.training

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in] -> [..., out]`` in the dtype of ``x``."""
        self._check_input(x)
        return kernels.packed_linear(x, self.layout, self.tensors(), self.bias)
