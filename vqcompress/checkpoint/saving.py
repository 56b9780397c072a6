"""Write a compressed pipeline: an ordinary diffusers folder with recipe, card and manifest beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from diffusers import DiffusionPipeline

from vqcompress.checkpoint.card import model_card, prompt_source
from vqcompress.checkpoint.inspection import inspect
from vqcompress.checkpoint.layer_table import LayerRecord, write_layer_table
from vqcompress.checkpoint.local_names import forget_local_names, without_local_names
from vqcompress.checkpoint.manifest import write_manifest
from vqcompress.checkpoint.publication import publish
from vqcompress.storage_dtype import narrow_folder

RECIPE_NAME = "vqcompress_recipe.yaml"


def save_pipeline(
    pipeline: DiffusionPipeline,
    folder: str | Path,
    *,
    recipe: Mapping[str, Any],
    card: str | None = None,
    layers: Sequence[LayerRecord] = (),
    overwrite: bool = False,
    max_shard_size: str = "10GB",
    before_publication: Callable[[Path], None] | None = None,
) -> Path:
    """Write ``pipeline`` to ``folder``, complete or not at all, and return the folder.

    ``recipe`` is the effective recipe as plain data, ``card`` the text of ``README.md`` (``None``: one is made from
    recipe and sizes), ``layers`` what became of each layer. Nothing in the folder says where files were on this
    machine: recipe and card name a local model or prompt file by its last name. ``before_publication`` is given the
    complete folder before it is in its place, and prevents that by raising. Raises `CheckpointError` when the
    folder exists and ``overwrite`` is off, and when it cannot be written.
    """
    folder = Path(folder)
    with publish(folder, overwrite) as partial:
        forget_last_call(pipeline)
        source = prompt_source(recipe, pipeline) if card is None else None
        recipe = without_local_names(recipe)
        pipeline.save_pretrained(partial, safe_serialization=True, max_shard_size=max_shard_size)
        narrow_folder(partial)
        forget_local_names(partial)
        (partial / RECIPE_NAME).write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
        if layers:
            write_layer_table(partial, layers)
        if card is None:
            card = model_card(folder.name, recipe, inspect(partial), layers, source)
        (partial / "README.md").write_text(card, encoding="utf-8")
        write_manifest(partial)
        if before_publication is not None:
            before_publication(partial)
    return folder


def forget_last_call(pipeline: DiffusionPipeline) -> None:
    """Clear the truncation and padding of the last call, which fast tokenizers write to ``tokenizer.json``.

    Every call sets both again, so only the file changes. Without this, its bytes would depend on whether a run was
    stopped before or after calibration.
    """
    for part in pipeline.components.values():
        if (backend := getattr(part, "backend_tokenizer", None)) is not None:
            backend.no_truncation()
            backend.no_padding()
