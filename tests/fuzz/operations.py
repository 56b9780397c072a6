"""What is done with a case's folder: everything that a user may do with one that they were given."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file

from tests.fuzz.guarded import guard, guarded
from vqcompress import kernels
from vqcompress.bundling import extract_bundle, read_bundle, write_bundle
from vqcompress.checkpoint import dequantize, inspect, load, verify
from vqcompress.errors import CheckpointError
from vqcompress.folder_files import read_json
from vqcompress.formats import spec_from_dict
from vqcompress.formats.gate import check_shape

COMPONENTS = ("unet", "text_encoder")


def run_forward(pipeline: Any) -> None:
    """One call of each packed component, with a page behind every packed tensor that cannot be read."""
    generator = torch.Generator().manual_seed(7)
    for component in (pipeline.unet, pipeline.text_encoder):
        guard(component)
    with torch.no_grad():
        states = pipeline.text_encoder(torch.arange(16).unsqueeze(0))[0]
        pipeline.unet(torch.randn(1, 4, 8, 8, generator=generator), 3, states).sample.sum()


def verified(path: Path, home: Path) -> None:
    """`verify`; a folder that is not sound counts as refused."""
    if problems := verify(path):
        raise CheckpointError(problems[0])


def inspected(path: Path, home: Path) -> None:
    """`inspect`, which reads folders alone."""
    if path.is_dir():
        inspect(path)


def opened_plainly(path: Path, home: Path) -> None:
    """``from_pretrained`` as anybody would call it, or ``from_single_file``, and one call of what was opened."""
    if path.is_dir():
        run_forward(DiffusionPipeline.from_pretrained(path))
    else:
        run_forward(StableDiffusionPipeline.from_single_file(path))


def loaded(path: Path, home: Path) -> None:
    run_forward(load(path))


def bundled(path: Path, home: Path) -> None:
    """Into a bundle and out of it, or out of one and into it again."""
    if path.is_dir():
        path = write_bundle(path, home / "one.safetensors")
    if (bundle := read_bundle(path)) is None:
        raise CheckpointError("no bundle")
    used = sum(file.stat().st_size for file in extract_bundle(bundle, home / "out").rglob("*") if file.is_file())
    assert used <= 2 * path.stat().st_size, f"{used} bytes from a bundle of {path.stat().st_size}"
    write_bundle(home / "out", home / "two.safetensors")


def opened_as_one_file(path: Path, home: Path) -> None:
    """Bundled, then opened as one file."""
    if path.is_dir():
        StableDiffusionPipeline.from_single_file(write_bundle(path, home / "single.safetensors"))


def made_dense(path: Path, home: Path) -> None:
    dequantize(path, home / "dense")


def decoded_without_the_gate(path: Path, home: Path) -> None:
    """Kernels on each layer's spec and tensors as they are, whatever they are."""
    for component in COMPONENTS if path.is_dir() else ():
        found: dict[str, torch.Tensor] = {}
        try:
            layers = dict(read_json(path / component / "config.json")["quantization_config"]["layers"])
            for file in sorted((path / component).glob("*.safetensors")):
                if file.is_file() and not os.path.islink(file):
                    found |= load_file(file)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, MemoryError):  # nothing for a kernel
            continue
        shared = {key.removeprefix("vq_shared."): t for key, t in found.items() if key.startswith("vq_shared.")}
        for name, entry in layers.items():
            own = {key.removeprefix(f"{name}."): t for key, t in found.items() if key.startswith(f"{name}.")}
            _use(entry, own, shared)


def _use(entry: Any, tensors: dict[str, torch.Tensor], shared: dict[str, torch.Tensor]) -> None:
    try:
        spec = spec_from_dict({key: value for key, value in entry.items() if key != "shape"})
        shape = check_shape(entry["shape"])
        if spec.codebook in shared:
            tensors = {**tensors, "codebooks": shared[spec.codebook]}
        tensors = {name: guarded(tensor) for name, tensor in tensors.items() if name != "bias"}
        kernels.decode(spec, shape, tensors, torch.float32)
        if len(shape) == 2:
            kernels.linear(torch.ones(1, shape[1]), spec, shape, tensors, None)
    except (CheckpointError, AttributeError, KeyError, TypeError):  # the entry is none, or its tensors are refused
        pass


OPERATIONS: dict[str, Callable[[Path, Path], None]] = {
    "verify": verified,
    "inspect": inspected,
    "plain": opened_plainly,
    "load": loaded,
    "bundle": bundled,
    "single file": opened_as_one_file,
    "dequantize": made_dense,
    "kernels": decoded_without_the_gate,
}
USES = ("plain", "load", "dequantize")
"""What must work where `verify` finds nothing."""
