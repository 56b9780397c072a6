"""Viterbi search of many tail-biting trellis columns on a GPU, one program per column.

The same search as `vqcompress.search.viterbi`, which has the sources: a short free search across the seam chooses the
boundary, then the column is searched exactly for it. The cost of every group of states and the whole value table stay
in registers. Only the chosen branch, one byte per group and weight, is written to memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqcompress.kernels.triton.device import OPTIONS
from vqcompress.search.viterbi import SEAM


def search_columns(targets: Tensor, scale: Tensor, table: Tensor, rate: int, phase: int = 0) -> tuple[Tensor, Tensor]:
    """Codes of ``targets [columns, outputs]`` under the metric ``sum (target - scale * value)**2``, all at one
    ``rate``.

    ``scale [outputs]`` and ``table [2**state_bits]`` are converted to float32. ``phase`` in ``[0, outputs)`` is the
    output where the circular search starts. Returns symbols uint8 and unscaled values float32, both
    ``[columns, outputs]``. Needs ``outputs * rate >= state_bits >= 2 * rate`` and state_bits of at most
    `gpu_viterbi.LARGEST_STATE_BITS`. The search allocates ``columns * outputs * 2**(state_bits - rate)`` bytes for its
    decisions, so pass a large weight in parts of a few hundred columns, enough to occupy the device.
    """
    table = table.float()
    states = search_states(targets, scale, table, rate, phase)
    return (states & ((1 << rate) - 1)).to(torch.uint8), table[states]


def search_states(targets: Tensor, scale: Tensor, table: Tensor, rate: int, phase: int) -> Tensor:
    """The states of `search_columns`, int32 ``[columns, outputs]``."""
    columns, outputs = targets.shape
    state_bits = len(table).bit_length() - 1
    states = torch.empty(columns, outputs, dtype=torch.int32, device=targets.device)
    reach = min(SEAM, outputs)
    back = torch.empty(columns, max(outputs, 2 * reach), len(table) >> rate, dtype=torch.uint8, device=targets.device)
    with torch.cuda.device_of(targets):
        viterbi[(columns,)](
            states,
            back,
            targets.float().contiguous(),
            scale.float().contiguous(),
            table.float().contiguous(),
            outputs,
            phase,
            back.stride(0),
            REACH=reach,
            RATE=rate,
            STATE_BITS=state_bits,
            num_warps=16 if state_bits > 12 else 8,
            **OPTIONS,
        )
    return states


@triton.jit
def _forward(best, back, target, scale, values, outputs, first, steps, RATE: tl.constexpr, STATE_BITS: tl.constexpr):
    """Costs ``[branches, stems]`` of the groups after ``steps`` weights from output ``first`` on, modulo ``outputs``.
    Fills ``back``."""
    branches: tl.constexpr = 1 << RATE
    stems: tl.constexpr = 1 << (STATE_BITS - 2 * RATE)
    group = tl.arange(0, stems)[:, None] * branches + tl.arange(0, branches)[None, :]
    for step in range(steps):
        output = (first + step) % outputs
        error = tl.load(target + output) - tl.load(scale + output) * values
        least, branch = tl.min(best[:, :, None] + error * error, axis=0, return_indices=True)
        tl.store(back + step * (stems * branches) + group, branch.to(tl.uint8))
        best = tl.reshape(least, (branches, stems))
    return best


@triton.jit
def viterbi(
    states,
    back,
    targets,
    scale,
    table,
    outputs,
    phase,
    back_stride,
    REACH: tl.constexpr,
    RATE: tl.constexpr,
    STATE_BITS: tl.constexpr,
):
    """Fills ``states [columns, outputs]`` (int32) with the cheapest circular path, one program per column.

    A state is (branch, stem, symbol) from high bits to low; its group is (stem, symbol), and the next step reads the
    same bits as (branch, stem).
    """
    branches: tl.constexpr = 1 << RATE
    stems: tl.constexpr = 1 << (STATE_BITS - 2 * RATE)
    groups: tl.constexpr = stems * branches
    column = tl.program_id(0).to(tl.int64)
    states += column * outputs
    back += column * back_stride
    targets += column * outputs
    place = tl.arange(0, branches)[:, None] * stems + tl.arange(0, stems)[None, :]
    values = tl.load(table + place[:, :, None] * branches + tl.arange(0, branches)[None, None, :])

    seam = outputs - REACH + phase
    free = tl.zeros((branches, stems), dtype=tl.float32)
    best = _forward(free, back, targets, scale, values, outputs, seam, 2 * REACH, RATE, STATE_BITS)
    group = tl.argmin(tl.reshape(best, (groups,)), axis=0)
    tl.debug_barrier()  # threads read branches that other threads stored
    for step in range(REACH):
        branch = tl.load(back + (2 * REACH - 1 - step) * groups + group).to(tl.int32)
        group = (branch * groups + group) >> RATE
    boundary = group
    tl.debug_barrier()

    fixed = tl.where(place == boundary, 0.0, 1e30)
    _forward(fixed, back, targets, scale, values, outputs, phase, outputs, RATE, STATE_BITS)
    group = boundary
    tl.debug_barrier()
    for step in range(outputs):
        at = outputs - 1 - step
        state = tl.load(back + at * groups + group).to(tl.int32) * groups + group
        tl.store(states + (phase + at) % outputs, state)
        group = state >> RATE
