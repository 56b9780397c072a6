"""Hub models: read from the local cache, downloaded only if the cache has no complete copy."""

from __future__ import annotations

from pathlib import Path

from vqcompress.architectures.folder import problem_of
from vqcompress.errors import ArchitectureError

TIMEOUT = 5.0
"""Seconds until the Hub is considered unreachable."""


def cached_or_downloaded(repo: str) -> Path:
    """Folder of the Hub model ``repo`` in the local cache. Downloads the model if it is not complete there.

    Raises `ArchitectureError`, which says how to get the model, if neither the cache nor the Hub has it.
    """
    folder = _cached(repo)
    if folder is None:
        _ask_hub(repo)
        folder = _download(repo)
    return folder


def _cached(repo: str) -> Path | None:
    from diffusers import DiffusionPipeline

    try:
        folder = Path(DiffusionPipeline.download(repo, use_safetensors=True, local_files_only=True))
    except OSError:
        return None
    return None if problem_of(folder) else folder


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


def _download(repo: str) -> Path:
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(repo, use_safetensors=True))
    except Exception as error:
        raise _unreachable(repo, error) from error


def _unreachable(repo: str, error: Exception) -> ArchitectureError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ArchitectureError(
        f"{repo} is not in the local Hub cache and could not be downloaded ({reason}); run `hf download {repo}` where "
        "there is a network and give the folder's path, or check the connection and HF_HUB_OFFLINE"
    )
