"""Every failure that vqcompress raises on purpose, as one tree, and what others say in one line.

A message says what went wrong, where, why, and what to do instead. The command line prints it on one
line and leaves with exit code 2.
"""

from __future__ import annotations


class VQCompressError(Exception):
    """Base of all errors that a user can correct."""


class RecipeError(VQCompressError):
    """A recipe, a command line or a quantizer setting is not usable as given."""


class UnfitWeightError(RecipeError):
    """A weight that a method cannot code within its bits, or whose scale float16 cannot hold; a run keeps it dense."""


class ArchitectureError(VQCompressError):
    """A model was not found, is no pipeline, or has a part that vqcompress cannot place."""


class CalibrationError(VQCompressError):
    """Prompts are missing or empty, or what was recorded cannot be used."""


class CheckpointError(VQCompressError):
    """A compressed folder is incomplete, altered, of a newer format, or cannot be written."""


class UnsupportedError(VQCompressError):
    """An operation has no meaning on packed weights; the message names an alternative."""


def first_line(error: BaseException) -> str:
    """What ``error`` says, to the end of its first line; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
