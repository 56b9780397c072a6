"""The base class of our networks. diffusers can save, load and compress them like its own."""

from __future__ import annotations

import sys
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin

from vqcompress.cache_line import on_cache_line


class Network(ModelMixin, ConfigMixin):
    """An ``nn.Module`` with ``config``, ``save_pretrained`` and ``from_pretrained``."""

    # Both parents define it, with different types. Declaring it here avoids a declaration in every network.
    config_name: Any = "config.json"

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """Load as diffusers does. Small parameters are aligned, so that a small network computes the same bits as the
        network that was saved."""
        opened = super().from_pretrained(*arguments, **options)
        for parameter in (opened[0] if isinstance(opened, tuple) else opened).parameters():
            if parameter.is_floating_point():  # codes of a packed network stay memory-mapped
                parameter.data = on_cache_line(parameter.data)
        return opened

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Make the class loadable from a pipeline folder: diffusers looks up ``ModelMixin`` in the class's module."""
        super().__init_subclass__(**arguments)
        sys.modules[cls.__module__].__dict__.setdefault("ModelMixin", ModelMixin)
