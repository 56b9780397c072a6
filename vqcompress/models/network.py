"""The base of our networks: modules that diffusers can save, load and compress like its own."""

from __future__ import annotations

import sys
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin


class Network(ModelMixin, ConfigMixin):
    """An ``nn.Module`` with ``config``, ``save_pretrained`` and ``from_pretrained``."""

    # Both parents define it, with different types; said once here instead of at every network.
    config_name: Any = "config.json"

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Let a pipeline's folder load the class: diffusers asks its module, by this name, how that is done."""
        super().__init_subclass__(**arguments)
        sys.modules[cls.__module__].__dict__.setdefault("ModelMixin", ModelMixin)
