"""What a Stable Diffusion network predicts, and how single files say so: by tensors without weights, and metadata.

- ``v_pred``: it predicts v (Salimans and Ho 2022, arXiv 2202.00512); with ``ztsnr``, for noise that ends without
  signal (Lin et al. 2023, arXiv 2305.08891).
- ``edm_mean``, ``edm_std``: EDM (Karras et al. 2022, arXiv 2206.00364) on latents normalised by these.
- ``edm_vpred.sigma_max``, and perhaps ``.sigma_min``: v for noise up to this sigma, in EDM's schedule.
- ``modelspec.prediction_type`` in the metadata: ``v`` or ``epsilon``. It counts where no tensor says anything.

Without any of these the configuration of the family's base model holds.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqcompress.architectures.architecture import Pipeline
from vqcompress.architectures.file_header import FileHeader
from vqcompress.errors import UnsupportedError

V_PREDICTION = "v_prediction"
MARKS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_min", "edm_vpred.sigma_max")
METADATA_KEY = "modelspec.prediction_type"
METADATA_WORDS = {"v": V_PREDICTION, V_PREDICTION: V_PREDICTION, "epsilon": "epsilon", "eps": "epsilon"}
ZERO_SNR = "rescale_betas_zero_snr"
EDM_SIGMA = (0.002, 80.0)
EDM_V_SIGMA = (0.002, 120.0)
EDM_SCALING = 0.5  # EDM's standard deviation of the data, to which latents are scaled


@dataclass(frozen=True)
class Prediction:
    """``kind``: ``"epsilon"``, ``"v_prediction"``, or one of EDM: ``"edm"`` (its own scaling), ``"edm_v"``.

    ``sigma``: smallest and largest of EDM's noise. ``mean``, ``std``: of latents, a number for each channel.
    """

    kind: str
    zero_snr: bool = False
    sigma: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of_file(cls, header: FileHeader) -> Prediction | None:
        """What the file says, or None if it says nothing."""
        names = header.entries
        if "edm_mean" in names and "edm_std" in names:
            mean, std = (_numbers(header, name) for name in ("edm_mean", "edm_std"))
            return cls("edm", sigma=EDM_SIGMA, mean=mean, std=std)
        if "edm_vpred.sigma_max" in names:
            ends = ("edm_vpred.sigma_min", "edm_vpred.sigma_max")
            found = (_numbers(header, name) if name in names else () for name in ends)
            low, high = ((*there, default)[0] for there, default in zip(found, EDM_V_SIGMA, strict=True))
            return cls("edm_v", sigma=(low, high))
        if "v_pred" in names:
            return cls(V_PREDICTION, zero_snr="ztsnr" in names)
        word = METADATA_WORDS.get(header.metadata.get(METADATA_KEY, "").strip().lower())
        return cls(word, zero_snr="ztsnr" in names) if word else None

    @classmethod
    def of_pipeline(cls, pipeline: Pipeline) -> Prediction:
        """What the pipeline's scheduler and VAE are configured for."""
        scheduler = pipeline.scheduler.config
        kind = scheduler.get("prediction_type", "epsilon")
        if not type(pipeline.scheduler).__name__.startswith("EDM"):
            return cls(kind, zero_snr=bool(scheduler.get(ZERO_SNR)))
        sigma = (scheduler["sigma_min"], scheduler["sigma_max"])
        if kind == V_PREDICTION:
            return cls("edm_v", sigma=sigma)
        mean, std = (pipeline.vae.config.get(name) for name in ("latents_mean", "latents_std"))
        return cls("edm", sigma=sigma, mean=mean and tuple(mean), std=std and tuple(std))

    def apply(self, pipeline: Pipeline) -> None:
        """Configure the pipeline's scheduler, and for EDM its VAE, for this prediction."""
        from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

        if self.sigma is None:
            pipeline.scheduler = self._discrete(pipeline.scheduler)
            return
        ends = {"sigma_min": self.sigma[0], "sigma_max": self.sigma[1]}
        if self.kind == "edm_v":
            pipeline.scheduler = EDMEulerScheduler(
                **ends, sigma_data=1.0, prediction_type=V_PREDICTION, sigma_schedule="exponential"
            )
            return
        pipeline.scheduler = EDMDPMSolverMultistepScheduler(**ends, sigma_data=EDM_SCALING)
        if self.mean and self.std:
            pipeline.vae.register_to_config(
                latents_mean=list(self.mean), latents_std=list(self.std), scaling_factor=EDM_SCALING
            )

    def _discrete(self, scheduler: Any) -> Any:
        from diffusers import EulerDiscreteScheduler

        changes: dict[str, Any] = {"prediction_type": self.kind}
        kind = type(scheduler)
        if self.zero_snr:  # Its sampler must start at the last timestep, the one without signal.
            changes |= {ZERO_SNR: True, "timestep_spacing": "trailing"}
            kind = kind if ZERO_SNR in inspect.signature(kind.__init__).parameters else EulerDiscreteScheduler
        return kind.from_config(scheduler.config, **changes)

    def markers(self) -> dict[str, Tensor]:
        """The tensors by which a single file says this. Raises `UnsupportedError` if files have no way to."""
        if self.kind == "edm":
            if self.mean is None or self.std is None:
                raise UnsupportedError(
                    "the original layout tells EDM by the mean and deviation of latents, which this VAE's config "
                    "lacks; use the diffusers layout"
                )
            return {"edm_mean": torch.tensor(self.mean), "edm_std": torch.tensor(self.std)}
        if self.kind == "edm_v" and self.sigma:
            ends = ("edm_vpred.sigma_min", "edm_vpred.sigma_max")
            return {
                name: torch.tensor(sigma, dtype=torch.float64) for name, sigma in zip(ends, self.sigma, strict=True)
            }
        if self.kind not in (V_PREDICTION, "epsilon"):
            raise UnsupportedError(
                f"the original layout has no way to say that a network predicts {self.kind!r}; use the diffusers layout"
            )
        said = {"v_pred": self.kind == V_PREDICTION, "ztsnr": self.zero_snr}
        return {name: torch.empty(0) for name, holds in said.items() if holds}

    def metadata(self) -> dict[str, str]:
        """The same in the words of the metadata, where it has any."""
        return {METADATA_KEY: "v" if self.kind == V_PREDICTION else self.kind} if self.sigma is None else {}


def _numbers(header: FileHeader, name: str) -> tuple[float, ...]:
    return tuple(header.tensors([name])[name].flatten().tolist())
