"""The base of our networks: modules that diffusers can save, load and compress like its own."""

from __future__ import annotations

import sys
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin

from vqcompress.cache_line import on_cache_line


class Network(ModelMixin, ConfigMixin):
    """An ``nn.Module`` with ``config``, ``save_pretrained`` and ``from_pretrained``."""

    # Both parents define it, with different types; said once here instead of at every network.
    config_name: Any = "config.json"

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """As diffusers does it; a small network then computes bit for bit what the one that was saved did."""
        opened = super().from_pretrained(*arguments, **options)
        for parameter in (opened[0] if isinstance(opened, tuple) else opened).parameters():
            if parameter.is_floating_point():  # codes of a packed network stay where they are mapped
                parameter.data = on_cache_line(parameter.data)
        return opened

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Let a pipeline's folder load the class: diffusers asks its module, by this name, how that is done."""
        super().__init_subclass__(**arguments)
        sys.modules[cls.__module__].__dict__.setdefault("ModelMixin", ModelMixin)
