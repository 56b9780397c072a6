"""The config class that diffusers and transformers both build from ``quantization_config``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from reprlib import repr as short_repr
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from vqcompress.errors import CheckpointError
from vqcompress.layers import FORMAT_VERSION, QUANT_METHOD, check_description
from vqcompress.layers.description import describe_by
from vqcompress.methods import DEFAULT_METHOD


class VQMethod(StrEnum):
    """The one quantization method of this package. Both libraries read ``quant_method.value``."""

    VQCOMPRESS = QUANT_METHOD


class VQCompressConfig(QuantizationConfigMixin):
    """The result of `vqcompress.layers.describe` for a component: ``layers``, ``shared`` and ``format_version``.

    Without layers, the component is quantized while loading, without data: ``bits`` per weight, ``method`` and ``seed``
    as in `vqcompress.quantize_weight`. Example: ``PipelineQuantizationConfig(quant_backend="vqcompress",
    quant_kwargs={"bits": 4})``. Layers whose name contains one of ``modules_to_not_convert`` stay dense. The component
    then gets ``dense_budget`` (`vqcompress.set_dense_budget`), which is not stored with it.
    """

    def __init__(
        self,
        layers: Mapping[str, Any] | None = None,
        shared: Mapping[str, Any] | None = None,
        format_version: int = FORMAT_VERSION,
        quant_method: str = QUANT_METHOD,
        dense: Mapping[str, str] | None = None,
        kept: Mapping[str, str] | None = None,
        bits: float = 3.0,
        method: str = DEFAULT_METHOD,
        seed: int = 0,
        modules_to_not_convert: Sequence[str] | None = None,
        dense_budget: str | int | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise CheckpointError(
                f"a vqcompress quantization_config has no key {', '.join(unknown)} that this version knows; update "
                "vqcompress"
            )
        del quant_method
        _check_types({"layers": layers, "shared": shared, "dense": dense, "kept": kept}, modules_to_not_convert)
        self.quant_method = VQMethod.VQCOMPRESS
        self.format_version = format_version
        self.layers = dict(layers or {})
        self.shared = dict(shared or {})
        self.unpacked = {"dense": dict(dense or {}), "kept": dict(kept or {})}
        self.bits, self.method, self.seed = bits, method, seed
        self.modules_to_not_convert = list(modules_to_not_convert or ())
        self.dense_budget = dense_budget
        check_description(self.description)

    @property
    def description(self) -> dict[str, Any]:
        """The part that describes packed layers."""
        return {
            "quant_method": QUANT_METHOD,
            "format_version": self.format_version,
            "layers": {name: _copied(entry) for name, entry in self.layers.items()},
            "shared": _copied(self.shared),
            **{key: dict(reasons) for key, reasons in self.unpacked.items() if reasons},
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, as in ``config.json``."""
        if self.layers:
            return self.description
        names = ("bits", "method", "seed", "modules_to_not_convert")
        return {**self.description, **{name: getattr(self, name) for name in names}}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same as `to_dict`: defaults are included."""
        return self.to_dict()

    def __getitem__(self, key: str) -> Any:
        """``config["layers"]``, as in the plain data."""
        return self.to_dict()[key]

    def __repr__(self) -> str:
        # diffusers and transformers format configs for their debug log; with thousands of layers that is slow.
        return f"{type(self).__name__}({len(self.layers)} layers, format_version={self.format_version})"


def _check_types(mappings: Mapping[str, Any], names: Any) -> None:
    """Raise `CheckpointError` unless these arguments are mappings, and names a sequence of texts, or absent."""
    for key, value in mappings.items():
        if value is not None and not isinstance(value, Mapping):
            raise CheckpointError(f"{key} in a quantization_config is {short_repr(value)}, which is no mapping")
    for key in ("layers", "shared"):
        for name, entry in (mappings[key] or {}).items():
            if not isinstance(entry, Mapping if key == "layers" else list | tuple):
                raise CheckpointError(f"{name!r} in {key} of a quantization_config is {short_repr(entry)}")
    if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in _listed(names))):
        raise CheckpointError(f"modules_to_not_convert is {short_repr(names)}, not a list of names")


def _listed(names: Any) -> Sequence[Any]:
    return names if isinstance(names, Sequence) else (None,)


def _copied(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``{name: number, text or list of numbers}``, as `vqcompress.layers.describe` writes it.

    ``deepcopy`` takes 20 times as long.
    """
    return {key: list(value) if isinstance(value, list | tuple) else value for key, value in entry.items()}


describe_by(lambda description: VQCompressConfig(**description))
