"""Find the class that opens a pipeline folder: ours by the name in its index, or diffusers' own."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from vqcompress.models.presets import NETWORKS

# Class name in model_index.json -> module.
PIPELINES: dict[str, str] = {
    "ClassConditionalPipeline": "vqcompress.models.class_pipeline",
    "ClipPixArtPipeline": "vqcompress.models.clip_pixart_pipeline",
    "LuminaTextPipeline": "vqcompress.models.lumina_pipeline",
    "PTDiTPipeline": "vqcompress.models.pt_dit_pipeline",
}


def pipeline_class(folder: str | Path) -> type[DiffusionPipeline]:
    """Return the class whose ``from_pretrained`` opens ``folder``.

    Our networks that the index names are imported too, because diffusers takes components only from modules that the
    process has imported. Raises OSError or ValueError when there is no readable index.
    """
    index = json.loads((Path(folder) / "model_index.json").read_text(encoding="utf-8"))
    named = {part[0] for part in index.values() if isinstance(part, list) and part and isinstance(part[0], str)}
    for module in {network.split(":")[0] for network in NETWORKS.values()} & named:
        import_module(module)
    name = index.get("_class_name")
    known = isinstance(name, str) and name in PIPELINES
    return getattr(import_module(PIPELINES[name]), name) if known else DiffusionPipeline
