"""What learns: everything continuous in a packed component, held in float32 while it learns. Codes never do.

On disk scales and codebooks are float16, and dense tensors have the precision of the original's files. The float32
masters are rounded to that when learning ends, and before every held-out measurement, so that what is measured is
what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError, RecipeError
from vqcompress.layers import SharedCodebooks, vq_layers
from vqcompress.layers.packed import PackedLayer
from vqcompress.storage_dtype import narrowest_dtype

Group = Literal["scales", "codebooks", "biases", "norms", "dense"]
GROUPS: tuple[Group, ...] = get_args(Group)

SCALES = ("scale", "group_scale")


@dataclass(frozen=True)
class Learnable:
    """The learning parameters of a module by name, and the dtype that each has on disk."""

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    stored: Mapping[str, torch.dtype]

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """With every parameter as it would be stored; the masters come back afterwards."""
        masters = self.values()
        self.load({name: self._round(name, value) for name, value in masters.items()})
        try:
            yield
        finally:
            self.load(masters)

    def values(self) -> dict[str, Tensor]:
        """A copy of the masters."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take over values from `values`."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def finalize(self) -> None:
        """End learning: quantization parameters become frozen float16, dense ones frozen float32, all rounded as
        stored."""
        for name, parameter in self.parameters.items():
            owner, key = _owner(self.module, name)
            value = self._round(name, parameter.detach())
            value = value.half() if _is_quantization_parameter(owner, key) else value
            setattr(owner, key, nn.Parameter(value, requires_grad=False))

    def _round(self, name: str, value: Tensor) -> Tensor:
        dtype = self.stored[name]
        if dtype == torch.float16:
            value = value.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
        return value.to(dtype).float()


def make_learnable(module: nn.Module, groups: Iterable[str] = GROUPS, device: torch.device | None = None) -> Learnable:
    """Freeze ``module``, then make float32 masters of the parameters in ``groups``, in place.

    They lie on ``device``, by default where the parameters do: those of a network whose weights wait on the host must
    be where it computes.

    ``scales`` are those of packed layers, ``codebooks`` their codebooks and stored trellis tables, ``norms`` the
    affine parameters of normalisations, ``dense`` the weights of layers that stayed dense, and ``biases`` those of
    both. Raises `RecipeError` for an unknown group, and when nothing in ``module`` belongs to ``groups``.
    """
    groups = set(groups)
    if unknown := groups - set(GROUPS):
        raise RecipeError(f"nothing is called {sorted(unknown)[0]!r} that could learn; there are {', '.join(GROUPS)}")
    module.requires_grad_(False)
    parameters: dict[str, nn.Parameter] = {}
    stored: dict[str, torch.dtype] = {}
    for name in learnable_names(module, groups):
        owner, key = _owner(module, name)
        parameter = getattr(owner, key)
        stored[name] = (
            torch.float16 if _is_quantization_parameter(owner, key) else narrowest_dtype([parameter.detach()])
        )
        parameters[name] = nn.Parameter(parameter.detach().float().to(device or parameter.device, copy=True))
        setattr(owner, key, parameters[name])
    if not parameters:
        raise RecipeError(f"{type(module).__name__} has nothing of {', '.join(sorted(groups))} that could learn")
    return Learnable(module, parameters, stored)


def learnable_names(module: nn.Module, groups: Iterable[str]) -> list[str]:
    """Names of the parameters of ``module`` that belong to ``groups``."""
    wanted = set(groups)
    return [name for name, parameter in module.named_parameters() if _group(*_owner(module, name), parameter) in wanted]


def _group(owner: nn.Module, key: str, parameter: Tensor) -> Group | None:
    if isinstance(owner, SharedCodebooks):
        return "codebooks"
    if not parameter.is_floating_point():
        return None
    if isinstance(owner, PackedLayer) and key != "bias":
        return "scales" if key in SCALES else "codebooks" if key == "codebooks" else None
    if key == "bias" and isinstance(owner, nn.Linear | nn.Conv2d):
        return "biases"
    return "norms" if parameter.ndim == 1 else "dense"


def _is_quantization_parameter(owner: nn.Module, key: str) -> bool:
    return isinstance(owner, SharedCodebooks) or (isinstance(owner, PackedLayer) and key != "bias")


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, key = name.rpartition(".")
    return module.get_submodule(path), key


def require_packed(component: nn.Module) -> None:
    """Raises `ArchitectureError` when nothing in ``component`` is packed."""
    if not vq_layers(component):
        raise ArchitectureError(f"{type(component).__name__} has no packed layers to fine-tune; compress it first")


def tensors_of(component: nn.Module) -> dict[str, Tensor]:
    """Every floating-point tensor of a component that does not learn any more: what fine-tuning may have changed."""
    return {name: p.detach() for name, p in component.named_parameters() if p.is_floating_point()}


@torch.no_grad()
def put_tensors(component: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `tensors_of`; names that ``tensors`` lacks stay as they are."""
    for name, parameter in component.named_parameters():
        if name in tensors:
            parameter.copy_(tensors[name])
