"""Quantization while loading, without calibration. `vqcompress.quantize` gives better weights."""

from __future__ import annotations

import re
from contextlib import suppress

from torch import nn

from vqcompress.errors import UnfitWeightError
from vqcompress.expert_stacks import unstack
from vqcompress.integrations.config import VQCompressConfig
from vqcompress.layers import set_dense_budget, swap


def quantize_data_free(component: nn.Module, asked: VQCompressConfig) -> None:
    """Pack the layers of ``component``, in place.

    The ignore rules for denoisers and text encoders apply. Layers whose name contains an entry of
    ``asked.modules_to_not_convert`` stay dense too, as in other backends, and so do weights that no code fits.
    """
    # Imported here because loading a packed folder must not import quantizers.
    from vqcompress.architectures.architecture import TEXT_IGNORE
    from vqcompress.architectures.generic import GenericArchitecture
    from vqcompress.architectures.layer_plan import plan_layers
    from vqcompress.architectures.unet import UNetArchitecture
    from vqcompress.quantizers import quantize_weight

    named = {re.escape(part): "named in modules_to_not_convert" for part in asked.modules_to_not_convert}
    ignore = {**named, **UNetArchitecture.ignore, **GenericArchitecture.ignore, **TEXT_IGNORE}
    names = [plan.name for plan in plan_layers(component, ignore) if plan.reason is None]
    unstack(component, names)
    weights = {name: component.get_submodule(name).weight.detach() for name in names}
    method, bits, seed = asked.method, asked.bits, asked.seed
    packed = {}
    for name, weight in weights.items():
        with suppress(UnfitWeightError):
            packed[name] = quantize_weight(weight, method=method, bits=bits, seed=seed)
    swap(component, packed)
    if asked.dense_budget is not None:
        set_dense_budget(component, asked.dense_budget)
