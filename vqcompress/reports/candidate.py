"""A compressed folder that takes part in a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vqcompress.checkpoint import RECIPE_NAME
from vqcompress.errors import CheckpointError, VQCompressError
from vqcompress.folder_files import StrPath
from vqcompress.methods import METHODS
from vqcompress.recipe import Recipe
from vqcompress.reports.comparison import ORIGINAL
from vqcompress.reports.variant import other_scheme


@dataclass(frozen=True)
class Candidate:
    """A compressed ``folder``, its label in the report, its method, and its `Variant.scheme`."""

    label: str
    folder: Path
    method: str
    scheme: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise VQCompressError(f"{self.folder}: unknown method {self.method!r}; reports know {', '.join(METHODS)}")


def candidate_at(folder: StrPath) -> Candidate:
    """The candidate in ``folder``, labelled by its recipe: ``trellis 3-bit``. Raises `CheckpointError` without one."""
    folder = Path(folder)
    recipe = _recipe(folder)
    scheme = _scheme(recipe)
    return Candidate(f"{recipe.method} {recipe.bits:g}-bit{scheme and ' '}{scheme}", folder, recipe.method, scheme)


def _scheme(recipe: Recipe) -> str:
    """How bits are allocated, where that is not the method's default."""
    return "" if recipe.budget in (None, METHODS[recipe.method].default_budget) else other_scheme(recipe.method)


def with_own_labels(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates; labels that occur twice get the folder's name added."""
    uses = Counter(candidate.label for candidate in candidates)
    return [
        replace(each, label=f"{each.label} ({each.folder.name})") if uses[each.label] > 1 else each
        for each in candidates
    ]


def check_labels(candidates: Sequence[Candidate]) -> None:
    """Raises `VQCompressError` for no candidates, or for two with the same label."""
    labels = [ORIGINAL, *(candidate.label for candidate in candidates)]
    twice = [label for label, uses in Counter(labels).items() if uses > 1]
    if not candidates or twice:
        reason = f"two have the label {twice[0]!r}" if twice else "none is given"
        raise VQCompressError(f"a comparison needs compressed folders with different labels: {reason}")


def _recipe(folder: Path) -> Recipe:
    path = folder / RECIPE_NAME
    if not path.is_file():
        if not folder.is_dir():
            raise CheckpointError(f"there is no such folder: {folder}")
        raise CheckpointError(f"{folder} was not written by `vqcompress quantize`: it has no {RECIPE_NAME}")
    return Recipe.read(path)
