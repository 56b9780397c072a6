"""A component's ``quantization_config``: a JSON description of its packed layers, and empty layers built from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from reprlib import repr as short_repr
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.errors import CheckpointError
from vqcompress.expert_stacks import unstack
from vqcompress.formats import FormatSpec, spec_from_dict, spec_to_dict
from vqcompress.formats.field_bounds import is_name
from vqcompress.formats.gate import check_layer, check_shape
from vqcompress.layers.guards import refuse_fusing
from vqcompress.layers.packed import PackedLayer
from vqcompress.layers.replace import pack_in_place
from vqcompress.layers.shared_codebooks import SHARED_NAME, SharedCodebooks
from vqcompress.matrix_view import matrix_shape

QUANT_METHOD = "vqcompress"
FORMAT_VERSION = 1
KNOWN_KEYS = {"quant_method", "format_version", "layers", "shared", "dense", "kept"}
MAX_CODEBOOK = 1 << 26  # numbers: the largest codebooks and learned tables that a spec can name


def describe(
    component: nn.Module, dense: Mapping[str, str] | None = None, ignored: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The ``quantization_config`` of a component with packed layers (see ``docs/FORMAT.md``).

    ``dense`` and ``ignored`` map layers that are not packed to the reason. They are for information only; ``ignored``
    is stored under ``kept``.
    """
    layers = {name: module for name, module in component.named_modules() if isinstance(module, PackedLayer)}
    shared = getattr(component, SHARED_NAME, None)
    return {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        "layers": {
            name: {**spec_to_dict(layer.spec), "shape": list(layer.dense_shape)} for name, layer in layers.items()
        },
        "shared": {}
        if shared is None
        else {name: list(codebook.shape) for name, codebook in shared.named_parameters()},
        **({"dense": dict(dense)} if dense else {}),
        **({"kept": dict(ignored)} if ignored else {}),
    }


def describe_by(make: Callable[[dict[str, Any]], Any]) -> None:
    """Let `write_description` put ``make(description)`` into configs, such as the libraries' own config object."""
    _made_by.append(make)


_made_by: list[Callable[[dict[str, Any]], Any]] = [dict]


def write_description(component: nn.Module, description: Mapping[str, Any] | None) -> None:
    """Write ``description`` to the component's config, if it has one; diffusers and transformers save it from there.

    ``None`` removes it.
    """
    data = None if description is None else _made_by[-1](dict(description))
    if hasattr(component, "register_to_config"):
        component.register_to_config(quantization_config=data)
        if data is None:
            kept = {key: value for key, value in component.config.items() if key != "quantization_config"}
            component._internal_dict = type(component.config)(kept)
    elif hasattr(component, "config"):
        component.config.quantization_config = data
        if data is None:
            del component.config.quantization_config


def check_description(description: Mapping[str, Any], where: str = "this model") -> None:
    """Raise `CheckpointError` if ``description`` has a newer format version, is incomplete or of the wrong types."""
    version = description.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(
            f"the quantization_config of {where} has no usable format_version (found {short_repr(version)})"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{where} is stored in format version {version}, this vqcompress reads up to {FORMAT_VERSION}; update "
            "vqcompress"
        )
    if unknown := description.keys() - KNOWN_KEYS:
        raise CheckpointError(
            f"the quantization_config of {where} has no key {short_repr(sorted(unknown, key=str))} that this version "
            "knows; update vqcompress"
        )
    for key in ("layers", "shared"):
        if not isinstance(description.get(key), Mapping):
            raise CheckpointError(
                f"the quantization_config of {where} lacks {key!r}; its config.json is not as it was written"
            )
    for key in ("dense", "kept"):
        reasons = description.get(key, {})
        if not isinstance(reasons, Mapping) or not all(isinstance(reason, str) for reason in reasons.values()):
            raise CheckpointError(
                f"{key!r} in the quantization_config of {where} gives no reasons; its config.json is not as it was "
                "written"
            )
    for name, shape in description["shared"].items():
        _check_shared(name, shape, where)


