"""Names under which transformers stores the tensors of packed networks.

transformers writes most networks with the names that their first checkpoints had, and renames on loading. What it
renames are weights of dense layers: other names, in other files, than those of the layers that a config describes.
Packed networks are therefore stored under the names that their modules have, which loading leaves as they are.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import nn

from vqcompress.errors import UnsupportedError
from vqcompress.layers import vq_layers
from vqcompress.layers.module_names import fitting_name

OPTION = "save_original_format"


def attach(module: ModuleType) -> None:
    """Wrap ``PreTrainedModel.save_pretrained`` of ``transformers.modeling_utils``. Calling it again changes nothing."""
    kind: Any = getattr(module, "PreTrainedModel", None)
    upstream = getattr(kind, "save_pretrained", None)
    if upstream is None:
        raise UnsupportedError(
            f"{module.__name__}.PreTrainedModel.save_pretrained is gone, so vqcompress cannot choose the names of "
            "packed tensors; install a version in the range that pyproject.toml declares"
        )
    if getattr(upstream, "knows_packed", False):
        return

    @functools.wraps(upstream)
    def save_pretrained(self: Any, *args: Any, **options: Any) -> Any:
        if vq_layers(self) and not stays_readable(self):
            options.setdefault(OPTION, False)
        return upstream(self, *args, **options)

    save_pretrained.__dict__["knows_packed"] = True
    kind.save_pretrained = save_pretrained


def stays_readable(network: nn.Module) -> bool:
    """Whether `fitting_name` knows each packed layer by the name that transformers would store it under.

    So it is for CLIP, whose folders earlier versions have written that way.
    """
    from transformers.core_model_loading import revert_weight_conversion

    layers = vq_layers(network)
    weights = {f"{name}.weight": torch.empty(0) for name in layers}
    try:
        stored = revert_weight_conversion(network, weights)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - where tensors are merged or split, and these are empty
        return False
    found = {fitting_name(key.removesuffix(".weight"), layers) for key in stored}
    return found == layers.keys()
