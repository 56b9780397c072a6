"""What an operation came to, and which of that is a fault."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import FrameType

import vqcompress
from vqcompress.errors import VQCompressError

OURS = str(Path(vqcompress.__file__).parent)
LIBRARIES = ("diffusers", "transformers", "safetensors", "tokenizers", "huggingface_hub", "accelerate")
OWN_CHECKS = ("verify", "inspect", "bundle", "kernels")
"""Operations in which no library opens the folder: any exception is ours."""
# Where our code only hands on to a library: (file, function).
HANDED_ON = {
    ("component_loading.py", "check_packed"), ("opening_checks.py", "looking"), ("loading.py", "_load"),
    ("single_file.py", "open_bundle"), ("single_file.py", "_open"), ("diffusers_pipelines.py", "__call__"),
    ("diffusers_pipelines.py", "look_first"),
}  # fmt: skip
FAULTS = ("crash", "hang", "memory", "foreign", "escape")
MEMORY_WORDS = ("can't allocate", "cannot allocate", "not enough memory", "unable to allocate")


def verdict(operation: str, error: BaseException) -> tuple[str, str]:
    """``(kind, detail)``: refused, memory, foreign (from our code) or library (from theirs)."""
    detail = f"{type(error).__name__}: {str(error)[:300]}"
    if isinstance(error, VQCompressError):
        return "refused", detail
    if isinstance(error, MemoryError) or any(word in str(error).lower() for word in MEMORY_WORDS):
        return "memory", detail
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    where = next((found for frame in reversed(frames) if (found := _home(frame))), "ours")
    kind = "library" if where == "library" and operation not in OWN_CHECKS else "foreign"
    last = frames[-1].f_code
    return kind, f"{detail} in {Path(last.co_filename).name}:{last.co_name}"


def _home(frame: FrameType) -> str:
    """Whose code a frame is: ours, a library's, or nobody's of interest."""
    file = frame.f_code.co_filename
    if file.startswith(OURS):
        return "" if (Path(file).name, frame.f_code.co_name) in HANDED_ON else "ours"
    return "library" if any(f"/{name}/" in file for name in LIBRARIES) else ""


def faults(results: dict[str, str], stale: bool, uses: tuple[str, ...]) -> list[str]:
    """The faults among a case's results, operation -> kind."""
    found = [f"{kind} in {name}" for name, kind in results.items() if kind in FAULTS]
    if stale and results.get("load") == "ok":
        found.append("altered, and load accepts it")
    if results.get("verify") == "ok":
        found += [f"verify passes, {name} is refused" for name in uses if results.get(name) == "refused"]
    return found
