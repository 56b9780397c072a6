"""Loading official state dicts: every name is consumed, or an error says which are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from vqcompress.errors import ArchitectureError

_SHOWN = 12


def _listed(names: list[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def construct(cls: Callable[..., nn.Module], config: Mapping[str, object]) -> nn.Module:
    """``cls(**config)``; an argument that the class does not have raises ArchitectureError."""
    try:
        return cls(**config)
    except TypeError as error:
        raise ArchitectureError(
            f"{cls.__name__} cannot be built from the arguments {sorted(config)}: {error}"
        ) from error


def _misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    shapes = ((name, tuple(given[name].shape), tuple(own[name].shape)) for name in own.keys() & given.keys())
    return sorted(f"{name} is {there}, the model needs {here}" for name, there, here in shapes if there != here)


def load_strictly(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    rebuilt: Mapping[str, Tensor] | None = None,
    assign: bool = False,
):
    """Load ``state_dict`` into ``module`` and return it; nothing may be left over on either side.

    ``rebuilt``: buffers that official files store and the module computes instead, by official name; a file may
    hold them or not, but if it does, their shapes must be the computed ones. ``assign``: take the given tensors
    themselves instead of copying them. Raises ArchitectureError.
    """
    rebuilt, own = rebuilt or {}, module.state_dict()
    stored = {name: tensor for name, tensor in state_dict.items() if name not in rebuilt}
    problems = [
        f"missing: {_listed(missing)}" if (missing := sorted(own.keys() - stored.keys())) else "",
        f"unexpected: {_listed(extra)}" if (extra := sorted(stored.keys() - own.keys())) else "",
        f"shapes: {_listed(misfits)}" if (misfits := _misfits(own | rebuilt, state_dict)) else "",
    ]
    if any(problems):
        raise ArchitectureError(
            f"These weights do not fit {type(module).__name__}; {'; '.join(filter(None, problems))}. "
            "Check the constructor arguments against the checkpoint they came with."
        )
    module.load_state_dict(stored, assign=assign)
    return module
