"""Hub models: read from the local cache, downloaded only if the cache has no complete copy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vqcompress.architectures.folder import problem_of
from vqcompress.errors import ArchitectureError, first_line

TIMEOUT = 5.0
"""Seconds until the Hub is considered unreachable."""


def cached_or_downloaded(repo: str, *, without: str = "") -> Path:
    """Folder of the Hub model ``repo`` in the local cache. Downloads the model if it is not complete there.

    ``without`` names a component that is not needed. ``repo`` may also be a local folder. Raises `ArchitectureError`,
    which says how to get the model, if neither the cache nor the Hub has it.
    """
    if os.path.isdir(repo):
        return Path(repo)
    folder = _cached(repo, without)
    if folder is None:
        _ask_hub(repo)
        folder = _download(repo, without)
    return folder


def downloaded_file(where: str) -> Path:
    """A file ``owner/name file`` on the Hub, from the local cache or downloaded. Raises `ArchitectureError`."""
    from huggingface_hub import hf_hub_download

    repo, file = where.split(" ", 1)
    try:
        return Path(hf_hub_download(repo, file, local_files_only=True))
    except OSError:
        _ask_hub(repo)
    try:
        return Path(hf_hub_download(repo, file))
    except Exception as error:
        raise _unreachable(repo, error) from error


def _cached(repo: str, without: str) -> Path | None:
    from diffusers import DiffusionPipeline

    left_out: dict[str, Any] = {without: None} if without else {}
    try:
        folder = Path(DiffusionPipeline.download(repo, use_safetensors=True, local_files_only=True, **left_out))
    except OSError:
        return None
    return None if problem_of(folder, without=left_out) else folder


def _ask_hub(repo: str) -> None:
    """Check quickly whether the Hub has ``repo``: the download itself would retry for minutes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(repo, timeout=TIMEOUT)
    except GatedRepoError:
        raise ArchitectureError(
            f"{repo} asks for its licence to be accepted: do so at https://huggingface.co/{repo}, then `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ArchitectureError(
            f"{repo}: neither a folder here nor a model on the Hub; check the spelling, or `hf auth login` if it is "
            "private"
        ) from None
    except Exception as error:
        raise _unreachable(repo, error) from error


def _download(repo: str, without: str) -> Path:
    from diffusers import DiffusionPipeline

    left_out: dict[str, Any] = {without: None} if without else {}
    folder = None
    try:
        for variant in (None, "fp16", "bf16"):  # some models have weights of one variant only
            folder = Path(DiffusionPipeline.download(repo, use_safetensors=True, variant=variant, **left_out))
            if problem_of(folder, without=left_out) is None:
                break
    except Exception as error:
        if folder is None:
            raise _unreachable(repo, error) from error
    return folder  # type: ignore[return-value]


def _unreachable(repo: str, error: Exception) -> ArchitectureError:
    from huggingface_hub.errors import OfflineModeIsEnabled

    reason = "offline mode" if isinstance(error, OfflineModeIsEnabled) else first_line(error)[:30]
    return ArchitectureError(
        f"the Hub's cache lacks it and the download failed ({reason}); run `hf download {repo}` where there is a "
        "network, and give the folder"
    )
