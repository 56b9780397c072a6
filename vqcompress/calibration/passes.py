"""Divide what is to be recorded into passes over the prompts that fit in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vqcompress.calibration.shared_inputs import InputGroup
from vqcompress.errors import CalibrationError


def plan_passes(groups: Sequence[InputGroup], memory_budget: int | None) -> list[list[InputGroup]]:
    """Pack ``groups`` into few passes whose second moments take at most ``memory_budget`` bytes each (None: one pass).

    First-fit decreasing: never more than 11/9 of the fewest possible passes plus one (Johnson 1973). Inside a pass the
    groups keep their order. Raises `CalibrationError` when one group alone exceeds the budget.
    """
    if memory_budget is None:
        return [list(groups)] if groups else []
    order = sorted(range(len(groups)), key=lambda index: (-groups[index].nbytes, index))
    passes: list[list[int]] = []
    room: list[int] = []
    for index in order:
        group = groups[index]
        if group.nbytes > memory_budget:
            raise _too_large(group, memory_budget)
        slot = next((slot for slot, free in enumerate(room) if free >= group.nbytes), None)
        if slot is None:
            slot = len(room)
            room.append(memory_budget)
            passes.append([])
        room[slot] -= group.nbytes
        passes[slot].append(index)
    return [[groups[index] for index in sorted(members)] for members in passes]


def in_order_within(needs: Mapping[str, int], memory_budget: int) -> list[list[str]]:
    """The keys of ``needs``, in order, in passes that need at most ``memory_budget`` bytes or have a single key."""
    passes: list[list[str]] = []
    room = 0
    for name, needed in needs.items():
        if not passes or needed > room:
            passes.append([])
            room = memory_budget
        passes[-1].append(name)
        room -= needed
    return passes


def _too_large(group: InputGroup, memory_budget: int) -> CalibrationError:
    return CalibrationError(
        f"the second moment of {group.layers[0]} ({group.columns} columns) takes {group.nbytes / 1e9:.3g} GB, "
        f"more than the memory budget of {memory_budget / 1e9:.3g} GB; raise the budget to at least that, or leave "
        "the layer dense"
    )
