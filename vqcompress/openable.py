"""A folder before a library opens it: nothing in it may block, never end, or take memory out of proportion."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vqcompress.errors import CheckpointError
from vqcompress.folder_files import is_regular, kind_of, open_regular, read_json, regular_size, walk
from vqcompress.safetensors_header import LENGTH_BYTES, allowed_length, stored_header

TEXT_LIMIT = 1 << 27
"""Bytes of any text that a library reads whole: a vocabulary of a million words, four times over."""
TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".yaml", ".tiktoken")
MOST_TIMESTEPS = 100_000
"""A hundred times what models are trained with."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
LARGE_NUMBER = re.compile(rb'(?<!\\)"\s*:\s*(\d{8,})')
"""A number of a word from ten million on."""
LARGE = 1 << 26
"""Bytes from which on reading a header takes no time beside reading the file."""


def check_regular(folder: Path) -> None:
    """Raise `CheckpointError` that names the first entry below ``folder`` that no loader should open.

    That is what is neither a regular file nor a folder, a text too long to be read whole, and weights that do not begin
    with the length of a header or, where they are large, have another length than it says: a loader maps them whole
    before it looks, and a hole of a terabyte is a short download.
    Links to folders count as folders, and hidden entries of the folder itself are left alone: no loader reads them.
    """
    for name, entry in walk(folder):
        if name.startswith("."):
            continue
        if not is_regular(entry) and not _is_folder(entry):
            raise CheckpointError(
                f"{folder / name} is no regular file but a {kind_of(folder / name)}; it is not opened, remove it or "
                "download the folder again"
            )
        if name.endswith(TEXT_SUFFIXES) and (regular_size(folder / name) or 0) > TEXT_LIMIT:
            raise CheckpointError(
                f"{folder / name} has more than {TEXT_LIMIT} bytes, which no text of a pipeline has; it is not opened, "
                "download the folder again"
            )
        if name.endswith(".safetensors") and is_regular(entry):
            _check_weights(folder / name)


def check_sampling(folder: Path) -> None:
    """Raise `CheckpointError` for a scheduler that would take memory out of proportion.

    It holds a dozen numbers for each timestep of training.
    """
    for path in sorted(folder.glob("*/scheduler_config.json")):
        steps = read_json(path).get("num_train_timesteps")
        if isinstance(steps, int | float) and steps > MOST_TIMESTEPS:
            raise CheckpointError(
                f"{path} says num_train_timesteps: {steps}, more than {MOST_TIMESTEPS}; it is not as it was written, "
                "download it again"
            )


def check_parts(folder: Path) -> None:
    """Raise `CheckpointError` for a pipeline among the parts of ``folder`` that would be this very folder.

    diffusers opens a part that has no folder of its own from where its index lies: a pipeline there opens itself, and
    everything beside it, until Python's stack is full. A link back has the same end.
    """
    index = folder / "model_index.json"
    if regular_size(index) is None:
        return
    whole = Path(os.path.realpath(folder))
    for name, entry in read_json(index).items():
        kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if not isinstance(kind, str) or "Pipeline" not in kind:
            continue
        part = folder / name
        if not part.is_dir() or Path(os.path.realpath(part)) in (whole, *whole.parents):
            raise CheckpointError(
                f"{index} says that {name} is a pipeline of its own, {kind}, which would open {folder} again without "
                "end; it is not as it was written, download it again"
            )


def check_vocabularies(folder: Path) -> None:
    """Raise `CheckpointError` for a vocabulary with a number far beyond what any has.

    Whoever saves a tokenizer lists all numbers up to its largest that no word has.
    """
    for name in VOCABULARIES:
        for path in sorted(folder.glob(f"*/{name}")):
            if (number := _large_number(path)) is not None:
                raise CheckpointError(f"{path} numbers a word {number}; it is not as it was written, download it again")


def _large_number(path: Path) -> str | None:
    with open_regular(path) as file:
        rest = b""
        while block := file.read(LARGE // 16):
            if found := LARGE_NUMBER.search(rest + block):
                return found[1].decode()[:20]
            rest = block[-64:]
    return None


def _check_weights(path: Path) -> None:
    with open_regular(path) as file:
        begins, size = file.read(LENGTH_BYTES), os.fstat(file.fileno()).st_size
    length, most = int.from_bytes(begins, "little"), allowed_length(size)
    if not 2 <= length <= most:
        header = f"a header of {length} bytes, of at most {most}" if 2 <= length <= size else "no header"
        what = "a Git LFS pointer" if begins == b"version " else f"{size} bytes with {header}"
        raise CheckpointError(f"{path} holds no safetensors but {what}; it is not opened, download it again")
    if size > LARGE and (said := stored_header(path)[1]) != size:
        raise CheckpointError(f"{path} has {size} bytes, its header says {said}; it is not opened, download it again")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
