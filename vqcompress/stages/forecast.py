"""How long a run would take on a device and on this CPU, what it needs of both, and what would help: all computed.

Times are operations by the speed of a matrix product, which is measured here on both. A denoiser's call takes two
operations for each weight and each sample that the weight sees; attention and everything else is left out. So these
are orders of magnitude, and least wrong where layers are wide.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vqcompress.finetuning.presets import training_preset
from vqcompress.placement import Placement, device_memory
from vqcompress.recipe import Recipe
from vqcompress.sampling_config import ResolvedSampling
from vqcompress.working_memory import usable_cores

UNET_SHARE = 1 / 12  # samples that a UNet's weight sees on average, by latents: SDXL's 1/14, SD 1.5's 1/10
PIXELS_PER_LATENT = 8  # along a side, where a plan has no VAE that says so
TRAJECTORIES, MEASURED = 8, 6  # prompts for the allocation of bits, and calls' worth of each: backward, and candidates
FACTORIZATIONS = 2  # of a second moment, of two thirds of n³ multiplications and additions each
BACKWARD = 3  # a call with its backward pass, by a call
SIDES = {"cpu": 768, "cuda": 8192, "xpu": 4096, "mps": 2048}  # of the matrices whose product is timed
ROOM = 0.9  # of what is free: a need above it does not fit


@dataclass(frozen=True)
class Call:
    """A denoiser's call for one image: its ``weights``, and how many ``samples`` a weight sees on average."""

    weights: int
    samples: float

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.weights * self.samples


@dataclass(frozen=True)
class Work:
    """What is to be computed, in operations: calls of the denoiser for calibration, products and factors of second
    moments, calls for fine-tuning; and seconds of one core for the search of codes."""

    calls: float
    moments: float
    factors: float
    tuning: float
    search: float

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        sampling: ResolvedSampling,
        call: Call,
        columns: Sequence[int],
        passes: int,
        search: float,
    ) -> Work:
        """``call`` is one of the denoiser for one image; ``columns``: those of each second moment, which are recorded
        in so many ``passes`` over the prompts."""
        calibration, preset = recipe.calibration, training_preset(recipe.training)
        branches = 2 if sampling.guidance > 1 else 1
        image = sampling.steps * branches * call.operations
        allocation = TRAJECTORIES * MEASURED if recipe.shares_budget else 0
        seen = calibration.batch_size * branches * call.samples
        samples = min(seen, calibration.rows_per_call or seen)
        batches = -(-calibration.count // calibration.batch_size) * sampling.steps
        learned = BACKWARD * preset.steps * preset.batch_size / sampling.steps
        return cls(
            calls=image * ((passes * calibration.count if columns else 0) + allocation),
            moments=sum(float(side) ** 2 for side in columns) * samples * batches,
            factors=FACTORIZATIONS * sum(4 / 3 * float(side) ** 3 for side in columns),
            tuning=image * (preset.prompts + preset.held_out + learned),
            search=search,
        )

    def seconds(self, speed: Speed, host: Speed) -> dict[str, float]:
        """Of calibration, encoding and fine-tuning, with ``speed`` for the pipeline and ``host``'s cores for codes."""
        factors = self.factors / (speed.double or host.double)
        return {
            "calibration": self.calls / speed.product + self.moments / speed.single,
            "encoding": self.search / usable_cores() + factors,
            "fine-tuning": self.tuning / speed.product,
        }


@dataclass(frozen=True)
class Speed:
    """Operations a second of products in the computation's dtype, in float32 and in float64 (0: not to be had)."""

    product: float
    single: float
    double: float

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> Speed:
        """Of ``device``, each the fastest of three products."""
        double = 0.0 if device.type not in ("cpu", "cuda") else _speed(device, torch.float64)
        single = _speed(device, torch.float32)
        return cls(single if dtype == torch.float32 else _speed(device, dtype), single, double)


def _speed(device: torch.device, dtype: torch.dtype) -> float:
    side = SIDES[device.type]
    matrix, best = torch.ones(side, side, dtype=dtype, device=device), float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def samples_of_a_call(pipeline: Any, denoiser: str, sampling: ResolvedSampling) -> float:
    """How many samples a weight of ``denoiser`` sees on average in a call for one image."""
    factor = getattr(pipeline, "vae_scale_factor", None) or PIXELS_PER_LATENT
    latents = (sampling.height or 0) * (sampling.width or 0) / factor**2
    if denoiser == "unet":
        return max(1.0, latents * UNET_SHARE)
    config = getattr(getattr(pipeline, denoiser), "config", {})
    patch = config.get("patch_size", 2)
    patch = patch[-1] if isinstance(patch, list | tuple) else patch
    packed = (
        2 if patch == 1 and (config.get("in_channels") or 0) >= 64 else 1
    )  # FLUX and others put 2 x 2 into channels
    return max(1.0, latents / (patch * packed) ** 2)


@dataclass(frozen=True)
class Needs:
    """Bytes: of the device (0 where there is none), of the host, on the disk."""

    device: int
    host: int
    disk: int


def forecast(placement: Placement, work: Work, needs: Needs, free_disk: int, dtype: torch.dtype) -> dict[str, Any]:
    """``device``, ``seconds`` on it and on the CPU, ``needs``, ``free``, and ``advice``: the one change that helps most
    where something does not fit, else None."""
    cpu = torch.device("cpu")
    host, here = Speed.measured(cpu, torch.float32), device_memory(cpu)
    there = None if placement.on_host else device_memory(placement.device)
    seconds = {"cpu": work.seconds(host, host)}
    if there is not None:
        seconds[str(placement.device)] = work.seconds(Speed.measured(placement.device, dtype), host)
    free = Needs(0 if there is None else placement.free_bytes(), here.free, free_disk)
    return {
        "device": {"device": str(placement.device), **asdict(there or here)},
        "seconds": seconds,
        "needs": asdict(needs),
        "free": asdict(free),
        "advice": advice(needs, free, placement),
    }


def advice(needs: Needs, free: Needs, placement: Placement) -> str | None:
    """What to change first where ``needs`` exceed what is ``free``."""
    if needs.device > ROOM * free.device > 0 and placement.offload in ("none", "model"):
        return "the weights do not fit the device: --offload group streams them from the host"
    if needs.host > ROOM * free.host:
        return (
            "the host's memory is short: give less to --memory-budget, which takes more passes; without calibration "
            "(--method rtn --budget layer) weights are read from their file layer by layer"
        )
    if needs.disk > ROOM * free.disk:
        return "the disk is short: --calibration FOLDER keeps the second moments on another one"
    return None
