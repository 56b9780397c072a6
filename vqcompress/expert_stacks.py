"""Experts whose weights lie stacked in one 3-D parameter ``[experts, in, out]``, as layers of their own and back.

A code is of one matrix, with the second moment of what that matrix reads. So while experts are quantized or packed,
each has a Linear ``<stack>.<number>`` in place of its slice. The network's own code still indexes the stack and
multiplies with a slice, or hands the stack to a grouped product: both then call the layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError, UnsupportedError

STACKED: dict[str, tuple[str, ...]] = {"SwiGLUExperts": ("gate_up_proj", "down_proj")}
"""Class of a module -> its stacked parameters, each ``[experts, in, out]``: Nucleus-Image is the only denoiser of
diffusers with such."""
PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.mm)


class ExpertMatrix:
    """``Wᵀ [in, out]`` of one expert: ``x @ matrix`` calls its layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in PRODUCTS or kwargs or len(args) != 2 or not isinstance(args[1], cls):
            raise UnsupportedError(
                f"{getattr(function, '__name__', function)} of an expert's packed weight: only products x @ weight are "
                "known; dequantize the model, or keep its experts dense (ignore)"
            )
        return args[1].layer(args[0])


class ExpertStack(nn.ModuleList):
    """The layers of all experts in order, where the network expects ``[experts, in, out]``."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) if isinstance(index, slice) else ExpertMatrix(super().__getitem__(int(index)))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "").lstrip("_") != "grouped_mm":
            raise UnsupportedError(
                f"{getattr(function, '__name__', function)} of a stack of packed experts: indexing and grouped_mm are "
                "known; dequantize the model, or keep its experts dense (ignore)"
            )
        return _grouped(*args, **(kwargs or {}))


def _grouped(x: Tensor, stack: ExpertStack, offs: Tensor, bias: Tensor | None = None, out_dtype: Any = None) -> Tensor:
    """``x [tokens, in]``, of which expert ``e`` has rows ``offs[e - 1] … offs[e]``; rows after the last are zero."""
    ends = offs.tolist()
    parts = [layer(x[start:end]) for layer, start, end in zip(stack, [0, *ends], ends, strict=False)]
    out = torch.cat([*parts, parts[0].new_zeros(len(x) - ends[-1], parts[0].shape[-1])])
    return (out if bias is None else out + bias).to(out_dtype or out.dtype)


def stacks(component: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name of the stack, module that has it, key there) of every stack of ``component``, taken apart or not."""
    for name, module in component.named_modules():
        for key in STACKED.get(type(module).__name__, ()):
            if hasattr(module, key):
                yield f"{name}.{key}".lstrip("."), module, key


def expert_shapes(weight: Tensor) -> list[tuple[int, int]]:
    """``(out, in)`` of each expert in a stack ``[experts, in, out]``."""
    return [(weight.shape[2], weight.shape[1])] * weight.shape[0]


def unstack(component: nn.Module, layers: Collection[str]) -> None:
    """Take every stack apart, in place, that has an expert among ``layers``, one stack after the other."""
    wanted = {layer.rpartition(".")[0] for layer in layers}
    for name, module, key in list(stacks(component)):
        weight = getattr(module, key)
        if name in wanted and isinstance(weight, nn.Parameter):
            delattr(module, key)
            setattr(module, key, ExpertStack(_layer(matrix, weight.requires_grad) for matrix in weight.detach()))


def _layer(matrix: Tensor, trainable: bool) -> nn.Linear:
    """A Linear whose weight is ``matrixᵀ [out, in]``, in memory of its own."""
    columns, outputs = matrix.shape
    with torch.device("meta"):
        layer = nn.Linear(columns, outputs, bias=False)
    layer.weight = nn.Parameter(matrix.t().contiguous(), requires_grad=trainable)
    return layer


def restack(component: nn.Module) -> None:
    """Put every stack of which no expert is packed together again, in place."""
    for name, module, key in list(stacks(component)):
        stack = getattr(module, key)
        if isinstance(stack, ExpertStack) and all(type(layer) is nn.Linear for layer in stack):
            if len({(layer.weight.dtype, layer.weight.shape) for layer in stack}) > 1:
                raise ArchitectureError(f"{name}: its experts differ in dtype or shape; cast the model to one dtype")
            weight = torch.stack([layer.weight.detach().t() for layer in stack])
            trainable = stack._modules["0"].weight.requires_grad  # type: ignore[union-attr]
            delattr(module, key)
            setattr(module, key, nn.Parameter(weight, requires_grad=bool(trainable)))
