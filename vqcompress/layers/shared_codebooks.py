"""Codebooks that several layers of a component use, stored once at the component's root."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

SHARED_NAME = "vq_shared"


class SharedCodebooks(nn.Module):
    """One frozen parameter per codebook name, registered as ``vq_shared`` at the component's root.

    Layers *call* it for a codebook rather than reach into it, so that offloading hooks, which bring a module's
    parameters in before its forward and take them away after it, work here as on any other module. What a layer gets
    is a view: some hooks take a parameter away by changing its ``.data``, which a view made before does not follow.
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


def keep_dtype(fn: Callable[[Tensor], Tensor], kept: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn`` as `nn.Module._apply` takes it, but moving the tensors ``kept`` without ever casting them.

    A cast to bfloat16 would round float16 scales and codebooks, and casting back would not restore them.
    """
    identities = {id(tensor) for tensor in kept}
    identities |= {id(tensor.grad) for tensor in kept if tensor.grad is not None}

    def apply(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        return tensor.to(result.device) if id(tensor) in identities and result.dtype != tensor.dtype else result

    return apply
