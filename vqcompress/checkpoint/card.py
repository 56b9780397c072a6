"""The model card that goes with a compressed folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(name: str, recipe: Mapping[str, Any], sizes: Mapping[str, Any]) -> str:
    """``README.md`` for the Hub: YAML front matter, how to load, effective bits and bytes, the recipe.

    ``recipe`` is the effective recipe, its ``model`` the base model; ``sizes`` is what `inspect` says of the folder.
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
            f"`{base}`, compressed with [vqcompress](https://pypi.org/project/vqcompress/). An ordinary diffusers folder:",
            "",
            "```python",
            "import vqcompress  # lets diffusers and transformers read packed layers",
            "from diffusers import DiffusionPipeline",
            "",
            'pipe = DiffusionPipeline.from_pretrained("PATH/TO/THIS/FOLDER")',
            "```",
            "",
            *_size_lines(sizes),
            "",
            "## Recipe",
            "",
            "```yaml",
            yaml.safe_dump(dict(recipe), sort_keys=False).rstrip(),
            "```",
            "",
        ]
    )


def _front_matter(base: str) -> dict[str, Any]:
    matter: dict[str, Any] = {"library_name": "diffusers", "tags": ["vqcompress", "quantized"]}
    if HUB_ID.fullmatch(base):
        matter |= {"base_model": base, "base_model_relation": "quantized"}
    return matter


def _size_lines(sizes: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Folder: {sizes['bytes']:,} bytes on disk. Packed layers: {_number(sizes['bits_per_weight'])} bits a weight, everything stored "
        "counted (codes, scales, rates, codebooks).",
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
