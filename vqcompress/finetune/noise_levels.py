"""What a pipeline's scheduler says about its timesteps: signal-to-noise ratios, and what the denoiser predicts."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from vqcompress.errors import RecipeError

Target = Literal["epsilon", "v_prediction", "sample", "flow"]
TARGETS: tuple[Target, ...] = ("epsilon", "v_prediction", "sample")


def tells_noise_levels(scheduler: Any) -> bool:
    """Whether `noise_levels` knows what to do with ``scheduler``; those of our own samplers are none, for one."""
    return _is_diffusion(scheduler) or _is_flow(scheduler)


def noise_levels(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, Target]:
    """``(snr [n], target)`` for ``timesteps [n]``: of a diffusion scheduler by its ``alphas_cumprod``, of a flow-matching one by its
    linear path ``x = (1 - σ) data + σ noise``. Raises `RecipeError` for a scheduler that has neither."""
    if _is_diffusion(scheduler):
        alphas = scheduler.alphas_cumprod.double().cpu()
        kept = alphas[timesteps.round().long().clamp(0, len(alphas) - 1)]
        return kept / (1 - kept), scheduler.config["prediction_type"]
    if _is_flow(scheduler):
        count = float(getattr(scheduler, "config", {}).get("num_train_timesteps", 1000))
        sigma = (timesteps.double() / (count if float(timesteps.max()) > 1 else 1.0)).clamp(1e-4, 1 - 1e-4)
        return ((1 - sigma) / sigma).square(), "flow"
    raise RecipeError(
        f"weights by noise levels need a scheduler that tells them, and {type(scheduler).__name__} does not; "
        "use weighting='uniform' or 'measured'"
    )


def _is_diffusion(scheduler: Any) -> bool:
    levels, config = getattr(scheduler, "alphas_cumprod", None), getattr(scheduler, "config", {})
    return isinstance(levels, Tensor) and config.get("prediction_type") in TARGETS


def _is_flow(scheduler: Any) -> bool:
    return "flow" in type(scheduler).__name__.lower()
