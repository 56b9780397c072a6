"""Prompt sets: built in, from a file, or from a Hub dataset."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vqcompress.calibration.diversity import choose_diverse
from vqcompress.errors import CalibrationError, RecipeError, first_line
from vqcompress.folder_files import StrPath
from vqcompress.near_misses import did_you_mean

BUILT_IN = "vqcompress.calib_prompts"
HUB = "hf:"
COLUMNS = ("prompt", "caption", "text")
MAX_BYTES = 64 * 1024 * 1024
MAX_LENGTH = 10_000
"""Characters of one prompt. A text encoder reads the first few hundred."""

__all__ = ["PromptSet", "built_in_sets", "choose_diverse", "given_prompts", "load_prompts"]


@dataclass(frozen=True)
class PromptSet:
    """Prompts in file order. ``sha256`` is that of the file's bytes (of the joined prompts for a Hub dataset)."""

    name: str
    prompts: tuple[str, ...]
    sha256: str


def load_prompts(source: StrPath) -> PromptSet:
    """The prompt set called ``source``.

    ``source`` is the name of a built-in set (``general``, ``shapes``, ``imagenet``…), a path (``.txt`` with one prompt
    a line or ``id<TAB>caption``; ``.jsonl`` with "prompt", "caption" or "text"), or ``hf:owner/name[:column]`` for a
    Hub dataset. Empty lines are skipped. Raises `CalibrationError` when there is no such set, it cannot be read, or it
    is empty.
    """
    name = str(source)
    if name.startswith(HUB):
        return _from_hub(name.removeprefix(HUB))
    if name in built_in_sets():
        return _parse(name, ".txt", files(BUILT_IN).joinpath(f"{name}.txt").read_bytes())
    path = Path(os.path.expanduser(name))
    if not os.path.isfile(path):  # False for what can be no name, where a Path raises
        raise CalibrationError(
            f"no prompt set {name!r}: it is neither a file nor one of {', '.join(built_in_sets())}"
            f"{did_you_mean(name, built_in_sets()) or '; a Hub dataset is written hf:owner/name[:column]'}"
        )
    try:
        return _parse(name, path.suffix.lower(), _content(path))
    except OSError as error:
        raise CalibrationError(f"the prompt file {path} cannot be read: {error.strerror}") from error


def given_prompts(prompts: Iterable[str]) -> PromptSet:
    """The set that texts make, by the name "given". Raises `RecipeError` for none, an empty one, or what is no text."""
    texts = list(prompts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RecipeError("prompts: give the name of a set, a file, or a list of texts that are not empty")
    return _listed("given", texts)


def _listed(name: str, prompts: Sequence[str]) -> PromptSet:
    return _prompt_set(name, prompts, "\n".join(prompts).encode())


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise CalibrationError(
            f"the prompt file {path} is longer than {MAX_BYTES // 2**20} MiB; calibration uses a few hundred prompts: "
            "give a sample of its lines"
        )
    return content


def built_in_sets() -> list[str]:
    """Names of the sets that come with the package."""
    return sorted(entry.name.removesuffix(".txt") for entry in files(BUILT_IN).iterdir() if entry.name.endswith(".txt"))


def _parse(name: str, suffix: str, content: bytes) -> PromptSet:
    try:
        lines = [line.strip("\r\n") for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"the prompt file {name} is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    for number, line in filled:
        _check_line(name, number, line)
    if suffix in (".jsonl", ".ndjson"):
        prompts = [_json_prompt(name, number, line) for number, line in filled]
    elif filled and all("\t" in line for _, line in filled):
        prompts = [_caption(name, number, line) for number, line in filled]
    else:
        prompts = [line.strip() for _, line in filled]
    return _prompt_set(name, prompts, content)


def _check_line(name: str, number: int, line: str) -> None:
    if "\0" in line:
        raise CalibrationError(f"{name}, line {number}: a NUL character; the file is not text with one prompt a line")
    if len(line) > MAX_LENGTH:
        raise CalibrationError(
            f"{name}, line {number}: {len(line)} characters, at most {MAX_LENGTH} are read; write one prompt a line"
        )


def _prompt_set(name: str, prompts: Iterable[str], content: bytes) -> PromptSet:
    prompts = tuple(prompts)
    if not prompts:
        raise CalibrationError(f"the prompt set {name} is empty; it needs at least one line with a prompt")
    return PromptSet(name, prompts, hashlib.sha256(content).hexdigest())


def _caption(name: str, number: int, line: str) -> str:
    caption = line.split("\t", 1)[1].strip()
    if not caption:
        raise CalibrationError(f"{name}, line {number}: no caption after the tab; expected id<TAB>caption")
    return caption


def _json_prompt(name: str, number: int, line: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{name}, line {number}: not JSON ({error})") from None
    for column in COLUMNS:
        if isinstance(row, dict) and isinstance(row.get(column), str) and row[column].strip():
            return row[column].strip()
    raise CalibrationError(f"{name}, line {number}: expected an object with a text under {', '.join(COLUMNS)}")


def _from_hub(source: str) -> PromptSet:
    repo, _, column = source.partition(":")
    try:
        from datasets import load_dataset
    except ImportError:
        raise CalibrationError(
            f"reading {HUB}{source} needs the package `datasets`: pip install datasets, or give a file of prompts"
        ) from None
    try:
        rows = load_dataset(repo, split="train")
    except Exception as error:
        reason = first_line(error)
        raise CalibrationError(f"the Hub dataset {repo!r} could not be loaded: {reason}") from error
    prompts = [text.strip() for text in rows[_column(repo, column, rows.column_names)] if text and text.strip()]
    return _listed(HUB + source, prompts)


def _column(repo: str, wanted: str, present: list[str]) -> str:
    """The column to read: the wanted one, or the first of the usual names."""
    for column in [wanted] if wanted else COLUMNS:
        if column in present:
            return column
    raise CalibrationError(
        f"the Hub dataset {repo} has no column {wanted or ' or '.join(COLUMNS)}; it has {', '.join(present)}: "
        f"write {HUB}{repo}:COLUMN"
    )
