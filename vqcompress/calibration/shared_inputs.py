"""Find layers that read the very same tensor, so that its second moment is recorded once.

Query, key and value projections share their input, and the keys and values of all cross-attention layers read the
same text: on SDXL that is 350 of 743 linear layers. What modulates the blocks of a transformer is one vector an image,
which every block makes anew by an activation of its own: tensors of so few numbers are compared by what they hold.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from torch import Tensor, nn

from vqcompress.calibration.input_samples import sample_count
from vqcompress.denoiser_calls.call import call_arguments
from vqcompress.errors import CalibrationError
from vqcompress.matrix_view import matrix_shape
from vqcompress.moments.cross_validation import LARGEST
from vqcompress.moments.second_moment import keeps_samples

GLIMPSE = 256  # numbers of an input that are compared


@dataclass(frozen=True)
class InputGroup:
    """Layers with the same input; ``columns`` is the side of its second moment, ``ran`` whether the probe reached them.

    ``samples`` is how many input samples are to be expected, where that is known. ``folds`` is how many moments are
    recorded, of different prompts: several where samples are few, however often they come
    (`moments.cross_validation`).
    """

    layers: tuple[str, ...]
    columns: int
    ran: bool
    samples: int | None = None
    folds: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of the float32 second moments, or of the samples that stand for them where they are few."""
        if self.samples is not None and keeps_samples(self.columns, -(-self.samples // self.folds)):
            return 4 * self.columns * self.samples
        return 4 * self.columns**2 * self.folds


def shared_inputs(
    component: nn.Module,
    layers: Sequence[str],
    run: Callable[[], None],
    repeats: float | None = None,
    folds: int = 1,
) -> list[InputGroup]:
    """Group ``layers`` by the inputs they receive while ``run`` calls ``component``.

    ``repeats`` is how many times as many samples the whole calibration will show, and ``folds`` how many sets its
    prompts are divided into where inputs depend on little else: there is one sample for each image of the batch, or
    they are the same at every timestep, as text is. Layers share a group when they receive the same tensor object,
    unchanged in between, or the same vector for each image, in every call, and unfold it in the same way. Layers that
    are not called are groups of their own. Groups come in the order of their first layers.
    """
    trace = _Trace()
    with ExitStack() as hooks:
        hooks.callback(component.register_forward_pre_hook(trace.note_call, with_kwargs=True).remove)
        for name in layers:
            handle = component.get_submodule(name).register_forward_pre_hook(trace.hook(name), with_kwargs=True)
            hooks.callback(handle.remove)
        run()
    grouped: dict[Hashable, list[str]] = {}
    for name in layers:
        seen = tuple(trace.inputs.get(name, ()))
        grouped.setdefault((seen, _layout(component.get_submodule(name))) if seen else name, []).append(name)
    return [_group(component, names, trace, repeats, folds) for names in grouped.values()]


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The tensor that a Linear or Conv2d was called with."""
    return args[0] if args else kwargs["input"]


def _group(component: nn.Module, names: list[str], trace: _Trace, repeats: float | None, folds: int) -> InputGroup:
    ran = names[0] in trace.inputs
    samples = math.ceil(trace.samples[names[0]] * repeats) if ran and repeats is not None else None
    columns = dense_columns(component.get_submodule(names[0]))
    apart = columns <= LARGEST and (names[0] in trace.one_per_image or names[0] in trace.same_at_all_times)
    return InputGroup(tuple(names), columns, ran, samples, folds if apart else 1)


def dense_columns(layer: nn.Module) -> int:
    """Columns of the layer's matrix, from its geometry: packed weights have another shape."""
    if isinstance(layer, nn.Conv2d):
        return matrix_shape((layer.out_channels, layer.in_channels, *layer.kernel_size))[1]
    if isinstance(layer, nn.Linear):
        return layer.in_features
    raise CalibrationError(f"the input of a {type(layer).__name__} cannot be recorded, only that of Linear and Conv2d")


def _layout(layer: nn.Module) -> Hashable:
    if not isinstance(layer, nn.Conv2d):
        return "linear"
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode


@dataclass
class _Trace:
    """Numbers every distinct input tensor; holds weak references only, so no activation lives longer for it."""

    inputs: dict[str, list[int | bytes]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    images: int | None = None
    many_per_image: set[str] = field(default_factory=set)
    glimpses: dict[str, list[bytes]] = field(default_factory=dict)
    _alive: dict[int, tuple[weakref.ref[Tensor], int, int]] = field(default_factory=dict)
    _count: int = 0

    @property
    def one_per_image(self) -> set[str]:
        """Layers that were given as many samples as the component was given images, in every call of it."""
        return {name for name, given in self.inputs.items() if len(given) >= self.calls} - self.many_per_image

    @property
    def same_at_all_times(self) -> set[str]:
        """Layers whose every input came at least twice: at two timesteps, with or without the prompt."""
        return {name for name, seen in self.glimpses.items() if 2 * len(set(seen)) <= len(seen)}

    def note_call(self, component: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """How many images a call of the component has, those of both guidance halves counted."""
        given = (value for value in call_arguments(component, args, kwargs).values() if isinstance(value, Tensor))
        self.images = next((value.shape[0] for value in given if value.ndim), None)
        self.calls += 1

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, count = layer_input(args, kwargs), sample_count(layer_input(args, kwargs), module)
            if count != self.images:
                self.many_per_image.add(name)
            self.glimpses.setdefault(name, []).append(_glimpse(x))
            known = _contents(x) if count == self.images else None
            self.inputs.setdefault(name, []).append(known or self._number(x))
            self.samples[name] = self.samples.get(name, 0) + count

        return note

    def _number(self, tensor: Tensor) -> int:
        version = 0 if tensor.is_inference() else tensor._version
        reference, known_version, number = self._alive.get(id(tensor), (None, -1, -1))
        if reference is not None and reference() is tensor and known_version == version:
            return number
        self._count += 1
        self._alive[id(tensor)] = (weakref.ref(tensor), version, self._count)
        return self._count


def _contents(x: Tensor) -> bytes | None:
    """What identifies the numbers of ``x``; None where all are equal, which layers can be given by chance."""
    values = x.detach().float().cpu().contiguous()
    if values.numel() == 0 or bool((values == values.flatten()[0]).all()):
        return None
    return sha256(repr(tuple(x.shape)).encode() + values.numpy().tobytes()).digest()


def _glimpse(x: Tensor) -> bytes:
    """A few of the numbers of ``x``, at odd distances: all columns of an even width have their turn, not one alone."""
    values = x.detach().flatten()
    return values[:: len(values) // GLIMPSE | 1].float().cpu().numpy().tobytes()
