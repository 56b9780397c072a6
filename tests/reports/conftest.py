"""A comparison with invented numbers that behave like measured ones: errors fall fourfold with each bit."""

import math

import numpy as np
import pytest
import torch

from vqcompress.metrics import wilson_interval
from vqcompress.reports import (
    ORIGINAL,
    Comparison,
    LayerError,
    Original,
    Settings,
    Share,
    Trajectory,
    Variant,
    verdicts,
)
from vqcompress.reports.pictures import to_png

WEIGHTS = 14_400_000
METHODS = {"trellis": (0.42, 0.04), "additive": (0.55, 0.07), "gptq": (0.75, 0.28), "rtn": (1.6, 0.28)}
BLOCKS = [f"down_blocks.{i}" for i in range(3)] + ["mid_block"] + [f"up_blocks.{i}" for i in range(3)]
LAYERS = [f"{block}.attentions.0.layer_{index}" for block in BLOCKS for index in range(9)] + ["conv_out"]
PROMPTS = (
    "three red squares on a gray background",
    "a purple cross above an orange star on a white background",
    "a small cyan ring on a black background",
    "two yellow diamonds on a gray background",
    "a green bar to the left of a pink circle on a white background",
    'a <b>bold</b> & "quoted" | prompt',
)

RIGHT = (True, True, True, True, True, False)


def share(passed: int, total: int = 200) -> Share:
    return Share(passed / total, *wilson_interval(passed, total), count=total)


def image_values(error: float) -> dict[str, tuple[float, ...]]:
    """Every image's values: the same images are hard for every variant."""
    hardness = [0.5, -1.0, 3.0, -2.0, 0.0, -0.5]
    psnr = tuple(19 - 10 * math.log10(error) * 0.7 + hard for hard in hardness)
    distances = tuple(0.01 * error**0.5 * 2**-hard for hard in hardness)
    return {"psnr": psnr, "ssim": tuple(1 - min(0.9, 6 * error) for _ in hardness), "feature_distance": distances}


def energies(error: float) -> tuple[tuple[float, float], ...]:
    return tuple(
        (error * signal * hard, signal) for signal, hard in ((10.0, 0.8), (12.0, 1.2), (9.0, 1.0), (11.0, 1.0))
    )


def make_row(method: str, bits: int, rng: np.random.Generator) -> Variant:
    factor, overhead = METHODS[method]
    error = factor * 4.0**-bits
    nbytes = int((bits + overhead) * WEIGHTS / 8 + 600_000)
    passed = int(186 - min(170, 900 * error))
    return Variant(
        label=f"{method} {bits}-bit",
        method=method,
        scheme="uniform" if method in ("trellis", "additive") else "",
        bits_per_weight=bits + overhead,
        denoiser_bits=8 * nbytes / WEIGHTS,
        denoiser_bytes=nbytes,
        folder_bytes=nbytes + 3_100_000,
        denoiser_error=error,
        error_by_timestep={float(t): error * (0.4 + 2 * (1 - t / 1000) ** 2) for t in range(950, 0, -50)},
        layer_errors=tuple(LayerError(name, error * float(rng.uniform(0.5, 4)), bits + 0.1) for name in LAYERS),
        image_metrics={
            "psnr": 18 - 10 * math.log10(error) * 0.7,
            "psnr_median": 19 - 10 * math.log10(error) * 0.7,
            "psnr_mean": 18.5 - 10 * math.log10(error) * 0.7,
            "psnr_worst": 9.0,
            "ssim": 1 - min(0.9, 6 * error),
        },
        image_values=image_values(error),
        energies=energies(error),
        trajectory=Trajectory({float(t): 2 * error for t in range(950, 0, -50)}, energies(2 * error)),
        memory_bytes=nbytes + 20_000,
        time_ratio=1.3,
        caption_accuracy={"all": share(passed), "count": share(passed + 10)},
        right_images=tuple(1000 * error < limit for limit in (900, 300, 90, 30, 9, 0)),
    )


def make_pictures(labels: list[str]) -> dict[str, tuple[bytes, ...]]:
    generator = torch.Generator().manual_seed(0)
    base = torch.full((len(PROMPTS), 3, 32, 32), 0.5)
    base[:, 0, 6:16, 8:18] = 0.9
    base[:, 2, 18:28, 14:24] = 0.1
    noisy = {
        label: base + 0.03 * place * torch.randn(base.shape, generator=generator) for place, label in enumerate(labels)
    }
    return {label: tuple(map(to_png, images)) for label, images in noisy.items()}


def make_comparison() -> Comparison:
    rng = np.random.default_rng(0)
    order = [("trellis", 3)] + [(m, b) for m in METHODS for b in (2, 3, 4) if (m, b) != ("trellis", 3)]
    variants = tuple(make_row(method, bits, rng) for method, bits in order)
    return Comparison(
        model="shapes",
        denoiser="unet",
        original=Original(2 * WEIGHTS + 40_000, 2 * WEIGHTS + 3_200_000, WEIGHTS, 0.42, {"all": share(187)}, RIGHT),
        variants=variants,
        verdicts=verdicts(variants),
        settings=Settings(
            prompts=PROMPTS,
            prompt_source="held-out captions",
            seed=0,
            steps=20,
            guidance=3.0,
            trajectory_prompts=4,
            denoiser_calls=80,
            layer_inputs="the second moments of its inputs on 4 of the prompts",
            versions={"vqcompress": "0.1.0", "torch": "2.13.0"},
            machine="an abacus, 2 cores",
        ),
        pictured=(3, 5, 0, 1, 2, 4),
        pictures=make_pictures([ORIGINAL, *(variant.label for variant in variants)]),
    )


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    return make_comparison()
