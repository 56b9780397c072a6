"""The model card that goes with a compressed folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vqcompress.architectures import ALIASES, architecture_of
from vqcompress.checkpoint.layer_table import LayerRecord
from vqcompress.checkpoint.local_names import public_name
from vqcompress.errors import VQCompressError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(
    name: str,
    recipe: Mapping[str, Any],
    sizes: Mapping[str, Any],
    layers: Sequence[LayerRecord] = (),
    prompts: str | None = None,
) -> str:
    """``README.md`` for the Hub: YAML front matter, how to load, effective bits and bytes, errors, prompts, the recipe.

    ``recipe`` is the effective recipe, its ``model`` the base model; ``sizes`` is what `inspect` says of the folder;
    ``layers`` what became of each layer; ``prompts`` what `prompt_source` says of the prompts for calibration.
    """
    base = str(recipe.get("model", "unknown"))
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_front_matter(base), sort_keys=False).rstrip(),
            "---",
            "",
            f"# {name}",
            "",
            f"`{base}`, compressed with [vqcompress](https://pypi.org/project/vqcompress/). An ordinary diffusers "
            "folder:",
            "",
            "```python",
            "import torch",
            "import vqcompress  # lets diffusers and transformers read packed layers",
            "from diffusers import DiffusionPipeline",
            "",
            'pipe = DiffusionPipeline.from_pretrained("PATH/TO/THIS/FOLDER", torch_dtype=torch.bfloat16)',
            'pipe.to("cuda")  # or pipe.enable_model_cpu_offload(), where memory is short',
            "```",
            "",
            *_size_lines(sizes),
            "",
            *_score_lines(layers),
            "## Recipe",
            "",
            *([f"Calibrated on {prompts}.", ""] if prompts else []),
            "```yaml",
            yaml.safe_dump(dict(recipe), sort_keys=False).rstrip(),
            "```",
            "",
        ]
    )


def _front_matter(base: str) -> dict[str, Any]:
    matter: dict[str, Any] = {"library_name": "diffusers", "tags": ["vqcompress", "quantized"]}
    if hub := _hub_id(base):
        matter |= {"base_model": hub, "base_model_relation": "quantized"}
    return matter


def _hub_id(base: str) -> str | None:
    """The Hub's name of the base model: aliases stand for one, paths for none."""
    hub = ALIASES.get(base, base)
    return hub if HUB_ID.fullmatch(hub) and not Path(base).exists() and not base.endswith(".safetensors") else None


def _score_lines(layers: Sequence[LayerRecord]) -> list[str]:
    """Errors of the packed layers; `vqcompress report` measures whole images."""
    if not layers:
        return []
    lines = ["## Errors", "", "Squared error of a layer's outputs relative to the outputs, on calibration inputs:", ""]
    lines += ["| component | mean | worst | worst layer |", "|---|---|---|---|"]
    for component in dict.fromkeys(record.component for record in layers):
        own = [record for record in layers if record.component == component]
        worst = max(own, key=lambda record: record.error)
        mean = sum(record.error for record in own) / len(own)
        lines.append(f"| {component} | {mean:.2%} | {worst.error:.2%} | {worst.layer} |")
    return [*lines, ""]


def _size_lines(sizes: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Folder: {sizes['bytes']:,} bytes on disk. Packed layers: {_number(sizes['bits_per_weight'])} bits a weight, "
        "everything stored counted (codes, scales, rates, codebooks).",
        "",
        "| component | packed layers | bits a weight, packed layers | bits a weight, whole component | bytes on disk |",
        "|---|---|---|---|---|",
    ]
    for name, part in sizes["components"].items():
        bits, whole = _number(part["bits_per_weight"]), _number(part["component_bits_per_weight"])
        lines.append(f"| {name} | {part['packed_layers']} | {bits} | {whole} | {part['bytes']:,} |")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def prompt_source(recipe: Mapping[str, Any], pipeline: Any) -> str | None:
    """Name, number and SHA-256 of the prompt set that ``recipe`` names, or that is ``pipeline``'s own by default.

    None for a recipe that says nothing of calibration; the name alone where the prompts cannot be read any more.
    """
    from vqcompress.calibration.prompts import load_prompts  # choosing prompts needs much that loading does not

    if not isinstance(calibration := recipe.get("calibration"), Mapping):
        return None
    name = calibration.get("prompts")
    try:
        prompts = load_prompts(name or architecture_of(pipeline).prompt_set)
    except VQCompressError:
        return None if name is None else f"the prompt set `{public_name(name)}`"
    held, called = len(prompts.prompts), public_name(prompts.name)
    used = min(calibration.get("count") or held, held)
    return f"{used} of the {held} prompts of the set `{called}` (SHA-256 `{prompts.sha256}`)"
