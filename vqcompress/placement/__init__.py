"""Devices: what a machine has, where a pipeline computes, and how its weights get there."""

from vqcompress.placement.machine import DeviceMemory, device_memory
from vqcompress.placement.offloading import networks, place, take_back, with_offload
from vqcompress.placement.placement import DTYPES, OFFLOADS, Offload, Placement
from vqcompress.placement.streaming import execution_device, saved_on_host

__all__ = [
    "DTYPES",
    "OFFLOADS",
    "DeviceMemory",
    "Offload",
    "Placement",
    "device_memory",
    "execution_device",
    "networks",
    "place",
    "saved_on_host",
    "take_back",
    "with_offload",
]
