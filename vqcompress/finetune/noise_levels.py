"""What a pipeline's scheduler says about its timesteps: signal-to-noise ratios, and what the denoiser predicts."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from vqcompress.errors import RecipeError

Target = Literal["epsilon", "v_prediction", "sample", "flow"]
TARGETS: tuple[Target, ...] = ("epsilon", "v_prediction", "sample")


def noise_levels(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, Target]:
    """``(snr [n], target)`` for ``timesteps [n]``: of a diffusion scheduler by its ``alphas_cumprod``, of a flow-matching one by its
    linear path ``x = (1 - σ) data + σ noise``. Raises `RecipeError` for a scheduler that has neither."""
    config = getattr(scheduler, "config", {})
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(alphas, Tensor) and config.get("prediction_type") in TARGETS:
        kept = alphas.double().cpu()[timesteps.round().long().clamp(0, len(alphas) - 1)]
        return kept / (1 - kept), config["prediction_type"]
    if "flow" in type(scheduler).__name__.lower():
        count = float(config.get("num_train_timesteps", 1000))
        sigma = (timesteps.double() / (count if float(timesteps.max()) > 1 else 1.0)).clamp(1e-4, 1 - 1e-4)
        return ((1 - sigma) / sigma).square(), "flow"
    raise RecipeError(
        f"weights by noise levels need a scheduler that tells them, and {type(scheduler).__name__} does not; "
        "use weighting='uniform' or 'measured'"
    )
