"""Cut a video of tokens into boxes of frames × rows × columns. An image is a video of one frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from vqcompress.errors import ArchitectureError

Box = tuple[int, int, int]


def _regions(length: int, window: int, shift: int) -> list[slice]:
    """Parts of a cyclically shifted axis that were neighbours before the shift."""
    if shift == 0:
        return [slice(0, length)]
    return [slice(0, length - window), slice(length - window, length - shift), slice(length - shift, length)]


@dataclass(frozen=True)
class Windows:
    """A video of ``size`` tokens (frames, rows, columns) cut into windows of ``window`` tokens.

    Tokens in windows are ``[batch·count, volume, width]``. The windows of a sample follow one another. Inside a window
    the tokens are in order of frame, then row, then column.
    """

    size: Box
    window: Box

    def __post_init__(self) -> None:
        if any(length % window for length, window in zip(self.size, self.window, strict=True)):
            raise ArchitectureError(
                f"A grid of {'×'.join(map(str, self.size))} tokens (frames, rows, columns) cannot be cut into windows "
                f"of {'×'.join(map(str, self.window))}; choose frames, height and width that are multiples of it "
                "(times the patch size)."
            )

    @property
    def counts(self) -> Box:
        frames, rows, columns = (length // window for length, window in zip(self.size, self.window, strict=True))
        return frames, rows, columns

    @property
    def count(self) -> int:
        return prod(self.counts)

    @property
    def shift(self) -> Box:
        """Half a window along each axis."""
        frames, rows, columns = (window // 2 for window in self.window)
        return frames, rows, columns

    def split(self, video: Tensor) -> Tensor:
        """``[batch, frames, rows, columns, width]`` -> ``[batch·count, volume, width]``."""
        for axis, window in zip((1, 3, 5), self.window, strict=True):
            video = video.unflatten(axis, (-1, window))
        return video.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)

    def join(self, windowed: Tensor) -> Tensor:
        """The inverse of split."""
        boxes = windowed.unflatten(1, self.window).unflatten(0, (-1, *self.counts))
        return boxes.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)

    def shifted(self, windowed: Tensor) -> Tensor:
        """Cut the same video again, with all windows shifted cyclically by ``shift``."""
        return self.split(self.join(windowed).roll([-step for step in self.shift], (1, 2, 3)))

    def unshifted(self, windowed: Tensor) -> Tensor:
        """The inverse of shifted."""
        return self.split(self.join(windowed).roll(self.shift, (1, 2, 3)))

    def shift_mask(self, device: torch.device) -> Tensor:
        """``[count, volume, volume]`` bool: True for pairs of tokens that were neighbours before the shift."""
        regions = torch.zeros(self.size, dtype=torch.int64, device=device)
        axes = (_regions(*axis) for axis in zip(self.size, self.window, self.shift, strict=True))
        for number, region in enumerate(product(*axes)):
            regions[region] = number
        regions = self.split(regions[None, ..., None]).squeeze(-1)
        return regions[:, :, None] == regions[:, None, :]


def strided_means(windowed: Tensor, window: Box, strides: Box) -> Tensor:
    """``[n, volume, width]`` -> ``[n, prod(strides), width]``: means over every ``strides``-th token along each axis.

    Mean (x, y, z) is over the tokens of a window whose frame, row and column leave the remainders x, y and z when
    divided by the strides. The strides divide the window.
    """
    boxes = windowed.unflatten(1, window)
    for axis, stride in zip((1, 3, 5), strides, strict=True):
        boxes = boxes.unflatten(axis, (-1, stride))
    return boxes.mean(dim=(1, 3, 5)).flatten(1, 3)
