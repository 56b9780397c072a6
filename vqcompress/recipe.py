"""A recipe contains all settings of a run. The same recipe always gives the same bytes.

Every default is defined here, once. Recipes are read from and written to YAML. Unknown keys are refused, because
silently ignoring a misspelt setting would give a wrong result.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from vqcompress.errors import RecipeError
from vqcompress.folder_files import StrPath
from vqcompress.methods import DEFAULT_METHOD, METHODS, Budget, MethodName
from vqcompress.near_misses import did_you_mean
from vqcompress.plain_yaml import PlainYAMLError, read_plain_yaml
from vqcompress.recipe_presets import RECIPE_PRESETS, layered, preset_values
from vqcompress.sampling_config import SamplingConfig

FORMER_NAMES = {"keep": "ignore"}
"""Former recipe key, as in recipes of earlier folders -> current key."""
FORMER_TRAINING_NAMES = {"recode": "requantize"}
RETIRED_TRAINING_KEYS = {"row_scales": False, "tables": 0.0}  # key -> the value that turned it off


def current_names(data: Mapping[str, Any], former_names: Mapping[str, str] = FORMER_NAMES) -> dict[str, Any]:
    """``data`` with current recipe keys. Raises `RecipeError` if a key is present under both names.

    Call it on each part before parts are merged, so that a later part replaces an earlier one under either name.
    """
    for former, name in former_names.items():
        if former in data and name in data:
            raise RecipeError(f"recipe keys {name!r} and {former!r} are one setting; give {name!r} alone")
    return {former_names.get(key, key): value for key, value in data.items()}


class _RetiredKeyError(ValueError):
    """A recipe uses a setting that this version no longer supports."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, field: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(field.field_name)].annotation is not bool:
            raise ValueError(f"{field.field_name}: {value} is not a value; this is nothing to turn on or off")
        return value


MOST_STEPS, MOST_PIXELS = 10_000, 16_384  # of a call; a number with more digits is a slip


class Calibration(_Section):
    """How the inputs of the layers are recorded. ``None`` means the architecture's own default.

    ``images`` is a folder with images for pipelines that need some (``None``: they are drawn). ``rows_per_call`` is the
    number of samples per call that are added to a layer's second moment. ``order`` is "parallel" (all layers are
    recorded in one pass of the original) or "sequential" (the denoiser's blocks are encoded one after the other, each
    for its inputs from the compressed blocks before it).
    """

    prompts: str | None = None
    images: str | None = None
    count: int = Field(default=64, ge=1)
    steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    guidance: float | None = Field(default=None, ge=0)
    height: int | None = Field(default=None, ge=8, le=MOST_PIXELS)
    width: int | None = Field(default=None, ge=8, le=MOST_PIXELS)
    batch_size: int = Field(default=8, ge=1)
    memory_budget_gb: float = Field(default=4.0, gt=0)
    rows_per_call: int | None = Field(default=8192, ge=1)
    order: Literal["parallel", "sequential"] = "parallel"

    @property
    def sampling(self) -> SamplingConfig:
        """How the pipeline samples while its layers are recorded."""
        return SamplingConfig(self.steps, self.guidance, self.height, self.width, self.images)


