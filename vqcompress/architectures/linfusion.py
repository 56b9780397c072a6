"""LinFusion by name: the base model from the Hub, with the published linear attention in its UNet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vqcompress.errors import ArchitectureError, first_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def mount_published(pipeline: DiffusionPipeline, repo: str) -> DiffusionPipeline:
    """``pipeline`` with the linear attention of the Hub's LinFusion checkpoint ``repo``. Raises `ArchitectureError`."""
    from vqcompress.models.linfusion import mount

    mount(pipeline, _adapter(repo))
    return pipeline


def _adapter(repo: str) -> Path:
    """Folder with the checkpoint's two files in the local cache. Downloads them if they are not there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from vqcompress.models.linfusion import CONFIG_NAME, WEIGHTS_NAME

    try:
        places = {Path(hf_hub_download(repo, name)).parent for name in (CONFIG_NAME, WEIGHTS_NAME)}
    except (LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ArchitectureError(
            f"{repo} is not in the local Hub cache and could not be downloaded ({reason}); run `hf download {repo}` "
            "where there is a network"
        ) from error
    return places.pop()
