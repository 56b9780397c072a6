"""`vqcompress.search.viterbi.CpuViterbi` on a GPU. Triton is imported by the first search."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vqcompress.errors import RecipeError
from vqcompress.kernels.kernel import is_interpreted
from vqcompress.kernels.triton.device import device_unsupported_reason

LARGEST_STATE_BITS = 14  # with a larger table, a thread would hold more values than it has registers


class GpuViterbi:
    """Searches columns of ``outputs`` weights on ``device``, in a separate stream. Arguments as for `CpuViterbi`.

    A column occupies one multiprocessor. To use the whole device, search many layers in parallel, each in its own
    thread. Feedback and everything else run on the CPU: one column at a time is copied over and its code copied back.
    """

    def __init__(
        self, outputs: int, state_bits: int, tables: Mapping[int, Tensor], phase: int, device: torch.device
    ) -> None:
        from vqcompress.search.triton_viterbi import search_columns

        if state_bits > LARGEST_STATE_BITS:
            raise RecipeError(
                f"the search on a GPU has states of at most {LARGEST_STATE_BITS} bits, not {state_bits}; "
                "take search='cpu'"
            )
        self._search, self._phase, self._device = search_columns, phase, device
        self._tables = {rate: table.float().to(device) for rate, table in tables.items()}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))  # the tables are still being copied

    def __call__(self, target: Tensor, scale: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Symbols and values of ``target [outputs]``, as `CpuViterbi` returns them; all tensors are on the CPU.

        ``rate`` is a whole number: this search has no half-integer rates.
        """
        with torch.cuda.stream(self._stream):  # type: ignore[arg-type]
            there = target[None].to(self._device), scale.to(self._device)
            symbols, values = self._search(*there, self._tables[int(rate)], int(rate), self._phase)
            return symbols[0].cpu(), values[0].cpu()


def search_device(home: torch.device) -> torch.device:
    """The device that searches a weight on ``home``: the current GPU if ``home`` is the CPU and there is one, else
    ``home``. Raises `RecipeError` if that device does not support the search."""
    device = torch.device("cuda") if home.type == "cpu" and torch.cuda.is_available() else home
    if reason := device_unsupported_reason(device, is_interpreted()):
        raise RecipeError(f"search='gpu' does not work here: {reason}; take search='cpu'")
    return device
