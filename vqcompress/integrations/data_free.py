"""Quantization while loading: no calibration, so for quick looks; `vqcompress.quantize` gives better weights."""

from __future__ import annotations

from torch import nn

from vqcompress.layers import swap


def quantize_data_free(component: nn.Module, *, method: str, bits: float, seed: int) -> None:
    """Pack every layer of ``component`` that the rules for denoisers and text encoders do not keep dense, in place."""
    # Loading a packed folder must not import quantizers, so these are imported here.
    from vqcompress.architectures.architecture import TEXT_KEEP
    from vqcompress.architectures.generic import GenericArchitecture
    from vqcompress.architectures.layer_plan import plan_layers
    from vqcompress.architectures.unet import UNetArchitecture
    from vqcompress.quantizers import quantize_weight

    keep = {**UNetArchitecture.keep, **GenericArchitecture.keep, **TEXT_KEEP}
    names = [plan.name for plan in plan_layers(component, keep) if plan.kept is None]
    weights = {name: component.get_submodule(name).weight.detach() for name in names}
    swap(component, {n: quantize_weight(w, method=method, bits=bits, seed=seed) for n, w in weights.items()})
