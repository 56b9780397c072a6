"""Memory in a file without a name: tensors of any dtype side by side, nothing left, a full disk told at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from vqcompress.disk import FileMemory

TENSORS = [torch.arange(7.0), torch.full((3, 5), 2.5, dtype=torch.bfloat16), torch.zeros(0), torch.arange(4.0)[::2]]


def nbytes() -> int:
    return sum(tensor.nbytes + FileMemory.ALIGNMENT for tensor in TENSORS)


def test_copies_are_kept_side_by_side_and_no_file_is_seen(tmp_path: Path) -> None:
    memory = FileMemory(nbytes(), tmp_path)
    copies = [memory.copy(tensor) for tensor in TENSORS]
    assert not list(tmp_path.iterdir())
    for copy, tensor in zip(copies, TENSORS, strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)
    copies[0].zero_()
    assert torch.equal(copies[1], TENSORS[1])
    assert all(copy.data_ptr() % FileMemory.ALIGNMENT == 0 for copy in copies if copy.numel())


def test_a_copy_outlives_the_memory(tmp_path: Path) -> None:
    copy = FileMemory(nbytes(), tmp_path).copy(TENSORS[0])
    assert torch.equal(copy, TENSORS[0])


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is taken by writing there")
def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        FileMemory(nbytes(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_system_without_reservations_writes_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert torch.equal(FileMemory(nbytes(), tmp_path).copy(TENSORS[1]), TENSORS[1])
