"""Class numbers from class ids and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from vqcompress.errors import ArchitectureError


def class_numbers(prompts: Sequence[str], labels: Mapping[str, int], classes: int) -> list[int]:
    """Class numbers from decimal numbers, a pipeline's own ``labels``, or names of the ``imagenet`` prompt set.

    Raises `ArchitectureError` for anything else and for numbers >= ``classes``.
    """
    known = {**class_names("imagenet"), **labels}
    numbers = [int(prompt) if prompt.isdecimal() else known.get(prompt, -1) for prompt in prompts]
    for prompt, number in zip(prompts, numbers, strict=True):
        if not 0 <= number < classes:
            raise ArchitectureError(
                f"{prompt!r} is no class of this model: give an id from 0 to {classes - 1} or a class name, such as "
                "those of the prompt set imagenet"
            )
    return numbers


def class_names(prompt_set: str) -> dict[str, int]:
    """Class name -> number in a built-in prompt set. Its lines are ``number<TAB>name``, or names in order."""
    lines = files("vqcompress.calib_prompts").joinpath(f"{prompt_set}.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.rpartition("\t") for line in lines if line.strip())
    return {name.strip(): int(number or place) for place, (number, _, name) in enumerate(pairs)}
