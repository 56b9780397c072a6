"""Load official state dicts. Every name must be used; otherwise an error lists the names that are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import TypeVar

from torch import Tensor, nn

from vqcompress.errors import ArchitectureError

Module = TypeVar("Module", bound=nn.Module)
_SHOWN = 12


def _listed(names: list[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _refuse(model: str, problems: Mapping[str, list[str]]) -> None:
    """Raise ArchitectureError if any of the lists has an entry."""
    if any(problems.values()):
        found = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
        raise ArchitectureError(
            f"These weights do not fit {model}; {found}. Check the arguments against the checkpoint they came with."
        )


def check_names(model: str, needed: Set[str], given: Set[str]) -> None:
    """Raise ArchitectureError with the missing and unexpected names unless ``given`` equals ``needed``."""
    _refuse(model, {"missing": sorted(needed - given), "unexpected": sorted(given - needed)})


def construct(cls: Callable[..., Module], config: Mapping[str, object]) -> Module:
    """Return ``cls(**config)``. An argument that the class does not have raises ArchitectureError."""
    try:
        return cls(**config)
    except TypeError as error:
        name = getattr(cls, "__name__", str(cls))
        raise ArchitectureError(f"{name} cannot be built from the arguments {sorted(config)}: {error}") from error


def _misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    shapes = ((name, tuple(given[name].shape), tuple(own[name].shape)) for name in own.keys() & given.keys())
    return sorted(f"{name} is {there}, the model needs {here}" for name, there, here in shapes if there != here)


def _altered(rebuilt: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    return sorted(
        name for name in rebuilt.keys() & given.keys() if not rebuilt[name].equal(given[name].to(rebuilt[name]))
    )


def load_strictly(
    module: Module, state_dict: Mapping[str, Tensor], *, rebuilt: Mapping[str, Tensor] | None = None
) -> Module:
    """Load ``state_dict`` into ``module`` and return it. Neither side may have a name that the other lacks.

    ``rebuilt``: buffers that official files store and the module computes instead, by official name. A file need not
    have them, but if it does, their values must equal the computed ones. Raises ArchitectureError for weights that do
    not fit.
    """
    rebuilt, own, model = rebuilt or {}, module.state_dict(), type(module).__name__
    stored = {name: tensor for name, tensor in state_dict.items() if name not in rebuilt}
    check_names(model, own.keys(), stored.keys())
    _refuse(model, {"shapes": _misfits(own, stored), "other values than computed": _altered(rebuilt, state_dict)})
    module.load_state_dict(stored)
    return module
