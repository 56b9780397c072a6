"""PEFT's tuners on packed layers: those that work get dense weights to read, the others are refused before they start.

A tuner works if what it adds can be computed beside the packed layer. Those that replace, split or train the base
weight cannot; nor can any adapter be merged, for codes are no numbers to add to.
"""

from __future__ import annotations

import functools
import inspect
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from torch import nn

from vqcompress.errors import UnsupportedError
from vqcompress.integrations.dense_view import dense_view
from vqcompress.layers import PackedLayer, vq_layers
from vqcompress.layers.guards import MERGE_REFUSED

WORKING = frozenset(
    (
        *("ADALORA", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3", "LILY"),
        *("LOHA", "LOKR", "LORA", "MISS", "BONE", "OFT", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD"),
        *("SUPERTUNING", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
    )
)
"""PEFT's types of tuners that `tests/integrations/test_peft_tuners.py` compares with the same on dense layers."""

LINEAR_ONLY = frozenset(("HRA", "OFT"))
"""Those of them that take a convolution's weight apart."""

ADDITIVE_STARTS = ("gaussian", "eva", "orthogonal")
"""Starting values of a LoRA by name that leave the base weight as it is."""

_reads_codes: ContextVar[bool] = ContextVar("reads_codes", default=False)


def attach(tuners_utils: ModuleType) -> None:
    """Extend the base classes in ``peft.tuners.tuners_utils``. Calling it again changes nothing."""
    layer: Any = getattr(tuners_utils, "BaseTunerLayer", None)
    tuner: Any = getattr(tuners_utils, "BaseTuner", None)
    if not (hasattr(layer, "get_base_layer") and hasattr(tuner, "inject_adapter")):
        raise UnsupportedError(
            f"{tuners_utils.__name__}.BaseTunerLayer.get_base_layer or BaseTuner.inject_adapter is gone, so vqcompress "
            "cannot keep adapters from misreading packed weights; install a version in the range that pyproject.toml "
            "declares"
        )
    if getattr(layer.get_base_layer, "knows_packed", False):
        return
    layer.get_base_layer = _viewed(layer.get_base_layer)
    layer.weight = property(_codes_of(layer.weight.fget))
    layer._move_adapter_to_device_of_base_layer = _reading_codes(layer._move_adapter_to_device_of_base_layer)
    tuner.inject_adapter = _checked(tuner.inject_adapter)
    layer.__init_subclass__ = classmethod(_guard_merge)
    for known in _subclasses(layer):
        _guard_merge(known)
    for known in _subclasses(tuner):
        if "inject_adapter" in vars(known):
            known.inject_adapter = _checked(known.inject_adapter)


def _viewed(upstream: Any) -> Any:
    @functools.wraps(upstream)
    def get_base_layer(self: Any) -> nn.Module:
        base = upstream(self)
        return dense_view(base) if isinstance(base, PackedLayer) and not _reads_codes.get() else base

    get_base_layer.__dict__["knows_packed"] = True
    return get_base_layer


def _reading_codes(upstream: Any) -> Any:
    """``upstream`` reads only the device of the base weight, and must not cast the adapter to its dtype."""

    @functools.wraps(upstream)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = _reads_codes.set(True)
        try:
            return upstream(self, *args, **kwargs)
        finally:
            _reads_codes.reset(token)

    return method


def _codes_of(upstream: Any) -> Any:
    """The weight of a wrapped layer, as of a bare one. T5 casts to the dtype of what it finds here, save int8."""
    return _reading_codes(upstream)


def _guard_merge(kind: Any, **options: Any) -> None:
    merge = vars(kind).get("merge")
    if merge is None or getattr(merge, "guards_packed", False):
        return

    @functools.wraps(merge)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.get_base_layer(), PackedLayer):
            raise UnsupportedError(MERGE_REFUSED)
        return merge(self, *args, **kwargs)

    guarded.__dict__["guards_packed"] = True
    kind.merge = guarded


def _subclasses(kind: Any) -> set[Any]:
    direct = set(kind.__subclasses__())
    return direct.union(*map(_subclasses, direct)) if direct else direct


def _checked(upstream: Any) -> Any:
    @functools.wraps(upstream)
    def inject_adapter(self: Any, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        if packed := vq_layers(model):
            config = self.peft_config[adapter_name]
            targets = [name for name in packed if _is_target(self, config, name)]
            if problem := _problem(config, [packed[name] for name in targets], [*packed]):
                _forget(model)
                raise UnsupportedError(f"{problem}; or make a dense pipeline with `vqcompress dequantize DIR -o DIR2`")
        return upstream(self, model, adapter_name, *args, **kwargs)

    return inject_adapter


def _is_target(tuner: Any, config: Any, name: str) -> bool:
    """Whether the adapter goes on the layer; True where that is only known later (``all-linear``, a default)."""
    wanted = getattr(config, "target_modules", None)
    if wanted is None or wanted == "all-linear":
        return True
    return bool(tuner._check_target_module_exists(config, name.removesuffix(".base_layer")))


def _problem(config: Any, targets: list[PackedLayer], names: list[str]) -> str | None:
    kind = str(getattr(config.peft_type, "value", config.peft_type)).upper()
    if any(parameter.endswith(f"{name}.weight") for parameter in _parameters(config) for name in names):
        return f"{kind} on parameters (target_parameters) would read codes: target the layers (target_modules)"
    if not targets:
        return None
    if kind not in WORKING:
        return (
            f"PEFT's {kind} replaces or trains the weights of its layers, which are packed: target layers that stayed "
            "dense, or use another tuner (LORA, also with use_dora, LOHA, LOKR, IA3, OFT, BOFT, VERA, HRA, …)"
        )
    if is_linear_only(kind) and any(len(layer.dense_shape) > 2 for layer in targets):
        return (
            f"PEFT's {kind} takes the weight of a convolution apart, which is packed: target linear layers, or use LORA"
        )
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.lower() not in ADDITIVE_STARTS:
        return (
            f"init_lora_weights={start!r} subtracts from the base weights, which are packed: leave it at True, or use "
            f"{', '.join(map(repr, ADDITIVE_STARTS))}"
        )
    return None


def is_linear_only(kind: str) -> bool:
    """Whether this tuner reads the stored weight of a convolution; BOFT does in early versions of PEFT."""
    return kind in LINEAR_ONLY or (kind == "BOFT" and _boft_reads_codes())


@functools.cache
def _boft_reads_codes() -> bool:
    from peft.tuners.boft.layer import Conv2d

    return "self.base_layer.weight" in inspect.getsource(Conv2d.forward)


def _parameters(config: Any) -> list[str]:
    found = getattr(config, "target_parameters", None) or []
    return [found] if isinstance(found, str) else list(found)


def _forget(model: Any) -> None:
    """diffusers and transformers note that a model has adapters before they ask PEFT for one."""
    if not getattr(model, "peft_config", None) and "_hf_peft_config_loaded" in vars(model):
        model._hf_peft_config_loaded = False
