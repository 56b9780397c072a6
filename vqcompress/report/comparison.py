"""What a comparison found, as plain data: everything that the report's pages are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vqcompress.errors import VQCompressError
from vqcompress.methods import METHODS, Family
from vqcompress.metrics import IMAGE_METRICS

SCHEMA = 1
ORIGINAL = "original"
"""Label of the uncompressed pipeline."""
Measure = Literal["denoiser_error", "psnr"]
Basis = Literal["curve", "dominance", "none"]


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
    """Relative output error of one layer. ``bits`` per weight are those stored with it, without shared codebooks."""

    layer: str
    error: float
    bits: float


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
class Original:
    """The uncompressed pipeline: sizes on disk in bytes, number of the denoiser's weights, seconds per image."""

    denoiser_bytes: int
    folder_bytes: int
    denoiser_weights: int
    seconds_per_image: float
    caption_accuracy: Mapping[str, Share] = field(default_factory=dict)


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
class Variant:
    """One compressed variant.

    ``bits_per_weight`` counts everything stored for the quantized layers of all components. ``denoiser_bits`` divides
    the whole denoiser file by all its weights, dense layers included. Errors are relative (0 is lossless, 1 as bad as
    no output). ``image_metrics`` has `metrics.IMAGE_METRICS` by name. ``error_by_timestep`` runs from noise to image.
    ``time_ratio`` is the sampling time divided by the original's in the same run. ``dense_layers`` were left dense by
    the bit allocation, or fit no code. ``undersampled_layers`` saw fewer samples in calibration than they have columns.
    ``scalar_layers`` have a scalar code where a vector code was asked for, and ``outliers`` weights are stored beside
    the codes of all layers. ``scheme`` is "mixed" or "uniform" where bits were not allocated by the method's default,
    else empty. ``components`` has entries for variants that compressed several.
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
    components: tuple[ComponentCost, ...] = ()
    scheme: str = ""
    dense_layers: tuple[str, ...] = ()
    undersampled_layers: tuple[str, ...] = ()
    scalar_layers: tuple[str, ...] = ()
    outliers: int = 0
    experts: tuple[ExpertUse, ...] = ()

    @property
    def psnr(self) -> float:
        """PSNR over all pixels, in dB."""
        return self.image_metrics["psnr"]

    @property
    def ssim(self) -> float:
        """Mean structural similarity."""
        return self.image_metrics["ssim"]

    @property
    def curve(self) -> str:
        """Method and scheme: variants of one curve differ only in their bits."""
        return f"{self.method}-{self.scheme}" if self.scheme else self.method

    @property
    def family(self) -> Family:
        """Whether its codes are of vectors or of scalars."""
        return METHODS[self.method].family

    @property
    def allocated(self) -> bool:
        """Whether bits were allocated by what each layer's error costs."""
        return self.scheme == "mixed" or (self.scheme == "" and METHODS[self.method].default_budget == "model")

    @property
    def layer_error_mean(self) -> float:
        """Plain mean over layers; NaN where no layer was measured."""
        return sum(each.error for each in self.layer_errors) / len(self.layer_errors) if self.layer_errors else math.nan

    @property
    def layer_error_max(self) -> float:
        """The worst layer's error; NaN where no layer was measured."""
        return max((each.error for each in self.layer_errors), default=math.nan)


@dataclass(frozen=True)
class Verdict:
    """A vector variant against the best scalar code of the same size, by one measure.

    ``value`` and ``rival_value`` are relative errors, or dB for PSNR. ``basis`` says how the rival was found. "curve":
    on a scalar method's measured curve at exactly these bytes; ``rival`` is the curve, ``rival_bytes`` what it needs
    to match ``value``. "dominance", beyond all curves: ``rival``, of ``rival_bytes``, is a measured variant that is
    both larger and worse, or both smaller and better. "none": nothing can be said, and ``wins`` is ``None``.
    """

    label: str
    method: str
    measure: Measure
    nbytes: int
    value: float
    basis: Basis = "none"
    rival: str | None = None
    rival_value: float | None = None
    rival_bytes: float | None = None
    wins: bool | None = None


