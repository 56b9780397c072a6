"""What a comparison found, as plain data: everything that the report's pages are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from vqcompress.errors import VQCompressError
from vqcompress.metrics import Estimate, mean
from vqcompress.reports.variant import Family, Share, Variant

SCHEMA = 2
NOT_FINITE = ("inf", "-inf", "nan")
INTERNAL = ("pictures", "full_size")
"""Fields that are not part of the JSON."""
ORIGINAL = "original"
"""Label of the uncompressed pipeline."""
Measure = Literal["denoiser_error", "psnr"]
Outcome = Literal["better", "worse", "level", "open"]


@dataclass(frozen=True)
class Original:
    """The uncompressed pipeline: sizes on disk in bytes, number of the denoiser's weights, seconds per image.

    ``right_images`` says of each image whether it shows what its caption says, in the order of the prompts;
    ``memory_bytes`` is what its denoiser's weights take as they were loaded.
    """

    denoiser_bytes: int
    folder_bytes: int
    denoiser_weights: int
    seconds_per_image: float
    caption_accuracy: Mapping[str, Share] = field(default_factory=dict)
    right_images: tuple[bool, ...] = ()
    memory_bytes: int = 0


@dataclass(frozen=True)
class Rival:
    """A measured variant that a verdict compares with, its size and value, and how the two differ.

    ``difference`` is that of median PSNR in dB, ours minus the rival's, or the ratio of denoiser errors, ours to the
    rival's; ``captions`` that of caption accuracy, in 0..1, where the verdict is about images and a judge looked at
    them. Both are paired, over the same images.
    """

    label: str
    nbytes: int
    value: float
    difference: Estimate
    captions: Estimate | None = None


@dataclass(frozen=True)
class Verdict:
    """A vector variant between its two neighbours in size, by one measure.

    ``larger`` and ``smaller`` are the nearest in bytes of those scalar and other packages' variants that no other of
    them beats in bytes and value; None where there is none. ``outcome``: "better" than the larger one, "worse" than the
    smaller one, "level" with the larger one (their interval does not say that they differ), or "open".
    """

    label: str
    method: str
    measure: Measure
    nbytes: int
    value: float
    outcome: Outcome = "open"
    larger: Rival | None = None
    smaller: Rival | None = None


@dataclass(frozen=True)
class Settings:
    """The conditions under which everything was measured; ``machine`` in words."""

    prompts: tuple[str, ...]
    prompt_source: str
    seed: int
    steps: int
    guidance: float
    trajectory_prompts: int
    denoiser_calls: int
    layer_inputs: str
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""


@dataclass(frozen=True)
class Comparison:
    """All variants, in the order of the candidates; the report is about the first.

    ``pictures`` maps each label, and `ORIGINAL`, to PNG files of the prompts with the indices ``pictured``;
    ``full_size`` has those of `ORIGINAL` and the first variant in full where the others are scaled down. Neither is
    part of the JSON. ``missing`` says of peers that were asked for why they did not run.
    """

    model: str
    denoiser: str
    original: Original
    variants: tuple[Variant, ...]
    verdicts: tuple[Verdict, ...]
    settings: Settings
    pictured: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    pictures: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict, compare=False, repr=False)
    full_size: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def shown_prompts(self) -> tuple[str, ...]:
        """The prompts of ``pictures``."""
        return tuple(self.settings.prompts[at] for at in self.pictured)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file, as ``docs/report.schema.json`` has it. Numbers that are not finite, which JSON
        lacks, become "inf", "-inf" or "nan", as `float` reads."""
        plain = {name: _plain(getattr(self, name)) for name in _keys()}
        summaries = [asdict(_summary(variant, self.original)) for variant in self.variants]
        return {"schema": SCHEMA, **_finite({**plain, "summaries": summaries})}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_json`, without pictures. Raises `VQCompressError` for another schema or for other data."""
        if data.get("schema") != SCHEMA:
            raise VQCompressError(
                f"the report has schema {data.get('schema')!r}, this version reads {SCHEMA}; run the report again"
            )
        try:
            return TypeAdapter(cls).validate_python({key: data[key] for key in _keys() if key in data})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise VQCompressError(
                f"the report does not fit its schema at {place}: {first['msg']}; run it again"
            ) from error


@dataclass(frozen=True)
class Summary:
    """What follows from a variant's other numbers: intervals are 95 % bootstrap intervals over images.

    ``captions`` is the difference of caption accuracy from the original's, in 0..1, paired.
    """

    label: str
    family: Family
    signal_to_error_db: float
    error: Estimate | None
    trajectory_error: Estimate | None
    psnr_median: Estimate | None
    psnr_mean: Estimate | None
    ssim_median: Estimate | None
    ssim_mean: Estimate | None
    feature_distance_median: Estimate | None
    feature_distance_mean: Estimate | None
    worst_image: int | None
    captions: Estimate | None
    layer_error_mean: float
    layer_error_max: float


@dataclass(frozen=True)
class Document:
    """``report.json``."""

    schema: Literal[2]
    model: str
    denoiser: str
    original: Original
    variants: tuple[Variant, ...]
    summaries: tuple[Summary, ...]
    verdicts: tuple[Verdict, ...]
    settings: Settings
    pictured: tuple[int, ...]
    missing: tuple[str, ...]


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of ``report.json``."""
    schema = TypeAdapter(Document).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_numbers_may_be_infinite(schema)}


def _keys() -> list[str]:
    return [name for name in Comparison.__dataclass_fields__ if name not in INTERNAL]


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _summary(variant: Variant, original: Original) -> Summary:
    return Summary(
        label=variant.label,
        family=variant.family,
        signal_to_error_db=variant.signal_to_error,
        error=variant.error,
        trajectory_error=variant.trajectory_error,
        psnr_median=variant.psnr_median,
        psnr_mean=variant.over_images("psnr", mean),
        ssim_median=variant.over_images("ssim"),
        ssim_mean=variant.over_images("ssim", mean),
        feature_distance_median=variant.over_images("feature_distance"),
        feature_distance_mean=variant.over_images("feature_distance", mean),
        worst_image=variant.worst_image,
        captions=variant.captions_against(original.right_images),
        layer_error_mean=variant.layer_error_mean,
        layer_error_max=variant.layer_error_max,
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _numbers_may_be_infinite(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_numbers_may_be_infinite(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _numbers_may_be_infinite(value) for key, value in schema.items()}
    if changed.get("type") == "number":
        described = {key: value for key, value in changed.items() if key != "type"}
        return {**described, "anyOf": [{"type": "number"}, {"enum": list(NOT_FINITE)}]}
    return changed
