"""A packed weight as plain data: a spec, a dense shape, and the tensors that go to disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from vqcompress.formats import FormatSpec
from vqcompress.matrix_view import from_transposed, matrix_shape, stored_shape


@dataclass(frozen=True)
class QuantizedWeight:
    """One weight, quantized.

    ``shape`` is the dense weight's (``[out, in]`` or ``[out, in, kh, kw]``); ``tensors`` hold ``weight`` (int8 codes)
    and its quantization parameters as `FormatSpec.tensor_shapes` lists them; ``shared`` holds a codebook that several
    layers of a component use and that is stored once, outside this layer.
    """

    spec: FormatSpec
    shape: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    shared: Mapping[str, Tensor] = field(default_factory=dict)

    def decode(self) -> Tensor:
        """The weight that the codes stand for, float32, of the dense ``shape``."""
        outputs, columns = matrix_shape(self.shape)
        tensors = {**self.shared, **self.tensors}
        return from_transposed(self.spec.decode_transposed(outputs, columns, tensors), self.shape)

    def state_dict(self) -> dict[str, Tensor]:
        """What is stored with the layer, codes under ``weight`` in their on-disk shape."""
        stored = dict(self.tensors)
        stored["weight"] = stored["weight"].reshape(stored_shape(len(self.shape), self.code_shape))
        return stored

    @property
    def code_shape(self) -> tuple[int, int]:
        """Shape of the packed codes, always ``(1, bytes)``."""
        return 1, self.tensors["weight"].numel()

    @property
    def nbytes(self) -> int:
        """Bytes stored with the layer; a shared codebook is counted once, by the component."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Everything stored with the layer (codes, codebooks, scales, rates) over the number of weights."""
        return 8 * self.nbytes / math.prod(self.shape)

    @property
    def outliers(self) -> int:
        """How many weights are stored beside the codes."""
        return getattr(self.spec, "outliers", 0)

    @property
    def uses_shared_codebook(self) -> bool:
        """Whether part of the code lies in the component's shared codebooks."""
        return self.spec.codebook is not None
