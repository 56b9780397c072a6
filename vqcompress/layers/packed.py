"""Linear and convolution layers with a packed weight. Codes are frozen parameters; no dense weight is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqcompress import kernels
from vqcompress.errors import UnsupportedError
from vqcompress.formats import FormatSpec
from vqcompress.kernels.unfolded import convolution, is_unfolded
from vqcompress.kernels.weight_source import WeightSource
from vqcompress.layers.repeated_input import RepeatedInput, applies
from vqcompress.layers.shared_codebooks import SharedCodebooks, keep_dtype, save_in_dtype
from vqcompress.matrix_view import matrix_shape, stored_shape
from vqcompress.quantized_weight import QuantizedWeight

# Attributes of a convolution and of a Linear other than weight and bias.
CONV2D_GEOMETRY: tuple[str, ...] = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
    "padding_mode",
    "_reversed_padding_repeated_twice",
)
LINEAR_GEOMETRY = ("in_features", "out_features")


class PackedLayer(nn.Module):
    """A layer whose ``weight`` is int8 codes. Its quantization parameters have the names listed in its spec.

    ``spec`` is the geometry of the code, ``dense_shape`` the shape of the dense weight. ``forward`` changes no tensor.
    It decodes the weight on every call, with the kernel for the device and format, unless there is a
    `vqcompress.layers.dense_budget`.
    """

    spec: FormatSpec
    dense_shape: tuple[int, ...]
    quantization_parameter_names: tuple[str, ...]
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
        """Register codes, bias and quantization parameters.

        The bias comes before the parameters, because a model's dtype is that of its first floating-point parameter.
        """
        shape, codes = tuple(dense_shape), tensors["weight"]
        stored = tuple(name for name in spec.tensor_shapes(*matrix_shape(shape)) if name != "weight")
        if codes.dim() != len(shape):
            codes = codes.reshape(stored_shape(len(shape), (1, codes.numel())))
        # nn.Module.register_parameter is skipped: its checks take as long as the rest of loading a layer.
        self._parameters["weight"] = _frozen(codes)
        self._parameters["bias"] = bias
        for name in stored:
            self._parameters[name] = _frozen(tensors[name])
        names = ("weight", *stored, *(("codebooks",) if shared is not None else ()))
        layout = kernels.layout_to_text(kernels.PackedLayout(spec, shape, names))
        # nn.Module.__setattr__ is skipped: it is slow and would register the shared codebooks under every layer.
        self.__dict__ |= {"spec": spec, "dense_shape": shape, "quantization_parameter_names": stored}
        self.__dict__ |= {"layout": layout, "shared_codebooks": shared, "weight_source": None, "repeated_input": None}

    def take_weight_from(self, source: WeightSource | None) -> None:
        """Get the decoded weight from ``source``, or from one that keeps none; what was kept before is freed."""
        if (before := self.__dict__.get("weight_source")) is not None:
            before.drop()
        self.__dict__["weight_source"] = source

    def _source(self) -> WeightSource | None:
        """Where calls get the weight; none while they are traced."""
        if torch.compiler.is_compiling():  # not even looked up: a graph would be made anew once the layer has one
            return None
        if (source := self.__dict__["weight_source"]) is None:
            source = self.__dict__["weight_source"] = WeightSource()
        return source

    def tensors(self) -> dict[str, Tensor]:
        """Codes ``[1, bytes]`` and all quantization parameters, including a shared codebook, as ``codebooks``."""
        codes = self._parameters["weight"]
        named = {"weight": codes if codes.dim() == 2 else codes.reshape(1, -1)}
        named |= {name: as_float16(getattr(self, name)) for name in self.quantization_parameter_names}
        if (shared := self.__dict__["shared_codebooks"]) is not None:
            named["codebooks"] = as_float16(shared(self.spec.codebook))  # type: ignore[union-attr]
        return named

    def dense_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The decoded weight, of shape ``dense_shape``."""
        return kernels.decode(self.spec, self.dense_shape, self.tensors(), dtype)

    def quantized_weight(self) -> QuantizedWeight:
        """The packed weight as plain data (detached views of the parameters)."""
        tensors = {name: tensor.detach() for name, tensor in self.tensors().items()}
        shared = {"codebooks": tensors.pop("codebooks")} if self.__dict__["shared_codebooks"] is not None else {}
        return QuantizedWeight(self.spec, self.dense_shape, tensors, shared)

    def _check_input(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise UnsupportedError(
                f"a {type(self).__name__} got an input of {x.dtype}: some caller cast activations to `weight.dtype`, "
                "which for packed weights is the dtype of the codes; keep this layer dense"
            )

    def _apply(self, fn, recurse=True):
        for known in ("weight_source", "repeated_input"):
            if self.__dict__[known] is not None:
                self.__dict__[known].drop()
        kept = [getattr(self, name) for name in self.quantization_parameter_names]
        return super()._apply(keep_dtype(fn, kept), recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        shapes = self.spec.tensor_shapes(*matrix_shape(self.dense_shape))
        dtypes = {f"{prefix}{name}": shapes[name][1] for name in self.quantization_parameter_names}
        save_in_dtype(destination, dtypes, keep_vars)

    def extra_repr(self) -> str:
        """Shape and spec, for ``print(model)``."""
        return f"{'x'.join(map(str, self.dense_shape))}, {self.spec}, bias={self.bias is not None}"


class VQLinear(PackedLayer, nn.Linear):
    """Replaces ``dense``. `FormatSpec.tensor_shapes` lists the names and shapes of ``tensors``."""

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

    def forward(self, input: Tensor) -> Tensor:  # named as in nn.Linear: motion modules pass it by keyword
        """``[..., in] -> [..., out]`` in the dtype of ``input``."""
        if not applies(input):
            return self._product(input)
        repeated = self.__dict__["repeated_input"] or self._repeated()
        tensors = self._own_tensors() if repeated.seen(input) else ()
        if tensors and (output := repeated.output(input, tensors)) is not None:
            return output
        output = self._product(input, plain=True)
        if tensors:
            repeated.keep(input, tensors, output)
        return output

    def _product(self, x: Tensor, plain: bool = False) -> Tensor:
        """Of an input that `applies` has found to be ``plain``, less is looked at again."""
        source = (self.__dict__["weight_source"] if plain else None) or self._source()
        if source is not None and (weight := source.found(x, self._parameters, plain)) is not None:
            return F.linear(x, weight, self._parameters["bias"])
        self._check_input(x)
        return kernels.packed_linear(x, self.layout, self.tensors(), self.bias, source)

    def _repeated(self) -> RepeatedInput:
        repeated = self.__dict__["repeated_input"] = RepeatedInput()
        return repeated

    def _own_tensors(self) -> list[Tensor]:
        """Everything that an output depends on but the input."""
        return [*self.tensors().values(), *(() if self.bias is None else (self.bias,))]


class VQConv2d(PackedLayer, nn.Conv2d):
    """Replaces ``dense``. `FormatSpec.tensor_shapes` lists the names and shapes of ``tensors``."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """PEFT makes a conv adapter by ``type(base_layer)(in_channels, rank, …, bias=False)``, which must be dense."""
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
        self.__dict__ |= {name: dense.__dict__[name] for name in CONV2D_GEOMETRY}
        shape = (dense.out_channels, dense.in_channels, *dense.kernel_size)
        self._hold(spec, shape, tensors, dense.bias, shared)
        self.training = dense.training

    def forward(self, input: Tensor) -> Tensor:
        """``[batch, in, height, width] -> [batch, out, …]`` in the dtype of ``input``."""
        x = input
        self._check_input(x)
        padding = self.padding
        if isinstance(padding, str) or self.padding_mode != "zeros":
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), (0, 0)
        geometry, source = kernels.ConvGeometry(self.stride, padding, self.dilation), self._source()
        if source is not None:
            weight = source.found(x, self._parameters, matrix=is_unfolded(x, self.dense_shape))
            if weight is not None:
                return convolution(x, weight, self._parameters["bias"], self.dense_shape[2:], geometry)
        return kernels.packed_conv2d(x, self.layout, self.tensors(), self.bias, geometry, source)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return tensor if type(tensor) is nn.Parameter else nn.Parameter(tensor, requires_grad=False)


def as_float16(tensor: Tensor) -> Tensor:
    """The float16 tensor for ``tensor``, which may hold it as int16 bits so that a loader does not cast it."""
    return tensor.view(torch.float16) if tensor.dtype == torch.int16 else tensor
