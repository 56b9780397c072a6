"""Codebooks shared by several layers of a component, stored once at the component's root."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

SHARED_NAME = "vq_shared"


class SharedCodebooks(nn.Module):
    """One frozen parameter per codebook name, registered as ``vq_shared`` at the component's root.

    Layers call this module to get a codebook instead of reading its parameter. Offloading hooks load a module's
    parameters before its forward and unload them after it, so this makes them work here. The call returns a view:
    some hooks unload a parameter by changing its ``.data``, which does not affect an existing view.
    """

    def __init__(self, codebooks: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, codebook in codebooks.items():
            self.register_parameter(name, nn.Parameter(codebook, requires_grad=False))

    def forward(self, name: str) -> Tensor:
        """The codebook of that name, ``[codebooks, 2**code_bits, dimension]``."""
        codebook = getattr(self, name)
        return codebook.view_as(codebook)

    def _apply(self, fn, recurse=True):
        return super()._apply(keep_dtype(fn, list(self.parameters())), recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_in_dtype(destination, {f"{prefix}{name}": torch.float16 for name in self._parameters}, keep_vars)


def save_in_dtype(state: dict[str, Tensor], dtypes: Mapping[str, torch.dtype], keep_vars: bool) -> None:
    """Cast the floating-point tensors ``dtypes`` of a state dict to the dtypes in which the format stores them.

    Training recipes set ``.data`` of 16-bit parameters to float32, which no layer can prevent. ``keep_vars``: the state
    is not to be saved, and stays as it is.
    """
    for name, dtype in dtypes.items():
        tensor = state.get(name)
        if not keep_vars and tensor is not None and tensor.is_floating_point() and tensor.dtype != dtype:
            state[name] = tensor.to(dtype)


def keep_dtype(fn: Callable[[Tensor], Tensor], kept: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn`` for `nn.Module._apply`, changed so that the tensors ``kept`` are moved but never cast.

    A cast to bfloat16 would round float16 scales and codebooks, and casting back would not restore them.
    """
    identities = {id(tensor) for tensor in kept}
    identities |= {id(tensor.grad) for tensor in kept if tensor.grad is not None}

    def apply(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        return tensor.to(result.device) if id(tensor) in identities and result.dtype != tensor.dtype else result

    return apply
