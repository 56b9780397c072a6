"""The denoiser in a .safetensors file, under its original names, ComfyUI's, or those of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqcompress.architectures.file_header import FileHeader
from vqcompress.architectures.ldm_names import UNET_PREFIX, UNetNames
from vqcompress.architectures.narrow_weights import NARROW
from vqcompress.architectures.prediction import MARKS
from vqcompress.architectures.scaled_weights import plain_weights
from vqcompress.errors import ArchitectureError, UnsupportedError, first_line

PREFIXES = (UNET_PREFIX, "diffusion_model.", "transformer.", "unet.")
SHOWN = 5  # names in a message


def prefix_of(header: FileHeader) -> str:
    """What the names of the denoiser's tensors start with, often nothing."""
    return next((prefix for prefix in PREFIXES if header.under(prefix)), "")


def load_denoiser(
    header: FileHeader,
    base: str,
    component: str,
    class_name: str | None,
    dtype: torch.dtype,
    *,
    narrow: bool = False,
) -> nn.Module:
    """The network ``component`` with the configuration that it has in the pipeline ``base``, in eval mode.

    ``class_name`` None: the class that the base's index names. ``narrow``: weights that are all stored in one 16-bit
    dtype stay so. Raises `ArchitectureError` unless the file has exactly the network's tensors.
    """
    kind = _class_of(Path(base), component) if class_name is None else _diffusers_class(class_name)
    try:
        config = kind.load_config(base, subfolder=component)
    except OSError as error:
        raise ArchitectureError(
            f"{header.path} needs the configuration of {component} in {base}: {first_line(error)}; "
            f"`hf download {base}` once, or give a folder of that model"
        ) from error
    network = _empty(kind, config)
    prefix = prefix_of(header)
    names = header.under(prefix) if prefix else [name for name in header.entries if name not in MARKS]
    dtype = _stored_dtype(header, names, dtype) if narrow else dtype
    plain = plain_weights(header, names)
    weights = {name.removeprefix(prefix): _cast(plain.pop(name), dtype) for name in list(plain)}
    weights = _with_diffusers_names(header, network, config, weights)
    _check(header, network, base, weights)
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(True)


def _class_of(base: Path, component: str) -> Any:
    from vqcompress.architectures.folder import read_index

    entry = read_index(base).get(component)
    if not isinstance(entry, list) or entry[0] != "diffusers":
        raise ArchitectureError(f"{base} has no {component} of diffusers, so it is no base for this file")
    return _diffusers_class(entry[1])


def _diffusers_class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def _empty(kind: Any, config: Mapping[str, Any]) -> Any:
    from accelerate import init_empty_weights

    with init_empty_weights():
        return kind.from_config(config)


def _stored_dtype(header: FileHeader, names: list[str], dtype: torch.dtype) -> torch.dtype:
    found = {header.entries[name].dtype for name in names}
    return NARROW.get(found.pop(), dtype) if len(found) == 1 else dtype


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _with_diffusers_names(
    header: FileHeader, network: Any, config: Mapping[str, Any], weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """``weights`` as they are or converted, whichever has more of the network's names."""
    own = network.state_dict().keys()
    if own == weights.keys():
        return weights
    kept = len(own ^ weights.keys())
    try:
        is_unet = type(network).__name__ == "UNet2DConditionModel"
        named = _unet_names(network, weights) if is_unet else _converted(header, network, config, weights)
    except ArchitectureError:
        if kept > len(own):
            raise
        return weights
    return named if len(own ^ named.keys()) < kept else weights


def _unet_names(network: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    keys = network.state_dict().keys()
    names = UNetNames(network.config["layers_per_block"], frozenset(keys))
    try:
        original = {names.of(key): key for key in keys}
    except UnsupportedError as error:
        raise ArchitectureError(str(error)) from error
    return {original.get(name, name): tensor for name, tensor in weights.items()}


def _converted(
    header: FileHeader, network: Any, config: Mapping[str, Any], weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """``weights`` with diffusers' names, by its own conversion. A name that the conversion takes nothing from stays."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    known = SINGLE_FILE_LOADABLE_CLASSES.get(type(network).__name__)
    if known is None:
        return weights
    left = dict(weights)
    try:
        converted = known["checkpoint_mapping_fn"](checkpoint=left, config=dict(config))
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
        raise ArchitectureError(
            f"{header.path} looks like a {type(network).__name__}, but its tensors do not fit one "
            f"({type(error).__name__}: {first_line(error)}); give a "
            "diffusers folder instead"
        ) from error
    unread = left if len(left) < len(weights) and left is not converted else {}
    return {**unread, **converted}


def _check(header: FileHeader, network: nn.Module, base: str, weights: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    problems = {
        "no place for": sorted(weights.keys() - own.keys()),
        "missing": sorted(own.keys() - weights.keys()),
        "other shapes": sorted(key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape),
    }
    found = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems.items() if names)
    if found:
        raise ArchitectureError(
            f"{header.path} does not fit the {type(network).__name__} of {base} ({found}); it is another model, or "
            "something was merged into it. Name the base model that it fits (base=…), or give a diffusers folder"
        )


def _listed(names: list[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
