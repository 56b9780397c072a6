"""Refuse a pipeline that was changed after loading, before calibration: its folder could not be loaded again.

What is written are a configuration and tensors by name. A loader builds the network from the configuration, so every
tensor needs a place in it; adapters, fused projections and wrappers have none. Offloaded weights are not in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vqcompress.architectures.architecture import TEXT_ENCODERS, Pipeline
from vqcompress.errors import ArchitectureError

SHOWN = 3  # names in a message
MAY_BE_MISSING = ("text_encoder_3",)  # SD3 runs without T5
EIGHT_BIT_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)


def refuse_changed(pipeline: Pipeline, components: Iterable[str]) -> None:
    """Raise `ArchitectureError` unless ``pipeline`` is as a loader would build it again.

    Checked are all its networks; those of ``components``, which are to be quantized, also against a network built
    anew, on the meta device. The message names the call that undoes the change.
    """
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    problems = [*_missing(pipeline)]
    for name, network in networks.items():
        problems += [f"{name} {problem}" for problem in _changes(name, network)]
    components = list(components)
    problems += _shared(networks, components)
    if not problems:
        problems = [
            problem for name in components if name in networks for problem in _other_names(name, networks[name])
        ]
    if problems:
        raise ArchitectureError(
            f"this {type(pipeline).__name__} could not be loaded again: {'; '.join(problems[:SHOWN])}"
        )


def _shared(networks: Mapping[str, nn.Module], components: Sequence[str]) -> Iterator[str]:
    """Networks with layers of a component that is to be quantized: their folders would hold codes without a spec."""
    for name in components:
        own = _with_parameters(networks[name]) if name in networks else set()
        for other, network in networks.items():
            if other != name and (both := own & _with_parameters(network)):
                yield f"{other} shares {len(both)} layers with {name}: quantize a pipeline without {other}"


def _with_parameters(network: nn.Module) -> set[nn.Module]:
    return {module for module in network.modules() if any(True for _ in module.parameters(recurse=False))}


def _missing(pipeline: Pipeline) -> Iterator[str]:
    wanted = inspect.signature(type(pipeline).__init__).parameters.keys()
    optional = {*getattr(pipeline, "_optional_components", ()), *MAY_BE_MISSING}
    encoders = [name for name in TEXT_ENCODERS if name in wanted]
    present = [name for name in encoders if getattr(pipeline, name, None) is not None]
    absent = [name for name in encoders if name not in present and (name not in optional or not present)]
    if absent:
        yield (
            f"it has no {', '.join(absent)}, so no prompt can calibrate it or be drawn: load it without "
            f"{', '.join(f'{name}=None' for name in absent)}"
        )
    if "vae" in wanted and "vae" not in optional and getattr(pipeline, "vae", None) is None:
        yield "it has no VAE: load it without vae=None"


def _changes(name: str, network: nn.Module) -> Iterator[str]:
    """What was done to ``network``, each with the call that undoes it."""
    modules = dict(network.named_modules())
    if any(hasattr(module, "_orig_mod") for module in modules.values()):
        yield f"is compiled: pipeline.{name} = pipeline.{name}._orig_mod, or compile after quantizing"
    elif any(getattr(module, "_compiled_call_impl", None) is not None for module in modules.values()):
        yield "is compiled in place: load the pipeline again, and compile after quantizing"
    yield from _adapters(modules)
    fused = [module for module in modules.values() if getattr(module, "fused_projections", False)]
    if fused and all(hasattr(module, "unfuse_projections") for module in fused):
        yield f"has fused projections of query, key and value: pipeline.{name}.unfuse_qkv_projections()"
    elif fused:
        yield (
            "has fused projections of query, key and value: load the pipeline again without fuse_qkv_projections(), "
            "whose reverse leaves the fused layers there"
        )
    yield from _hooks(modules)
    if any(parameter.dtype in EIGHT_BIT_FLOATS for parameter in network.parameters()):
        yield f"holds weights in 8-bit floats: pipeline.{name}.to(torch.bfloat16), before any layerwise casting"


def _adapters(modules: dict[str, nn.Module]) -> Iterator[str]:
    wrapped = [module for module in modules.values() if hasattr(module, "base_layer")]
    if not wrapped and not getattr(modules[""], "peft_config", None):
        return
    if any(getattr(module, "merged", False) for module in wrapped):
        yield (
            "has a fused adapter, whose layers are still there: pipeline.unload_lora_weights() keeps fused weights, "
            "pipeline.unfuse_lora() before it removes them"
        )
    else:
        yield (
            "has an adapter, which would not be in the folder: pipeline.unload_lora_weights(), and load the adapter on "
            "the compressed pipeline; `vqcompress bake-lora` makes it part of the weights"
        )


def _hooks(modules: dict[str, nn.Module]) -> Iterator[str]:
    offloaded = any(parameter.is_meta for module in modules.values() for parameter in module.parameters(recurse=False))
    if offloaded or any(hasattr(module, "_hf_hook") for module in modules.values()):
        yield "is offloaded: pipeline.remove_all_hooks()"
    registries = [module._diffusers_hook for module in modules.values() if hasattr(module, "_diffusers_hook")]
    if named := sorted({name for registry in registries for name in getattr(registry, "hooks", {})}):
        yield f"has hooks ({', '.join(named)}): load the pipeline again without them (group offload, casting, a cache)"


def _other_names(name: str, network: nn.Module) -> Iterator[str]:
    plain = _skeleton(network)
    if plain is None:
        return
    there, here = network.state_dict().keys(), plain.state_dict().keys()
    if different := sorted(there ^ here):
        more = f", … ({len(different)} in all)" if len(different) > SHOWN else ""
        yield (
            f"{name} has other tensors than a {type(network).__name__} of its configuration "
            f"({', '.join(different[:SHOWN])}{more}): load the pipeline again, and quantize before changing it"
        )


def _skeleton(network: Any) -> nn.Module | None:
    """A network of the same configuration on the meta device; None if it was quantized or has no configuration."""
    from accelerate import init_empty_weights

    config = getattr(network, "config", None)
    if config is None or getattr(config, "quantization_config", None) is not None:
        return None
    build = getattr(type(network), "from_config", None) or getattr(type(network), "_from_config", None)
    if build is None:
        return None
    with init_empty_weights():
        return build(config)
