"""The name under which this version of diffusers takes the dtype to load in."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from typing import Any

import torch
from packaging.version import Version

RENAMED_IN = Version("0.42")  # before, `dtype` is ignored without a word; from here on, `torch_dtype` warns


@lru_cache(maxsize=1)
def _option_name() -> str:
    return "dtype" if Version(version("diffusers")) >= RENAMED_IN else "torch_dtype"


def dtype_option(dtype: torch.dtype | Any) -> dict[str, Any]:
    """Keyword argument for `from_pretrained` and `from_single_file`."""
    return {_option_name(): dtype}
