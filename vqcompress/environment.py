"""What there is to work with: versions, device, memory and the kernels that packed layers would run."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vqcompress.bitpack import packed_bytes
from vqcompress.formats import TrellisSpec
from vqcompress.kernels import kernel_choice
from vqcompress.placement.machine import ACCELERATORS, device_count, host_memory, why_absent
from vqcompress.working_memory import usable_cores

REQUIRED = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numba", "faiss-cpu")
OPTIONAL = {"peft": "lora", "triton": "gpu", "datasets": "datasets"}  # package -> extra that installs it
_SIZE, _SAMPLES = 1280, {"few samples": 1, "many samples": 1024}


def env() -> dict[str, Any]:
    """Versions, devices and kernels on this machine, as plain data; nothing is loaded and no kernel runs.

    ``python``, ``system``, ``cores``, ``memory`` (bytes of the host, None where the system does not say);
    ``packages`` (name -> version, None if it is not installed); ``devices``, accelerators first, with ``memory`` in
    bytes; ``kernels``: for a 1280 x 1280 layer of 3-bit trellis codes, by number of samples, the kernel and why those
    before it in the table decline; ``missing``: what to install for what, in sentences.
    """
    packages = {name: _version(name) for name in ("vqcompress", *REQUIRED, *OPTIONAL)}
    devices = [*_accelerators(), {"device": "cpu", "name": platform.processor() or platform.machine()}]
    return {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cores": usable_cores(),
        "memory": host_memory()[0] or None,
        "packages": packages,
        "devices": devices,
        "kernels": _kernels(devices[0]["device"]),
        "missing": [
            f"{name}: pip install 'vqcompress[{extra}]'" for name, extra in OPTIONAL.items() if packages[name] is None
        ],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _accelerators() -> list[dict[str, Any]]:
    """Those that "auto" would take, first ones first."""
    kinds = [kind for kind in ACCELERATORS if not why_absent(kind)]
    return [_accelerator(kind, index) for kind in kinds for index in range(device_count(kind))]


def _accelerator(kind: str, index: int) -> dict[str, Any]:
    """From its properties alone: asking for its free memory would take some of it."""
    if kind == "mps":
        return {"device": kind, "name": platform.processor()}
    found = getattr(torch, kind).get_device_properties(index)
    capability = {"capability": f"{found.major}.{found.minor}"} if kind == "cuda" else {}
    return {"device": f"{kind}:{index}", "name": found.name, "memory": found.total_memory, **capability}


def _kernels(device: str) -> dict[str, dict[str, Any]]:
    spec = TrellisSpec(12, 3, 0, 0.0, True, _SIZE * packed_bytes(_SIZE, 3))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    choices = {
        label: kernel_choice(spec, (_SIZE, _SIZE), samples, device, dtype) for label, samples in _SAMPLES.items()
    }
    return {
        label: {"device": device, "kernel": choice.name, "why": choice.purpose, "refused": choice.refused}
        for label, choice in choices.items()
    }
