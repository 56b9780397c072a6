"""What a comparison found, as plain data: everything that the report's pages are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vqcompress.errors import VQCompressError
from vqcompress.methods import METHODS, Family

SCHEMA = 1
ORIGINAL = "original"
"""Label of the uncompressed pipeline."""


def other_scheme(method: str) -> str:
    """What `Row.scheme` calls an allocation that is not the default of ``method``: "mixed" or "uniform"."""
    return "mixed" if METHODS[method].default_budget == "layer" else "uniform"


Measure = Literal["denoiser_error", "psnr"]
Basis = Literal["curve", "dominance", "none"]


@dataclass(frozen=True)
class Share:
    """A share of images with its 95 % interval, all in 0..1, and the number of images it is of."""

    share: float
    low: float
    high: float
    count: float


@dataclass(frozen=True)
class LayerError:
    """Relative output error of one layer; ``bits`` are those stored with it, shared codebooks apart."""

    layer: str
    error: float
    bits: float


@dataclass(frozen=True)
class ComponentCost:
    """One compressed component, alone in the original: bits a weight with its dense parts, bytes, PSNR in dB and SSIM."""

    component: str
    bits: float
    nbytes: int
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Original:
    """The uncompressed pipeline: sizes on disk in bytes, weights of the denoiser, seconds an image."""

    denoiser_bytes: int
    folder_bytes: int
    denoiser_weights: int
    seconds_per_image: float
    alignment: Mapping[str, Share] = field(default_factory=dict)


@dataclass(frozen=True)
class ExpertUse:
    """A routed expert of the mixture called ``mixture``: the calibration ``rows`` that reached it (``None`` where none were
    recorded), and the mean relative error of its layers."""

    mixture: str
    expert: int
    rows: int | None
    error: float


@dataclass(frozen=True)
class Row:
    """One compressed variant.

    ``bits_per_weight`` covers the quantized layers of all components, everything stored counted; ``denoiser_bits`` the
    whole denoiser file over all its weights, layers that stay dense included. Errors are relative (0..1 and above),
    PSNR in dB; ``error_by_timestep`` runs from noise to image; ``time_ratio`` is sampling time over the original's in the same run.
    ``dense_layers`` were left so by the model's budget, ``starved_layers`` saw fewer inputs than they have columns.
    ``scheme`` is "mixed" or "uniform" where bits were dealt out in another way than the method's own, else empty.
    ``experts`` are those of its mixtures, ``components`` those of a variant that compressed several.
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
    psnr: float
    psnr_median: float
    psnr_worst: float
    ssim: float
    time_ratio: float
    alignment: Mapping[str, Share] = field(default_factory=dict)
    components: tuple[ComponentCost, ...] = ()
    scheme: str = ""
    dense_layers: tuple[str, ...] = ()
    starved_layers: tuple[str, ...] = ()
    experts: tuple[ExpertUse, ...] = ()

    @property
    def curve(self) -> str:
        """Rows of one curve differ in their bits alone: method and scheme."""
        return f"{self.method}-{self.scheme}" if self.scheme else self.method

    @property
    def family(self) -> Family:
        """Whether its codes are vectors or scalars."""
        return METHODS[self.method].family

    @property
    def allocated(self) -> bool:
        """Whether bits follow what each layer's error costs, by the method's default or on demand."""
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
    """A vector variant against the best scalar code at its bytes, by one measure.

    ``value`` and ``rival_value`` are relative errors, or dB for PSNR. ``basis`` says how the rival was found: on a scalar method's
    measured "curve" at exactly these bytes (then ``rival`` is the method and ``rival_bytes`` what it would need to match
    ``value``); or, beyond all curves, by "dominance": a measured variant (``rival``, of ``rival_bytes``) that is both larger
    and worse, or both smaller and better. With basis "none" nothing can be said, and ``wins`` is ``None``.
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
    """Under what conditions everything was measured."""

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
    """All rows, in the order of the candidates: the first is the one that the report is about.

    ``pictures`` maps a label (and `ORIGINAL`) to PNG files of the first prompts; they are not part of the JSON.
    """

    model: str
    denoiser: str
    original: Original
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    settings: Settings
    pictures: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file; numbers that are not finite become ``"inf"``, ``"-inf"`` and ``"nan"``, which `float` reads."""
        data = {name: value for name, value in vars(self).items() if name != "pictures"}
        rows = [{**asdict(row), **_derived(row)} for row in self.rows]
        plain = {**data, "original": asdict(self.original), "rows": rows, "settings": asdict(self.settings)}
        plain["verdicts"] = [asdict(verdict) for verdict in self.verdicts]
        return {"schema": SCHEMA, **_finite(plain)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_json`, without pictures. Raises `VQCompressError` for another schema."""
        if data.get("schema") != SCHEMA:
            raise VQCompressError(f"report of schema {data.get('schema')!r}; this version reads {SCHEMA}, run it again")
        return cls(
            model=data["model"],
            denoiser=data["denoiser"],
            original=_original(data["original"]),
            rows=tuple(_row(row) for row in data["rows"]),
            verdicts=tuple(Verdict(**_numbers(verdict)) for verdict in data["verdicts"]),
            settings=Settings(**{**data["settings"], "prompts": tuple(data["settings"]["prompts"])}),
        )


DERIVED = ("family", "layer_error_mean", "layer_error_max")


def _derived(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in DERIVED}


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
    return Original(**{**_numbers_of(data), "alignment": _shares(data["alignment"])})


def _row(data: Mapping[str, Any]) -> Row:
    fields = {key: value for key, value in _numbers_of(data).items() if key not in DERIVED}
    fields["alignment"] = _shares(data["alignment"])
    fields["error_by_timestep"] = {float(t): float(error) for t, error in data["error_by_timestep"].items()}
    fields |= {key: tuple(data.get(key, ())) for key in ("dense_layers", "starved_layers")}
    fields["experts"] = tuple(ExpertUse(**_numbers(each)) for each in data.get("experts", ()))
    fields["layer_errors"] = tuple(LayerError(**_numbers(each)) for each in data["layer_errors"])
    fields["components"] = tuple(ComponentCost(**_numbers(each)) for each in data.get("components", ()))
    return Row(**fields)


def _numbers_of(data: Mapping[str, Any]) -> dict[str, Any]:
    return _numbers({key: value for key, value in data.items() if not isinstance(value, dict | list)})
