"""What was drawn, as files: one PNG grid, a video, or a folder with a file for each image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils.export_utils import export_to_gif, export_to_video
from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo

import vqcompress
from vqcompress.architectures.lora_baking import ScaledLora
from vqcompress.architectures.opening import HUB_ID
from vqcompress.disk import check_file_target
from vqcompress.errors import RecipeError
from vqcompress.generation.call_checks import draws_video, own_rate
from vqcompress.sampling_config import SamplingConfig

IMAGE, VIDEOS = ".png", (".mp4", ".gif")
USUAL_RATE = 16.0
"""Frames a second where neither the user nor the pipeline says."""
MP4_PACKAGES = ("imageio", "imageio_ffmpeg")
MACRO_BLOCK = 2  # H.264 wants even sides; imageio would scale frames to multiples of 16


@dataclass(frozen=True)
class Drawn:
    """One result: its ``frames``, a single one of an image, and what they were drawn from."""

    frames: tuple[Image, ...]
    prompt: str
    seed: int

    @classmethod
    def of(cls, result: Any, prompt: str, seed: int) -> Drawn:
        """``result``: a PIL image, or a video's list of them."""
        return cls(tuple(result) if isinstance(result, list | tuple) else (result,), prompt, seed)


@dataclass(frozen=True)
class OutputFiles:
    """Where results go. ``path`` ends in ``.png`` (a grid), ``.mp4`` or ``.gif`` (one video); else it is a folder,
    which gets a file for each result. ``columns`` is the grid's width in images, ``rate`` a video's in frames a second.
    """

    path: Path
    columns: int | None = None
    rate: float = USUAL_RATE

    @classmethod
    def at(cls, path: Path, count: int, columns: int | None = None) -> OutputFiles:
        """Checked before anything is opened. Raises `RecipeError` or `OSError` where ``count`` results cannot be
        written to ``path``."""
        suffix = path.suffix.lower()
        if suffix in VIDEOS and count > 1:
            raise RecipeError(f"{path} holds one video and {count} are asked for; name a folder instead")
        if suffix == ".mp4" and not writes_mp4():
            raise RecipeError("MP4 files need imageio and ffmpeg: pip install 'vqcompress[video]'; or name a .gif file")
        if suffix in (IMAGE, *VIDEOS):
            check_file_target(path)
        elif suffix and not path.is_dir():
            raise RecipeError(
                f"images are written as PNG, videos as MP4 or GIF; name {path.with_suffix(IMAGE)} or a folder, not "
                f"{path}"
            )
        else:
            check_file_target(path / "x" if path.is_dir() else path)
        return cls(path, columns)

    @property
    def is_folder(self) -> bool:
        return self.path.suffix.lower() not in (IMAGE, *VIDEOS)

    def for_pipeline(self, pipeline: DiffusionPipeline, rate: float | None) -> OutputFiles:
        """With ``rate``, else the pipeline's own. Raises `RecipeError` for a video's name where it draws images."""
        video = draws_video(pipeline)
        if not video and self.path.suffix.lower() in VIDEOS:
            raise RecipeError(f"{type(pipeline).__name__} draws images, not videos; name a .png file or a folder")
        if not video and rate is not None:
            raise RecipeError(f"{type(pipeline).__name__} draws images, which have no frames a second; leave --fps out")
        return replace(self, rate=rate or own_rate(pipeline) or USUAL_RATE)

    def write(self, drawn: Sequence[Drawn], settings: dict[str, Any]) -> list[Path]:
        """Write all; returns the files in the order of ``drawn``."""
        if self.path.suffix.lower() in VIDEOS:
            return [_write_video(drawn[0], self.path, self.rate)]
        if not self.is_folder:
            frames = [frame for each in drawn for frame in each.frames]
            if len(frames) == 1:
                return [_write_image(frames[0], self.path, drawn, settings)]
            from vqcompress.reports.pictures import tile  # with all that reports draw with

            columns = len(drawn[0].frames) if len(drawn[0].frames) > 1 else self.columns or min(len(drawn), 4)
            return [_write_image(tile(frames, columns=columns), self.path, drawn, settings)]
        self.path.mkdir(exist_ok=True)
        return [self._write_one(each, number, settings) for number, each in enumerate(drawn)]

    def _write_one(self, drawn: Drawn, number: int, settings: dict[str, Any]) -> Path:
        stem = self.path / f"{number:03}-seed{drawn.seed}"
        if len(drawn.frames) > 1:
            return _write_video(drawn, stem.with_suffix(".mp4" if writes_mp4() else ".gif"), self.rate)
        return _write_image(drawn.frames[0], stem.with_suffix(IMAGE), [drawn], settings)


def writes_mp4() -> bool:
    """Whether the packages that diffusers writes MP4 files with are installed."""
    return all(find_spec(package) for package in MP4_PACKAGES)


def png_text(drawn: Sequence[Drawn], settings: dict[str, Any]) -> PngInfo:
    """Text chunks: ``vqcompress``, JSON of ``settings`` with each image's prompt and seed; and for a single image
    ``parameters``, the form that other programs of the field read."""
    text = PngInfo()
    images = [{"prompt": each.prompt, "seed": each.seed} for each in drawn]
    text.add_text("vqcompress", json.dumps({**settings, "images": images}, ensure_ascii=False))
    if len(drawn) == 1:
        text.add_text("parameters", _parameters(drawn[0], settings))
    return text


def _parameters(drawn: Drawn, settings: dict[str, Any]) -> str:
    """As AUTOMATIC1111's web UI writes it: the prompt, the negative prompt, and a line of the rest."""
    negative = settings.get("negative_prompt")
    size = "x".join(map(str, drawn.frames[0].size))
    rest = {
        "Steps": settings["steps"], "CFG scale": f"{settings['guidance']:g}", "Seed": drawn.seed, "Size": size,
        "Model": settings["model"], "Version": f"vqcompress {settings['version']}",
    }  # fmt: skip
    lines = [drawn.prompt, *([f"Negative prompt: {negative}"] if negative else [])]
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in rest.items())])


def _write_image(picture: Image, path: Path, drawn: Sequence[Drawn], settings: dict[str, Any]) -> Path:
    picture.save(path, format="PNG", pnginfo=png_text(drawn, settings))
    return path


def _write_video(drawn: Drawn, path: Path, rate: float) -> Path:
    if path.suffix.lower() == ".gif":
        export_to_gif(list(drawn.frames), str(path), fps=rate)
    else:
        export_to_video(list(drawn.frames), str(path), fps=rate, macro_block_size=MACRO_BLOCK)
    return path


def settings_of(model: object, sampling: SamplingConfig, loras: Sequence[ScaledLora] = ()) -> dict[str, Any]:
    """What a PNG file says of how it was made. Of folders and files only the last part of the name: where they lie on
    this machine is nobody else's business."""
    inputs = sampling.inputs
    settings = {
        "version": vqcompress.__version__,
        "model": _public_name(str(model)),
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "negative_prompt": inputs.negative_prompt,
        "strength": inputs.strength,
        "loras": [{"name": _public_name(lora.source), "scale": lora.scale} for lora in loras],
    }
    return {key: value for key, value in settings.items() if value not in (None, [])}


def _public_name(source: str) -> str:
    """A Hub id as it is, ``owner/name``; the last part of a path that is here."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() or not HUB_ID.fullmatch(source) else source