@dataclass(frozen=True)
class Settings:
    """The conditions under which everything was measured."""

    prompts: tuple[str, ...]
    prompt_source: str
    seed: int
    steps: int
    guidance: float
    trajectory_prompts: int
    denoiser_calls: int
    layer_inputs: str
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All variants, in the order of the candidates; the report is about the first.

    ``pictures`` maps each label, and `ORIGINAL`, to PNG files of the first prompts. They are not part of the JSON.
    """

    model: str
    denoiser: str
    original: Original
    variants: tuple[Variant, ...]
    verdicts: tuple[Verdict, ...]
    settings: Settings
    pictures: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file. Numbers that are not finite become "inf", "-inf" or "nan", as `float` reads."""
        plain = {
            "model": self.model,
            "denoiser": self.denoiser,
            "original": _renamed(asdict(self.original), IN_JSON),
            "rows": [_variant_to_json(variant) for variant in self.variants],
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "settings": asdict(self.settings),
        }
        return {"schema": SCHEMA, **_finite(plain)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_json`, without pictures. Raises `VQCompressError` for another schema."""
        if data.get("schema") != SCHEMA:
            raise VQCompressError(
                f"the report has schema {data.get('schema')!r}, this version reads {SCHEMA}; run the report again"
            )
        return cls(
            model=data["model"],
            denoiser=data["denoiser"],
            original=_original(data["original"]),
            variants=tuple(_variant(row) for row in data["rows"]),
            verdicts=tuple(Verdict(**_numbers(verdict)) for verdict in data["verdicts"]),
            settings=Settings(**{**data["settings"], "prompts": tuple(data["settings"]["prompts"])}),
        )


DERIVED = ("family", "layer_error_mean", "layer_error_max")
IN_JSON = {"caption_accuracy": "alignment", "undersampled_layers": "starved_layers", "tokens": "rows"}
"""Attribute -> key, where schema 1 has another word."""
FROM_JSON = {key: name for name, key in IN_JSON.items()}


def _renamed(data: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in data.items()}


def _variant_to_json(variant: Variant) -> dict[str, Any]:
    data = _renamed(asdict(variant), IN_JSON)
    data["experts"] = [_renamed(use, IN_JSON) for use in data["experts"]]
    data |= data.pop("image_metrics")
    return {**data, **{name: getattr(variant, name) for name in DERIVED}}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


NOT_FINITE = ("inf", "-inf", "nan")


def _numbers(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(value) if value in NOT_FINITE else value for key, value in data.items()}


def _shares(data: Mapping[str, Any]) -> dict[str, Share]:
    return {question: Share(**share) for question, share in data.items()}


def _original(data: Mapping[str, Any]) -> Original:
    return Original(**{**_numbers_of(data), "caption_accuracy": _shares(data["alignment"])})


def _variant(data: Mapping[str, Any]) -> Variant:
    fields = {key: value for key, value in _numbers_of(data).items() if key not in DERIVED}
    fields["image_metrics"] = {each.name: fields.pop(each.name) for each in IMAGE_METRICS if each.name in fields}
    fields["alignment"] = _shares(data["alignment"])
    fields["error_by_timestep"] = {float(t): float(error) for t, error in data["error_by_timestep"].items()}
    fields |= {key: tuple(data.get(key, ())) for key in ("dense_layers", "starved_layers", "scalar_layers")}
    fields["experts"] = tuple(ExpertUse(**_renamed(_numbers(each), FROM_JSON)) for each in data.get("experts", ()))
    fields["layer_errors"] = tuple(LayerError(**_numbers(each)) for each in data["layer_errors"])
    fields["components"] = tuple(ComponentCost(**_numbers(each)) for each in data.get("components", ()))
    return Variant(**_renamed(fields, FROM_JSON))


def _numbers_of(data: Mapping[str, Any]) -> dict[str, Any]:
    return _numbers({key: value for key, value in data.items() if not isinstance(value, dict | list)})
