"""Move a pipeline to its device, or install the hooks that do it call by call."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vqcompress.placement.placement import WAITING, Offload, Placement
from vqcompress.placement.streaming import mark_execution_device, stop_streaming, stream, weight_bytes

FOR_WEIGHTS = 0.8  # of a device's free memory; activations and second moments take the rest
STREAMED_AT_ONCE = 1 << 30  # bytes of weights that "group" moves together, at most
SMALL = 1 << 28  # bytes of a component that stays on the device under "group"


def place(pipeline: Any, placement: Placement, *, gradients: bool = False) -> Placement:
    """Move ``pipeline`` to where ``placement`` says, or install the hooks that do it call by call.

    Returns the placement with offloading decided. With ``gradients`` weights that are streamed can be read again in a
    backward pass (`streaming.saved_on_host`); those of diffusers' hooks, which are faster, cannot.
    """
    asked, placement = placement, with_offload(placement, pipeline)
    device = placement.device
    if asked.offload != placement.offload in WAITING:
        logging.getLogger(__name__).warning(f"{device} cannot hold all of the model: {WAITING[placement.offload]}")
    if placement.offload == "none":
        if any(network.device != device for network in networks(pipeline).values()):
            pipeline.to(device)
    elif placement.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif gradients:
        _stream(pipeline, device, STREAMED_AT_ONCE if placement.offload == "group" else 0)
    elif placement.offload == "group":
        prefetched = {"use_stream": True} if device.type == "cuda" and torch.cuda.is_available() else {}
        pipeline.enable_group_offload(
            onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level", **prefetched
        )
    else:
        pipeline.enable_sequential_cpu_offload(device=device)
    return placement


def take_back(pipeline: Any) -> None:
    """Remove the hooks that `place` installed with ``gradients``; offloaded weights are on the host then."""
    streamed = [stop_streaming(network) for network in networks(pipeline).values()]
    if not any(streamed) and any(hasattr(network, "_hf_hook") for network in networks(pipeline).values()):
        pipeline.remove_all_hooks()
        pipeline.to("cpu")


def with_offload(placement: Placement, pipeline: Any) -> Placement:
    """``placement`` with "auto" offloading decided for ``pipeline``."""
    if placement.offload != "auto":
        return placement
    if placement.on_host:
        return replace(placement, offload="none")
    sizes = [weight_bytes(network) for network in networks(pipeline).values()]
    room = FOR_WEIGHTS * placement.free_bytes()
    chosen: Offload = "none" if sum(sizes) <= room else "model" if max(sizes, default=0) <= room else "group"
    return replace(placement, offload=chosen)


def networks(pipeline: Any) -> dict[str, nn.Module]:
    """The networks of ``pipeline`` by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _stream(pipeline: Any, device: torch.device, at_once: int) -> None:
    for network in networks(pipeline).values():
        if at_once and weight_bytes(network) <= SMALL:
            network.to(device)
            mark_execution_device(network, device)
        else:
            stream(network, device, at_once)