def _check_shared(name: object, shape: object, where: str) -> None:
    """Raise `CheckpointError` unless these are the name and the shape of a shared codebook."""
    sizes = shape if isinstance(shape, list | tuple) else ()
    fits = len(sizes) in (2, 3) and all(type(size) is int and size > 0 for size in sizes)
    if not is_name(name) or hasattr(nn.Module, str(name)) or not fits or math.prod(sizes) > MAX_CODEBOOK:
        raise CheckpointError(
            f"the quantization_config of {where} lists a shared codebook {short_repr(name)} of shape "
            f"{short_repr(shape)}, which is none; its config.json is not as it was written"
        )


LayerSpecs = dict[str, tuple[FormatSpec, tuple[int, ...]]]
"""Layer name -> (spec, dense shape)."""

_checked: ContextVar[tuple[Mapping[str, Any], LayerSpecs] | None] = ContextVar("checked", default=None)


@contextmanager
def already_checked(description: Mapping[str, Any], specs: LayerSpecs) -> Iterator[None]:
    """Let `layer_specs` inside return ``specs`` for this description and its equals: a library that opens a component
    reads its config once more."""
    token = _checked.set((description, specs))
    try:
        yield
    finally:
        _checked.reset(token)


def layer_specs(description: Mapping[str, Any]) -> LayerSpecs:
    """Layer name -> (spec, dense shape).

    Raises `CheckpointError` for entries that this version cannot read, and for those whose numbers contradict each
    other.
    """
    checked = _checked.get()
    if checked is not None and all(checked[0][key] == description[key] for key in ("layers", "shared")):
        return dict(checked[1])
    specs = {}
    for name, entry in description["layers"].items():
        if not isinstance(entry, Mapping):
            raise CheckpointError(f"layer {name!r}: is described as {short_repr(entry)}, which is no layer")
        fields = dict(entry)
        try:
            shape = check_shape(fields.pop("shape", ()))
            spec = spec_from_dict(fields)
            check_layer(spec, shape)
        except CheckpointError as error:
            raise CheckpointError(f"layer {name!r}: {error}") from None
        _check_codebook(name, spec, description["shared"])
        specs[name] = spec, shape
    return specs


def _check_codebook(layer: str, spec: FormatSpec, shared: Mapping[str, Any]) -> None:
    if spec.codebook is None:
        return
    if spec.codebook not in shared:
        raise CheckpointError(
            f"layer {layer!r} uses the shared codebook {spec.codebook!r}, which the config does not list"
        )
    if tuple(shared[spec.codebook]) != spec.codebook_shape:
        raise CheckpointError(
            f"layer {layer!r} needs the shared codebook {spec.codebook!r} in the shape {spec.codebook_shape}, the "
            f"config lists {shared[spec.codebook]}"
        )


def empty_layers(
    component: nn.Module,
    description: Mapping[str, Any],
    parameter_dtype: torch.dtype = torch.float16,
    specs: LayerSpecs | None = None,
    alike_are_one: bool = False,
) -> None:
    """Replace the dense layers named in ``description`` by empty packed layers (on the meta device).

    ``parameter_dtype`` is used instead of float16 for loaders that cast floating-point tensors, see `as_float16`.
    ``specs`` are the description's `layer_specs`, if the caller already has them. With ``alike_are_one``, empty
    parameters of the same shape are one object, for a loader that replaces each of them without reading it.
    """
    check_description(description, type(component).__name__)
    specs = layer_specs(description) if specs is None else specs
    if description["shared"]:
        codebooks = {name: _empty(tuple(shape), parameter_dtype) for name, shape in description["shared"].items()}
        component.add_module(SHARED_NAME, SharedCodebooks(codebooks))
    unstack(component, specs)
    for name, (spec, shape) in specs.items():
        pack_in_place(component, name, spec, shape, _empty_tensors(spec, shape, parameter_dtype, alike_are_one))
    refuse_fusing(component)


def _empty_tensors(
    spec: FormatSpec, shape: tuple[int, ...], parameter_dtype: torch.dtype, alike_are_one: bool
) -> dict[str, Tensor]:
    shapes, empty = spec.tensor_shapes(*matrix_shape(shape)), _empty_parameter if alike_are_one else _empty
    return {
        name: empty(size, parameter_dtype if dtype == torch.float16 else dtype)
        for name, (size, dtype) in shapes.items()
    }


@lru_cache(maxsize=4096)
def _empty_parameter(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(_empty(shape, dtype), requires_grad=False)


@lru_cache(maxsize=4096)
def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
