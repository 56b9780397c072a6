"""Networks that diffusers does not have, one file per family. `from_official` loads their official weights.

``from_official("dit", {"depth": 28, …}, state_dict)`` takes the constructor arguments and the parameter names of
the authors' releases. It returns an eval-mode module with the authors' forward signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from torch import Tensor, nn

from vqcompress.errors import ArchitectureError

Builder = Callable[[Mapping[str, object], Mapping[str, Tensor]], nn.Module]

# family: "module:builder"; a builder takes (config, state_dict) and returns the loaded module.
# The builders are strings, so that loading one family does not import all of them.
FAMILIES: dict[str, str] = {
    "dit": "vqcompress.models.dit:dit_from_official",
    "sit": "vqcompress.models.dit:sit_from_official",
    "mdt_v1": "vqcompress.models.mdt:mdt_v1_from_official",
    "mdt_v2": "vqcompress.models.mdt:mdt_v2_from_official",
    "dit_moe": "vqcompress.models.dit_moe:dit_moe_from_official",
    "diffit_latent": "vqcompress.models.diffit_latent:diffit_latent_from_official",
    "flag_dit": "vqcompress.models.flag_dit:flag_dit_from_official",
    "large_dit": "vqcompress.models.flag_dit:large_dit_from_official",
    "linfusion": "vqcompress.models.linfusion:linfusion_from_official",
    "next_dit": "vqcompress.models.next_dit:next_dit_from_official",
    "pt_dit": "vqcompress.models.pt_dit:pt_dit_from_official",
    "pixart": "vqcompress.models.pixart:pixart_from_official",
}


def _builder(family: str) -> Builder:
    if family not in FAMILIES:
        raise ArchitectureError(f"Unknown model family {family!r}; the families are {', '.join(sorted(FAMILIES))}.")
    module, function = FAMILIES[family].split(":")
    return getattr(import_module(module), function)


def from_official(family: str, config: Mapping[str, object], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Return a family's network with official weights, in eval mode.

    ``family`` is a key of ``FAMILIES``; ``config`` holds the official class's constructor arguments;
    ``state_dict`` has official names, and none may be left over. Raises ArchitectureError for an unknown
    family or argument, and for weights that do not fit (the message lists missing and unexpected names).
    """
    return _builder(family)(config, state_dict).eval()
