"""Weights of the layers that come next, decoded on a second stream of a GPU while those before are multiplied.

A network's calls show in which order its layers ask for weights. Layers that follow each other are put into groups; one
group is decoded by a launch for each kernel that its weights need, and the next group while it is multiplied. Whatever
is not as it was when the groups were made (a layer that moved, another order, another stream, gradients, tracing) is
decoded when it is asked for, as without groups: the weights are the same, bit for bit.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock, local
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.hooks import RemovableHandle

from vqcompress.kernels.cuda.groups import CudaSide, Group, Pass, Side, bytes_in_group
from vqcompress.kernels.cuda.operations import Launching
from vqcompress.kernels.tensor_cache import place_of
from vqcompress.kernels.weight_source import WeightSource
from vqcompress.layers.dense_budget import denoisers
from vqcompress.layers.packed import PackedLayer

GROUP_BYTES = 64_000_000
BLOCKS = 2
"""Of a launch on each multiprocessor: half of those of a launch that has the GPU to itself."""
STEADY = 3
"""Calls with the same layers in the same order before groups are made: the first of a prompt have more layers."""
MOST_PLANS = 16
"""Times that groups are made for a network. One whose weights always move decodes them when they are asked for."""
STATE = "_vq_decode_ahead"


def set_decode_ahead(
    model: Any,
    group_bytes: int | None = GROUP_BYTES,
    blocks: int = BLOCKS,
    side: Callable[[torch.device], Side] = CudaSide,
) -> None:
    """Let the denoiser of ``model``, a pipeline or a module, decode on a second stream what its next layers need.

    Two groups of at most ``group_bytes`` bytes of decoded weights exist at a time; 0 or ``None`` ends it. It is for
    NVIDIA's GPUs with the weights on the GPU and without gradients; elsewhere layers decode as always. Outputs stay the
    same, bit for bit. Groups are made after a few calls, and each is compared with its layers' own weights then; a
    difference ends it, with a warning. ``side`` makes the second stream.

    Not yet run on a GPU, so nothing turns it on by itself.
    """
    for network in denoisers(model):
        if (before := network.__dict__.pop(STATE, None)) is not None:
            before.detach(network)
        if group_bytes:
            network.__dict__[STATE] = ahead = DecodeAhead(group_bytes, blocks, side)
            ahead.attach(network)


class Member:
    """A packed layer of a network that decodes ahead. Its `WeightSource` asks here for the weight."""

    def __init__(self, ahead: DecodeAhead, layer: PackedLayer) -> None:
        self._ahead, self.layer = ahead, weakref.ref(layer)

    def __call__(self, own: Callable[[], Tensor]) -> Tensor:
        """The weight: decoded ahead, or else by ``own()``."""
        return self._ahead.weight(self, own)


@dataclass(frozen=True)
class _Planned:
    """Groups for layers that ask in this order. ``where`` says which part of which group a layer's weight is, for the
    plan that the layer had; ``places`` are those of each group's stored tensors, which ``references`` refer to
    weakly."""

    order: tuple[Member, ...]
    groups: tuple[Group, ...]
    where: dict[Member, tuple[int, int, Launching]]
    places: tuple[dict[Member, tuple[Any, ...]], ...]
    references: tuple[StorageWeakRef, ...]
    side: Side

    def usable(self, index: int) -> bool:
        """Whether all that a group reads lies and reads as when it was made."""
        return all(_places(member) == places for member, places in self.places[index].items())

    @property
    def all_usable(self) -> bool:
        return all(map(self.usable, range(len(self.groups))))


@dataclass
class _Call:
    """One call of the network: which layers asked so far, and the weights that are decoded ahead, if any are."""

    planned: _Planned | None
    running: Pass | None
    asked: dict[Member, Launching] = field(default_factory=dict)
    inner: int = 0  # calls of the network within this one


class DecodeAhead:
    """What one network's calls know of each other. Threads may share it; each has passes of its own."""

    def __init__(self, group_bytes: int, blocks: int, side: Callable[[torch.device], Side]) -> None:
        self._group_bytes, self._blocks, self._make_side = group_bytes, blocks, side
        self._lock, self._local = Lock(), local()
        self._planned: _Planned | None = None
        self._captured: list[_Planned] = []  # CUDA graphs read what these hold
        self._order: tuple[Member, ...] = ()
        self._times, self._plans_left = 0, MOST_PLANS
        self._handles: list[RemovableHandle] = []

    def attach(self, network: nn.Module) -> None:
        """Watch the calls of ``network``, and let its layers ask here."""
        for layer in network.modules():
            if isinstance(layer, PackedLayer):
                before = layer.__dict__["weight_source"]
                layer.take_weight_from(WeightSource(before and before.budget, Member(self, layer)))
        self._handles = [
            network.register_forward_pre_hook(self._begin),
            network.register_forward_hook(self._end, always_call=True),
        ]

    @property
    def launches(self) -> list[int]:
        """Of each group, once groups were made."""
        return [] if self._planned is None else [group.launches for group in self._planned.groups]

    def detach(self, network: nn.Module) -> None:
        """Let the layers of ``network`` decode by themselves again."""
        for handle in self._handles:
            handle.remove()
        for layer in network.modules():
            source = layer.__dict__.get("weight_source")
            if source is not None and isinstance(source.ahead, Member):
                layer.take_weight_from(WeightSource(source.budget))  # type: ignore[operator]

    def weight(self, member: Member, own: Callable[[], Tensor]) -> Tensor:
        """What ``own()`` decodes, from the group that has it if there is one."""
        call: _Call | None = getattr(self._local, "call", None)
        if call is None or not isinstance(own, Launching):
            return own()
        call.asked.setdefault(member, own)
        if call.planned is None or call.running is None or (place := call.planned.where.get(member)) is None:
            return own()
        group, part, planned_for = place
        if own.plan is not planned_for.plan:
            return own()
        found = call.running.weight(group, part, own.plan.driver.stream(own.plan.device))
        return own() if found is None else found

    def _begin(self, network: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return
        call: _Call | None = getattr(self._local, "call", None)
        if call is not None:
            call.inner += 1
            return
        planned, running = self._planned, None
        if planned is not None:
            if planned.side.capturing():
                self._captured.append(planned)
            plan = planned.where[planned.order[0]][2].plan
            running = Pass(planned.groups, planned.side, planned.usable, plan.driver.stream(plan.device))
        self._local.call = _Call(planned, running)

    def _end(self, network: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        call: _Call | None = getattr(self._local, "call", None)
        if call is None:
            return
        if call.inner:
            call.inner -= 1
            return
        self._local.call = None
        if call.running is not None:
            call.running.finish()
        with self._lock:
            self._learn(call.asked)

    def _learn(self, asked: Mapping[Member, Launching]) -> None:
        """Make groups once calls ask for the same weights again and again, and others are planned for."""
        chosen = self._chosen(asked)
        order = tuple(chosen)
        self._times = self._times + 1 if order == self._order else 1
        self._order, planned = order, self._planned
        if not order or self._times < STEADY or not self._plans_left:
            return
        if planned is not None and planned.order == order and planned.all_usable:
            return
        plan = chosen[order[0]].plan
        side = planned.side if planned is not None else self._make_side(plan.device)
        if not side.capturing():
            self._plans_left, self._times = self._plans_left - 1, 0
            self._planned = self._made(chosen, side)

    def _chosen(self, asked: Mapping[Member, Launching]) -> dict[Member, Launching]:
        """Those that fit a group and have the first one's device and dtype."""
        chosen: dict[Member, Launching] = {}
        for member, own in asked.items():
            first = next(iter(chosen.values()), own).plan
            alike = (own.plan.device, own.plan.dtype) == (first.device, first.dtype)
            if alike and 0 < bytes_in_group(own.shape, own.plan.dtype) <= self._group_bytes:
                chosen[member] = own
        return chosen

    def _made(self, chosen: Mapping[Member, Launching], side: Side) -> _Planned | None:
        try:
            planned = _planned(chosen, side, self._group_bytes, self._blocks)
            problem = "" if _equal(planned, chosen) else "a group's weights differ from those of its layers"
        except torch.OutOfMemoryError:
            problem = "the GPU's memory does not hold its groups"
        if not problem:
            return planned
        self._plans_left = 0
        logging.getLogger(__name__).warning(f"weights are decoded when they are asked for, not ahead: {problem}")
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return _unattached, ()

    def __deepcopy__(self, memo: Any) -> DecodeAhead:
        return _unattached()


def _unattached() -> DecodeAhead:
    """What the hooks of a network's copy have: its layers ask nobody."""
    return DecodeAhead(0, 0, CudaSide)


def _planned(chosen: Mapping[Member, Launching], side: Side, group_bytes: int, blocks: int) -> _Planned:
    groups, places, references = [], [], []
    where: dict[Member, tuple[int, int, Launching]] = {}
    for index, members in enumerate(_runs(chosen, group_bytes)):
        layers = [layer for member in members if (layer := member.layer()) is not None]
        weights = [(layer.spec, layer.dense_shape, layer.tensors()) for layer in layers]
        places.append({member: _places(member) for member in members})
        plan = chosen[members[0]].plan
        groups.append(Group(plan.driver, side, weights, plan.dtype, blocks))
        where |= {member: (index, part, chosen[member]) for part, member in enumerate(members)}
        references += [StorageWeakRef(t.untyped_storage()) for _, _, tensors in weights for t in tensors.values()]
    return _Planned(tuple(chosen), tuple(groups), where, tuple(places), tuple(references), side)


def _runs(chosen: Mapping[Member, Launching], group_bytes: int) -> list[list[Member]]:
    """Layers that follow each other, as many as a group holds."""
    runs: list[list[Member]] = []
    room = 0
    for member, own in chosen.items():
        size = bytes_in_group(own.shape, own.plan.dtype)
        if size > room:
            runs.append([])
            room = group_bytes
        runs[-1].append(member)
        room -= size
    return runs


def _equal(planned: _Planned, chosen: Mapping[Member, Launching]) -> bool:
    """Whether each group's weights are those that its layers decode for themselves."""
    plan = chosen[planned.order[0]].plan
    stream = plan.driver.stream(plan.device)
    found = Pass(planned.groups, planned.side, planned.usable, stream)
    for group, part, own in planned.where.values():
        weight = found.weight(group, part, stream)
        if weight is None or not torch.equal(weight, own()):
            found.finish()
            return False
    found.finish()
    return True


def _places(member: Member) -> tuple[Any, ...]:
    """Where everything lies that the layer's weight is decoded from, and how often it was written to."""
    layer = member.layer()
    if layer is None:
        return ()
    own = [parameter for name, parameter in layer._parameters.items() if name != "bias" and parameter is not None]
    if (shared := layer.__dict__["shared_codebooks"]) is not None:
        own.append(shared(layer.spec.codebook))
    return (layer.layout, *map(place_of, own))