class Training(_Section):
    """Fine-tuning: how a compressed denoiser is trained against the dense one (see `vqcompress.finetuning.presets`).

    ``preset`` gives the values that are ``None`` here: prompts for training and for early stopping, steps, samples (a
    prompt at one timestep, in all guidance branches) per step and at once in memory, the largest step relative to each
    tensor's RMS and to the root of the relative error at the start, and how many of the worst layers are quantized
    again (``requantize``). ``learn`` names the trained parameters. ``weighting`` is the weighting of timesteps.
    ``None`` means "trajectory" if the scheduler knows noise levels, else "uniform". ``guided`` is the share of the
    guided output in the loss. ``budget_gb`` limits the teacher's outputs on disk.

    Keys of older recipes: ``recode`` means ``requantize``; ``row_scales`` and ``tables`` are accepted if they are off.
    """

    preset: Literal["fast", "default", "best"] = "default"
    prompts: int | None = Field(default=None, ge=1)
    held_out: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    rate: float | None = Field(default=None, gt=0, lt=1)
    block_steps: int | None = Field(default=None, ge=1)
    requantize: int | None = Field(default=None, ge=0)
    learn: tuple[Literal["scales", "codebooks", "biases", "norms", "dense"], ...] = (
        "scales", "codebooks", "biases", "norms", "dense",
    )  # fmt: skip
    weighting: Literal["uniform", "min-snr", "measured", "trajectory"] | None = "uniform"
    guided: float = Field(default=0.3, ge=0, le=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False
    budget_gb: float = Field(default=8.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _keys_of_older_recipes(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for key, off in RETIRED_TRAINING_KEYS.items():
            if data.get(key, off) != off:
                raise _RetiredKeyError(
                    f"training.{key} is not supported any more: it cost bits and did not lower the error "
                    f"(docs/finetune.md); leave it out, or set it to {off}"
                )
        left = {key: value for key, value in data.items() if key not in RETIRED_TRAINING_KEYS}
        return current_names(left, FORMER_TRAINING_NAMES)


class Recipe(_Section):
    """One compression run.

    ``base`` is the pipeline (name, folder or Hub id) that has what a single file ``model`` lacks; None means that of
    its family.

    For vector methods, ``bits`` per weight includes everything stored with the quantized layers (codes, codebooks,
    scales, rates). For the scalar baselines, ``rtn`` and ``gptq``, it is the width of a code, as is usual for them, and
    scales are added to it. ``budget`` says whether every layer gets that many bits ("layer") or all layers on average
    ("model"). ``None`` means "model" for vector methods, and the same width everywhere for the scalar baselines, as is
    usual for them. ``settings`` are passed to the method's settings class in `vqcompress.quantizers`. ``ignore`` maps
    regular expressions on layer names to the reason why these layers stay dense (``None``: the architecture's list; its
    former name, ``keep``, is read too). ``finetune`` says whether the continuous parameters are then trained against
    the original denoiser: not at all, block by block, or block by block and as a whole. ``output_feedback`` (trellis
    codes) feeds errors back between a layer's outputs as well as between its inputs, weighted by their joint effect on
    the denoiser's output. It gives less error at the same bits; backward passes are recorded for it, and encoding
    takes 1.5 to 2.5 times as long (twice that with ``settings={"output_search": "survivors"}``).

    The key ``preset`` ("fast", "default" or "best", `vqcompress.recipe_presets`) gives values to other keys, over which
    those that are given win. It is not kept: the recipe of a folder has the values themselves.
    """

    model: str
    base: str | None = None
    method: MethodName = DEFAULT_METHOD
    bits: float = Field(default=3.0, ge=1.0, le=8.0)
    budget: Budget | None = None
    components: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0, lt=2**63)
    settings: dict[str, int | float | str | bool | None] = Field(default_factory=dict)
    shared_codebooks: bool = True
    ignore: dict[str, str] | None = None
    calibration: Calibration = Calibration()
    output_feedback: bool = False
    finetune: Literal["none", "blocks", "full"] = "none"
    training: Training = Training()

    @property
    def shares_budget(self) -> bool:
        """Whether bits are allocated over the whole model."""
        return (self.budget or METHODS[self.method].default_budget) == "model"

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, data: Any) -> Any:
        """Under current names, with the values of the key ``preset`` below the others."""
        if not isinstance(data, dict):
            return data
        named = current_names(data)
        preset = named.pop("preset", None)
        return named if preset is None else layered(values_of_preset(preset, named), named)

    @field_validator("components")
    @classmethod
    def _named_once(cls, components: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for name, count in Counter(components).items() if count > 1]:
            raise ValueError(f"components: {twice[0]} is named twice; name each once")
        return components

    @model_validator(mode="after")
    def _whole_bits_for_scalar(self) -> Recipe:
        method = METHODS[self.method]
        if method.whole_bits and self.bits != int(self.bits) and not self.shares_budget:
            raise ValueError(
                f"bits: {method.name} codes have a whole number of bits, got {self.bits}; with budget 'model', "
                "layers of different widths make a fraction on average"
            )
        if method.whole_bits and self.bits < 2:
            raise ValueError(f"bits: {method.name} codes have 2 bits or more, got {self.bits}")
        return self

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Recipe:
        """Validate plain data. Raises `RecipeError` that names the first key at fault, and how many more there are."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first, *others = dict.fromkeys(map(_problem, error.errors()))
            more = f" (and {len(others)} more {'problem' if len(others) == 1 else 'problems'})" if others else ""
            raise RecipeError(first + more) from None

    @classmethod
    def read(cls, path: StrPath, *, for_model: str | None = None, **changes: Any) -> Recipe:
        """Read YAML (`plain_yaml`) from ``path``; ``changes`` replace top-level keys.

        A recipe that names no model is for ``for_model``. Raises `RecipeError`, also if it names another one.
        """
        try:
            data = read_plain_yaml(Path(path))
        except PlainYAMLError as error:
            raise RecipeError(f"cannot read recipe {path}: {error}") from None
        if not isinstance(data, dict):
            raise RecipeError(f"recipe {path} is not a mapping of keys to values")
        if for_model is None and "model" not in {**data, **changes}:
            raise RecipeError(f"recipe {path} names no model; name one beside it")
        if for_model is not None and data.setdefault("model", for_model) != for_model:
            named = reprlib.repr(data["model"])
            raise RecipeError(
                f"recipe {path} is for {named}, not for {for_model!r}; take its 'model' out to use it here"
            )
        return cls.parse({**current_names(data), **current_names(changes)})

    def to_dict(self) -> dict[str, Any]:
        """Plain data that can be written as JSON or YAML."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The effective recipe as YAML, including all defaults."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def values_of_preset(preset: Any, *chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What ``preset`` sets in a run of the method that the first of ``chosen`` names, or of the default one.

    Raises `RecipeError` for an unknown preset.
    """
    if preset not in RECIPE_PRESETS:
        meant = did_you_mean(str(preset), RECIPE_PRESETS)
        raise RecipeError(f"preset: {reprlib.repr(preset)} is not one of {', '.join(RECIPE_PRESETS)}{meant}")
    return preset_values(preset, next((str(part["method"]) for part in chosen if part.get("method")), DEFAULT_METHOD))


def current_signature(signature: Any) -> Any:
    """The signature of a run that an older version started, with its ``recipe`` in the form of this version."""
    try:
        return {**signature, "recipe": Recipe.parse(signature["recipe"]).to_dict()}
    except (KeyError, TypeError, RecipeError):
        return signature


_SAID = {
    "greater_than_equal": "is less than {ge}",
    "greater_than": "is not more than {gt}",
    "less_than_equal": "is more than {le}",
    "less_than": "is not less than {lt}",
    "finite_number": "is not a finite number",
    "literal_error": "is not one of {expected}",
    "enum": "is not one of {expected}",
    "missing": "is missing",
    "bool": "is not true or false",
    "int": "is not a whole number",
    "float": "is not a number",
    "string": "is not text",
    "dict": "is not a mapping",
    "model": "is not a mapping",
    "tuple": "is not a list",
}
"""Pydantic's type of error, or the part before its first underscore -> what is wrong with the value."""


def _problem(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "recipe"
    context = item.get("ctx", {})
    if isinstance(error := context.get("error"), _RetiredKeyError):
        return str(error)
    value = item.get("input")
    if item["type"] == "extra_forbidden":
        return f"unknown recipe key {where!r}{_nearest_key(item['loc'])}"
    if isinstance(value, float) and not isfinite(value):
        return f"{where}: {value} is not a finite number"
    if item["loc"][:1] == ("settings",) and len(item["loc"]) > 1:
        return f"settings.{item['loc'][1]}: {reprlib.repr(value)} is not a number, a text, true, false or null"
    kind = item["type"] if item["type"] in _SAID else item["type"].partition("_")[0]
    if kind not in _SAID:  # one of the sentences of this file
        return item["msg"].removeprefix("Value error, ")
    meant = did_you_mean(str(value), context["expected"].split("'")[1::2]) if "expected" in context else ""
    limits = {key: f"{limit:g}" if isinstance(limit, float) else limit for key, limit in context.items()}
    return f"{where}: {reprlib.repr(value)} {_SAID[kind].format(**limits)}{meant}"


def _nearest_key(location: tuple[str | int, ...]) -> str:
    """What may have been meant by an unknown key, among the keys of its section."""
    *sections, key = location
    model: Any = Recipe
    for section in sections:
        model = model.model_fields[section].annotation
    known = [*model.model_fields, *(["preset"] if model is Recipe else [])]
    return did_you_mean(str(key), known)
