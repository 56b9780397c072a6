"""What was measured of one compressed variant, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from vqcompress.methods import METHODS
from vqcompress.metrics import Estimate, estimate, mean, median, paired_difference, ratio_of_sums, signal_to_error_db

Energy = tuple[float, float]
"""Summed squares of one image: of the error, and of the original's signal."""
Family = Literal["vector", "scalar", "peer"]


def other_scheme(method: str) -> str:
    """What `Variant.scheme` calls an allocation that is not the default of ``method``: "mixed" or "uniform"."""
    return "mixed" if METHODS[method].default_budget == "layer" else "uniform"


@dataclass(frozen=True)
class Share:
    """A share of images with its 95 % interval, all in 0..1, and the number of images it is of."""

    share: float
    low: float
    high: float
    count: float


@dataclass(frozen=True)
class LayerError:
    """Relative output error of one layer. ``bits`` per weight are those stored with it, without shared codebooks.

    ``gap`` is what calibration recorded: bits a weight above the rate-distortion bound of Gaussian weights;
    ``outliers`` the weights stored beside its codes; ``is_scalar`` whether its code is a scalar one.
    """

    layer: str
    error: float
    bits: float
    gap: float | None = None
    outliers: int = 0
    is_scalar: bool = False


@dataclass(frozen=True)
class ComponentCost:
    """One compressed component, alone in the original.

    ``bits`` per weight include its dense layers; ``psnr`` is in dB.
    """

    component: str
    bits: float
    nbytes: int
    psnr: float
    ssim: float


@dataclass(frozen=True)
class ExpertUse:
    """A routed expert of the mixture called ``mixture``, and the mean relative error of its layers.

    ``tokens`` is how many calibration sent to it, ``None`` where none were recorded.
    """

    mixture: str
    expert: int
    tokens: int | None
    error: float


@dataclass(frozen=True)
class Trajectory:
    """How far a variant's own guided trajectory strays from the original's, from the same seeds.

    Relative squared errors of the latents that the denoiser is given: ``by_timestep``, from noise to image, and
    ``energies`` of each image at the last call. Unlike the denoiser error, this contains what guidance amplifies and
    what earlier steps left.
    """

    by_timestep: Mapping[float, float] = field(default_factory=dict)
    energies: tuple[Energy, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One compressed variant.

    ``bits_per_weight`` counts everything stored for the quantized layers of all components. ``denoiser_bits`` divides
    the whole denoiser file by all its weights, dense layers included. Errors are relative (0 is lossless, 1 as bad as
    no output). ``energies`` are those of the denoiser error, an image each. ``image_metrics`` has
    `metrics.IMAGE_METRICS` by name, ``image_values`` the values of single images, in the order of the prompts;
    ``right_images`` says of each whether it shows what its caption says, empty where nothing judged them.
    ``error_by_timestep`` runs from noise to image. ``time_ratio`` is the sampling time divided by the original's in the
    same run, NaN where the variant ran as a dense network. ``memory_bytes`` is what the loaded denoiser's weights take.
    ``dense_layers`` were left dense by the bit allocation, or fit no code. ``undersampled_layers`` saw fewer samples in
    calibration than they have columns. ``scalar_layers`` have a scalar code where a vector code was asked for, and
    ``outliers`` weights are stored beside the codes of all layers. ``scheme`` is "mixed" or "uniform" where bits were
    not allocated by the method's default, else empty. ``components`` has entries for variants that compressed several.
    ``peer`` is the package, with its version, that made the variant, empty for ours; ``method`` is then its format.
    """

    label: str
    method: str
    bits_per_weight: float
    denoiser_bits: float
    denoiser_bytes: int
    folder_bytes: int
    denoiser_error: float
    error_by_timestep: Mapping[float, float]
    layer_errors: tuple[LayerError, ...]
    image_metrics: Mapping[str, float]
    time_ratio: float
    caption_accuracy: Mapping[str, Share] = field(default_factory=dict)
    right_images: tuple[bool, ...] = ()
    components: tuple[ComponentCost, ...] = ()
    scheme: str = ""
    dense_layers: tuple[str, ...] = ()
    undersampled_layers: tuple[str, ...] = ()
    scalar_layers: tuple[str, ...] = ()
    outliers: int = 0
    experts: tuple[ExpertUse, ...] = ()
    image_values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    energies: tuple[Energy, ...] = ()
    trajectory: Trajectory = field(default_factory=Trajectory)
    memory_bytes: int = 0
    peer: str = ""

    @property
    def psnr(self) -> float:
        """PSNR over all pixels, in dB."""
        return self.image_metrics["psnr"]

    @property
    def ssim(self) -> float:
        """Mean structural similarity."""
        return self.image_metrics["ssim"]

    @cached_property
    def psnr_median(self) -> Estimate | None:
        """Median PSNR over images, in dB, with its interval."""
        return self.over_images("psnr")

    @cached_property
    def error(self) -> Estimate | None:
        """The denoiser error with its interval over the trajectory's images."""
        return ratio_of_sums(*zip(*self.energies, strict=True)) if self.energies else None

    @cached_property
    def trajectory_error(self) -> Estimate | None:
        """Relative squared error of the latents at the last call of the variant's own trajectory."""
        energies = self.trajectory.energies
        return ratio_of_sums(*zip(*energies, strict=True)) if energies else None

    @property
    def signal_to_error(self) -> float:
        """The denoiser error as a signal-to-error ratio in dB."""
        return signal_to_error_db(self.denoiser_error)

    def over_images(self, metric: str, statistic=median) -> Estimate | None:
        """``statistic`` of a metric's values of single images; None where there are none."""
        values = self.image_values.get(metric, ())
        return estimate(values, statistic) if values else None

    def captions_against(self, right_images: tuple[bool, ...]) -> Estimate | None:
        """Caption accuracy less that of ``right_images``, on the same prompts, paired; None if one was not judged."""
        if not self.right_images or len(self.right_images) != len(right_images):
            return None
        return paired_difference(self.right_images, right_images, mean)

    @property
    def worst_image(self) -> int | None:
        """The prompt whose image has the lowest PSNR."""
        values = self.image_values.get("psnr", ())
        return int(np.argmin(values)) if values else None

    @property
    def median_image(self) -> int | None:
        """The prompt whose image is the median by PSNR, the lower one of two."""
        values = self.image_values.get("psnr", ())
        return int(np.argsort(values, kind="stable")[(len(values) - 1) // 2]) if values else None

    @property
    def curve(self) -> str:
        """Method and scheme: variants of one curve differ only in their bits."""
        return f"{self.method}-{self.scheme}" if self.scheme else self.method

    @property
    def family(self) -> Family:
        """Whether its codes are of vectors or of scalars, or another package's."""
        return "peer" if self.peer else METHODS[self.method].family

    @property
    def allocated(self) -> bool:
        """Whether bits were allocated by what each layer's error costs."""
        by_default = not self.peer and METHODS[self.method].default_budget == "model"
        return self.scheme == "mixed" or (self.scheme == "" and by_default)

    @property
    def layer_error_mean(self) -> float:
        """Plain mean over layers; NaN where no layer was measured."""
        return sum(each.error for each in self.layer_errors) / len(self.layer_errors) if self.layer_errors else math.nan

    @property
    def layer_error_max(self) -> float:
        """The worst layer's error; NaN where no layer was measured."""
        return max((each.error for each in self.layer_errors), default=math.nan)
