"""Room to learn that the encoder did not need: row scales for layers with a single one, value tables for trellis layers.

Both are stored and counted: 2 bytes a row, and 2 bytes a state for each table, shared by all layers of the component that
read it. A table is made only where the weights that read it are so many that it hardly costs anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.formats import AdditiveSpec, FormatSpec, TrellisSpec
from vqcompress.formats.trellis_table import value_table
from vqcompress.layers import SHARED_NAME, SharedCodebooks, describe, vq_layers
from vqcompress.layers.description import write_description
from vqcompress.layers.packed import PackedLayer
from vqcompress.matrix_view import matrix_shape

Family = tuple[int, float]
"""State bits and tail: layers of one family read the same formula."""


def give_row_scales(component: nn.Module) -> None:
    """Every layer with one common scale gets that scale in every row, in place; nothing that it computes changes."""
    for name, layer in vq_layers(component).items():
        if not isinstance(layer.spec, AdditiveSpec | TrellisSpec) or layer.spec.row_scales:
            continue
        tensors = _own_tensors(layer)
        tensors["scale"] = tensors["scale"].expand(layer.dense_shape[0]).clone()
        _rebuild(component, name, layer, replace(layer.spec, row_scales=True), tensors)
    describe_again(component)


def give_tables(component: nn.Module, share: float) -> None:
    """Trellis layers read stored tables, with the formula's values at first, where these add at most ``share`` to the codes."""
    chosen = chosen_tables(component, share)
    if not chosen:
        return
    names = {family: f"trellis{index}" for index, family in enumerate(chosen)}
    device = next(component.parameters()).device
    books = getattr(component, SHARED_NAME, None)
    if books is None:
        books = SharedCodebooks({})
        component.add_module(SHARED_NAME, books)
    for (state_bits, tail), rates in chosen.items():
        tables = torch.stack([value_table(state_bits, rate, tail) for rate in rates]).to(device)
        books.register_parameter(names[state_bits, tail], nn.Parameter(tables, requires_grad=False))
    for name, layer in vq_layers(component).items():
        if isinstance(layer.spec, TrellisSpec) and (family := _family(layer.spec)) in chosen:
            spec = replace(layer.spec, codebook=names[family], codebook_rates=chosen[family])
            _rebuild(component, name, layer, spec, _own_tensors(layer), books)
    describe_again(component)


def chosen_tables(component: nn.Module, share: float) -> dict[Family, tuple[int, ...]]:
    """Family -> rates whose table takes at most ``share`` of the bytes of the codes that read it."""
    code_bits: Counter[tuple[int, float, int]] = Counter()
    for layer in vq_layers(component).values():
        if isinstance(layer.spec, TrellisSpec) and layer.spec.codebook is None:
            rows, columns = matrix_shape(layer.dense_shape)
            for rate, count in zip(*layer.spec.rates(columns, layer.tensors()).unique(return_counts=True), strict=True):
                code_bits[(*_family(layer.spec), int(rate))] += rows * int(count) * int(rate)
    found: dict[Family, tuple[int, ...]] = {}
    for (state_bits, tail, rate), bits in sorted(code_bits.items()):
        if rate and 16 << state_bits <= share * bits:
            found[state_bits, tail] = (*found.get((state_bits, tail), ()), rate)
    return found


def describe_again(component: nn.Module) -> None:
    """The component's description with its layers as they are now, and the reasons that it lists for dense ones."""
    found: Any = getattr(getattr(component, "config", None), "quantization_config", None) or {}
    before = found if isinstance(found, Mapping) else found.to_dict()
    write_description(component, describe(component, before.get("dense"), before.get("kept")))


def _family(spec: TrellisSpec) -> Family:
    return spec.state_bits, spec.tail


def _own_tensors(layer: PackedLayer) -> dict[str, Tensor]:
    return dict(layer.quantized_weight().tensors)


def _rebuild(
    component: nn.Module,
    name: str,
    layer: PackedLayer,
    spec: FormatSpec,
    tensors: Mapping[str, Tensor],
    shared: SharedCodebooks | None = None,
) -> None:
    """A layer of the same codes with another spec, in the place of ``layer``, which serves as the dense one's geometry."""
    shared = shared or layer.__dict__["shared_codebooks"]
    kind: type = type(layer)
    parent, _, child = name.rpartition(".")
    setattr(component.get_submodule(parent), child, kind(layer, spec, tensors, shared))
