"""The config class that diffusers and transformers both build from ``quantization_config``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from vqcompress.errors import CheckpointError
from vqcompress.layers import FORMAT_VERSION, QUANT_METHOD, check_description


class VQMethod(StrEnum):
    """Our one quantization method; both libraries read ``quant_method.value``."""

    VQCOMPRESS = QUANT_METHOD


class VQCompressConfig(QuantizationConfigMixin):
    """What `vqcompress.layers.describe` says of a component: ``layers``, ``shared`` and ``format_version``.

    Without layers it asks for quantization while loading, which needs no data: see ``bits`` and ``method``.
    """

    def __init__(
        self,
        layers: Mapping[str, Any] | None = None,
        shared: Mapping[str, Any] | None = None,
        format_version: int = FORMAT_VERSION,
        quant_method: str = QUANT_METHOD,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise CheckpointError(
                f"the quantization_config has keys that this version does not know: {', '.join(unknown)}; update vqcompress"
            )
        del quant_method
        self.quant_method = VQMethod.VQCOMPRESS
        self.format_version = format_version
        self.layers = dict(layers or {})
        self.shared = dict(shared or {})
        check_description(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, as it stands in ``config.json``."""
        data = copy.deepcopy(self.__dict__)
        return {**data, "quant_method": QUANT_METHOD}

    def to_diff_dict(self) -> dict[str, Any]:
        """Nothing is left out."""
        return self.to_dict()
