"""What each stage of a run depends on: recipe keys, prompts, the source's weights and scheduler, versions and code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

import vqcompress
from vqcompress.architectures.drawn_images import images_hash
from vqcompress.architectures.source_weights import (
    component_hashes,
    json_hash,
    scheduler_config,
    source_files,
    vocabulary_hashes,
)
from vqcompress.calibration.prompts import PromptSet
from vqcompress.recipe import Recipe
from vqcompress.run_signature import StageInputs
from vqcompress.run_store import read_source_note

LIBRARIES = ("torch", "diffusers", "transformers")
NOT_IN_RESULTS = (
    "cli", "reports", "shapes", "checkpoint", "integrations", "placement",
    "compression.py", "environment.py", "estimate.py", "generation", "tuning.py",
    "bundling.py", "component_files.py", "disk.py", "folder_files.py", "stages/disk_space.py", "stages/journal.py",
)  # fmt: skip
"""Parts of the package whose code no stored result depends on."""

OF_ENCODING = (
    *("quantizers", "search", "finetuning", "formats", "kernels", "layers", "bitpack.py", "methods.py", "recipe.py"),
    *("stages/encoding.py", "stages/budget.py", "stages/sequential.py", "stages/signature.py", "stages/plan.py"),
    *("stages/allocation_check.py", "stages/importance.py", "stages/layer_costs.py"),
    "stages/scalar_budget.py",
)
"""Parts whose code recordings of a dense model do not depend on. Costs along trajectories do."""


def source_of(
    model: str | DiffusionPipeline,
    pipeline: DiffusionPipeline,
    folders: Sequence[Path],
    dtype: torch.dtype | None = None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What calibration finds in the source, and a note of it for run folders: ten gigabytes need not be read again at
    every start. ``folders`` may have such notes. None for a source that is no files. ``dtype`` is what weights were
    opened in; None: the one that they are stored in.

    On which device, and in which dtype, something was computed is no part of it: what a GPU recorded in 16 bits may be
    encoded on a CPU. Only weights that the dtype has rounded are others.

    Raises `ArchitectureError` if a weight is not finite.
    """
    files = source_files(model, pipeline)
    # Weights that were rounded when they were opened are others than those of the files.
    rounded = [] if dtype in (None, torch.float32) else [str(dtype)]
    stamp = json_hash([*files, *rounded]) if files else None
    known = next((note for note in map(read_source_note, folders) if stamp and note.get("files") == stamp), None)
    hashes = known["hashes"] if known else component_hashes(pipeline, files)
    found = {
        "weights": hashes,
        "vocabulary": vocabulary_hashes(pipeline),
        "scheduler": scheduler_config(pipeline),
        "versions": {package: version(package) for package in LIBRARIES},
        "code": code_hash(OF_ENCODING),
    }
    return found, {"files": stamp, "hashes": hashes} if stamp else None


def recording_inputs(
    recipe: Recipe, prompts: PromptSet, source: dict[str, Any], denoisers: tuple[str, ...]
) -> tuple[StageInputs, ...]:
    """Inputs of what calibration records.

    A component is recorded after those before it have been packed, so their codes are among its inputs.
    """
    calibration = recipe.calibration.model_dump(mode="json", exclude={"order", "memory_budget_gb", "images"})
    if folder := recipe.calibration.images:
        calibration["images"] = images_hash(folder)
    settings = {
        "calibration": calibration,
        "ignore": recipe.ignore,
        "seed": recipe.seed,
        "prompts": prompts.sha256,
    }
    inputs, packed = [], dict[str, Any]()
    for component in recipe.components or denoisers:
        found = source | ({"packed before": packed} if packed else {})
        inputs.append(StageInputs(rf"{component}\.(moments|moments\.layers|importance|outputs)", settings, found))
        costs = found | {"encoding code": code_hash()}
        inputs.append(StageInputs(rf"{component}\.trajectories", settings, costs))
        if component in denoisers:
            calls = found | {"training.budget_gb": recipe.training.budget_gb}
            own = "" if component == denoisers[0] else rf"{component}\."
            inputs.append(StageInputs(rf"{own}calls(\.trajectory)?", settings, calls))
        packed = packed | {component: _encoding(recipe) | _tuning(recipe, component in denoisers)}
    return (*inputs, StageInputs(r"teacher\..*", settings, source))


def run_inputs(
    recipe: Recipe, prompts: PromptSet, source: dict[str, Any], denoisers: tuple[str, ...]
) -> tuple[StageInputs, ...]:
    """Inputs of all stages of a run."""
    recordings = recording_inputs(recipe, prompts, source, denoisers)
    encoding, inputs, packed = _encoding(recipe), list(recordings), dict[str, Any]()
    for component in recipe.components or denoisers:
        found = source | encoding | ({"packed before": packed} if packed else {})
        stages = r"bits|group-sizes|allocations|codebooks|layers|layers\.spec|moments-in-order|moments-in-order\.layers"
        inputs.append(StageInputs(rf"{component}\.({stages})", recordings[0].settings, found))
        packed = packed | {component: encoding | _tuning(recipe, component in denoisers)}
    tuned = source | {"packed": packed, "memory_budget_gb": recipe.calibration.memory_budget_gb}
    return (*inputs, StageInputs(r"finetune\..*", recordings[0].settings, tuned))


def _encoding(recipe: Recipe) -> dict[str, Any]:
    """Keys of the recipe, and the code, that codes depend on."""
    keys = {"method", "bits", "settings", "shared_codebooks", "output_feedback"}
    chosen = recipe.model_dump(mode="json", include=keys)
    budget = "model" if recipe.shares_budget else "layer"
    return {**chosen, "budget": budget, "order": recipe.calibration.order, "encoding code": code_hash()}


def _tuning(recipe: Recipe, is_denoiser: bool) -> dict[str, Any]:
    if recipe.finetune == "none" or not is_denoiser:
        return {}
    return recipe.model_dump(mode="json", include={"finetune", "training"})


@cache
def code_hash(without: tuple[str, ...] = ()) -> str:
    """SHA-256 of the package's sources that results depend on, except the parts ``without``."""
    package = Path(vqcompress.__file__).parent
    digest = hashlib.sha256(vqcompress.__version__.encode())
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not {name, name.partition("/")[0]} & {*NOT_IN_RESULTS, *without}:
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()
