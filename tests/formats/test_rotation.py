"""The output rotation against the matrix that docs/FORMAT.md describes."""

from __future__ import annotations

import pytest
import torch

from vqcompress.formats.rotation import output_signs, rotate, rotation_block, unrotate


def matrix(rows: int, block: int) -> torch.Tensor:
    """``S H / sqrt(b)``, float64, entry by entry."""
    found = torch.zeros(rows, rows, dtype=torch.float64)
    for i in range(rows):
        m = i * 2654435769 % 2**32
        m = (m ^ m >> 15) * 2246822519 % 2**32
        for j in range(i // block * block, i // block * block + block):
            parity = ((i % block) & (j % block)).bit_count() % 2
            found[i, j] = (-1.0) ** (parity + (m >> 31)) / block**0.5
    return found


@pytest.mark.parametrize(("rows", "block"), [(1, 1), (8, 8), (24, 8), (64, 32), (48, 16), (96, 2)])
def test_unrotate_is_the_documented_matrix_and_rotate_its_inverse(rows: int, block: int) -> None:
    values = torch.randn(3, rows, generator=torch.Generator().manual_seed(0))
    expected = values.double() @ matrix(rows, block).t()
    assert torch.allclose(unrotate(values, block).double(), expected, atol=1e-6)
    assert torch.allclose(rotate(unrotate(values, block), block), values, atol=1e-6)


def test_no_block_is_no_rotation() -> None:
    values = torch.randn(2, 5)
    assert rotate(values, 0) is values
    assert unrotate(values, 0) is values


@pytest.mark.parametrize(("rows", "block"), [(1, 1), (640, 128), (1280, 256), (320, 64), (77, 1), (4096, 256)])
def test_the_block_divides_the_rows(rows: int, block: int) -> None:
    assert rotation_block(rows) == block


def test_signs_are_balanced_and_not_alike_in_all_blocks() -> None:
    signs = output_signs(4096)
    assert signs.mean().abs() < 0.05
    blocks = signs.view(16, 256)
    assert (blocks @ blocks.t() / 256 - torch.eye(16)).abs().max() < 0.3
