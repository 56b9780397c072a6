"""Windows of a video: inverses, what a shifted window may see, strided means."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch
from torch import Tensor

from vqcompress.errors import ArchitectureError
from vqcompress.models.windows import Windows, strided_means

CASES = [Windows((4, 8, 12), (2, 4, 4)), Windows((1, 4, 8), (1, 4, 4)), Windows((3, 6, 6), (3, 2, 3))]


def numbered(windows: Windows, batch: int = 2) -> Tensor:
    frames, rows, columns = windows.size
    return torch.arange(batch * frames * rows * columns).reshape(batch, *windows.size, 1)


@pytest.mark.parametrize("windows", CASES)
def test_join_undoes_split(windows: Windows) -> None:
    video = numbered(windows)
    rows = windows.split(video)
    assert rows.shape == (2 * windows.count, video[0].numel() // windows.count, 1)
    assert windows.join(rows).equal(video)
    assert windows.unshifted(windows.shifted(rows)).equal(rows)


def test_split_takes_boxes() -> None:
    windows = Windows((2, 4, 4), (2, 2, 2))
    video = numbered(windows, 1)
    assert windows.split(video)[1, :, 0].equal(video[0, :, :2, 2:].flatten())


@pytest.mark.parametrize("windows", CASES)
def test_shifted_windows_see_only_what_the_shift_left_in_place(windows: Windows) -> None:
    def grid(size: tuple[int, int, int]) -> Tensor:
        return torch.stack(torch.meshgrid(*(torch.arange(length) for length in size), indexing="ij"), dim=-1)

    places = windows.shifted(windows.split(grid(windows.size)[None]))
    inside = grid(windows.window).flatten(0, 2)
    kept = (places[:, :, None] - places[:, None]) == (inside[:, None] - inside[None])
    assert windows.shift_mask(torch.device("cpu")).equal(kept.all(-1))


def test_a_window_without_shift_sees_itself() -> None:
    assert Windows((2, 3, 3), (1, 1, 1)).shift_mask(torch.device("cpu")).all()


@pytest.mark.parametrize(
    ("window", "strides"),
    [((1, 4, 4), (1, 2, 2)), ((2, 4, 4), (1, 2, 4)), ((3, 2, 6), (1, 1, 3)), ((2, 4, 4), (1, 1, 1))],
)
def test_strided_means(window: tuple[int, int, int], strides: tuple[int, int, int]) -> None:
    """Proxy (x, y, z) is the mean of the tokens whose frame, row and column have these remainders."""
    rows = torch.randn(2, prod(window), 5, generator=torch.Generator().manual_seed(0))
    video = rows.reshape(2, *window, 5)
    for number, remainders in enumerate(product(*(range(stride) for stride in strides))):
        chosen = [
            video[:, frame, row, column]
            for frame, row, column in product(*(range(length) for length in window))
            if (frame % strides[0], row % strides[1], column % strides[2]) == remainders
        ]
        torch.testing.assert_close(strided_means(rows, window, strides)[:, number], torch.stack(chosen).mean(0))


def test_wrong_size_is_named() -> None:
    with pytest.raises(ArchitectureError, match=r"1×6×8.*windows of 1×4×4"):
        Windows((1, 6, 8), (1, 4, 4))
