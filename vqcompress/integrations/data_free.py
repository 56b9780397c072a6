"""Quantization while loading: no calibration, so for quick looks; `vqcompress.quantize` gives better weights."""

from __future__ import annotations

import re

from torch import nn

from vqcompress.integrations.config import VQCompressConfig
from vqcompress.layers import swap


def quantize_data_free(component: nn.Module, asked: VQCompressConfig) -> None:
    """Pack every layer of ``component`` that neither the rules for denoisers and text encoders nor ``asked`` keep dense.

    In place. Layers that ``asked`` names are found by a part of their name, as other backends find them.
    """
    # Loading a packed folder must not import quantizers, so these are imported here.
    from vqcompress.architectures.architecture import TEXT_KEEP
    from vqcompress.architectures.generic import GenericArchitecture
    from vqcompress.architectures.layer_plan import plan_layers
    from vqcompress.architectures.unet import UNetArchitecture
    from vqcompress.quantizers import quantize_weight

    named = {re.escape(part): "named in modules_to_not_convert" for part in asked.modules_to_not_convert}
    keep = {**named, **UNetArchitecture.keep, **GenericArchitecture.keep, **TEXT_KEEP}
    names = [plan.name for plan in plan_layers(component, keep) if plan.kept is None]
    weights = {name: component.get_submodule(name).weight.detach() for name in names}
    method, bits, seed = asked.method, asked.bits, asked.seed
    swap(component, {n: quantize_weight(w, method=method, bits=bits, seed=seed) for n, w in weights.items()})
