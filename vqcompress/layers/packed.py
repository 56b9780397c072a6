"""What `VQLinear` and `VQConv2d` share: a packed weight as frozen parameters, and nothing dense."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vqcompress import kernels
from vqcompress.errors import UnsupportedError
from vqcompress.formats import FormatSpec
from vqcompress.layers.shared_codebooks import SharedCodebooks, keep_dtype
from vqcompress.matrix_view import matrix_shape, stored_shape
from vqcompress.quantized_weight import QuantizedWeight


class PackedLayer(nn.Module):
    """A layer whose ``weight`` is int8 codes; companions lie beside it under the names of its spec.

    ``spec`` is the geometry of the code, ``dense_shape`` the shape of the weight that it stands for. ``forward`` changes
    no tensor: decoding happens anew each time, in the kernel that suits device and format.
    """

    spec: FormatSpec
    dense_shape: tuple[int, ...]
    companion_names: tuple[str, ...]
    layout: str
    weight: nn.Parameter
    bias: nn.Parameter | None

    def _hold(
        self,
        spec: FormatSpec,
        dense_shape: tuple[int, ...],
        tensors: Mapping[str, Tensor],
        bias: nn.Parameter | None,
        shared: SharedCodebooks | None,
    ) -> None:
        """Register codes, bias and companions; the bias comes before the companions, since a model's dtype is read
        off its first floating-point parameter."""
        shape, codes = tuple(dense_shape), tensors["weight"]
        stored = tuple(name for name in spec.tensor_shapes(*matrix_shape(shape)) if name != "weight")
        if codes.dim() != len(shape):
            codes = codes.reshape(stored_shape(len(shape), (1, codes.numel())))
        # Past nn.Module.register_parameter too, whose checks cost as much as the rest of loading a layer.
        self._parameters["weight"] = _frozen(codes)
        self._parameters["bias"] = bias
        for name in stored:
            self._parameters[name] = _frozen(tensors[name])
        names = ("weight", *stored, *(("codebooks",) if shared is not None else ()))
        layout = kernels.layout_to_text(kernels.PackedLayout(spec, shape, names))
        # Past nn.Module.__setattr__, which takes its time, and by which shared codebooks would be stored under every layer.
        self.__dict__ |= {"spec": spec, "dense_shape": shape, "companion_names": stored}
        self.__dict__ |= {"layout": layout, "shared_codebooks": shared}

    def tensors(self) -> dict[str, Tensor]:
        """Codes ``[1, bytes]`` and all companions, a shared codebook under ``codebooks`` included."""
        codes = self.weight
        named = {"weight": codes if codes.dim() == 2 else codes.reshape(1, -1)}
        named |= {name: as_float16(getattr(self, name)) for name in self.companion_names}
        if (shared := self.__dict__["shared_codebooks"]) is not None:
            named["codebooks"] = as_float16(shared(self.spec.codebook))  # type: ignore[union-attr]
        return named

    def dense_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the codes stand for, of ``dense_shape``."""
        return kernels.decode(self.spec, self.dense_shape, self.tensors(), dtype)

    def quantized_weight(self) -> QuantizedWeight:
        """The packed weight as plain data (detached views of the parameters)."""
        tensors = {name: tensor.detach() for name, tensor in self.tensors().items()}
        shared = {"codebooks": tensors.pop("codebooks")} if self.__dict__["shared_codebooks"] is not None else {}
        return QuantizedWeight(self.spec, self.dense_shape, tensors, shared)

    def _check_input(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise UnsupportedError(
                f"a {type(self).__name__} got an input of {x.dtype}: some caller cast activations to `weight.dtype`, which for "
                "packed weights is the dtype of the codes; keep this layer dense"
            )

    def _apply(self, fn, recurse=True):
        companions = [getattr(self, name) for name in self.companion_names]
        return super()._apply(keep_dtype(fn, companions), recurse)

    def extra_repr(self) -> str:
        """Shape and spec, for ``print(model)``."""
        return f"{'x'.join(map(str, self.dense_shape))}, {self.spec}, bias={self.bias is not None}"


def _frozen(tensor: Tensor) -> nn.Parameter:
    return tensor if type(tensor) is nn.Parameter else nn.Parameter(tensor, requires_grad=False)


def as_float16(tensor: Tensor) -> Tensor:
    """A float16 tensor that a loader holds as int16 bits, so that casting to the load dtype passes it by."""
    return tensor.view(torch.float16) if tensor.dtype == torch.int16 else tensor
