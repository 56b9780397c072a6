"""What a run tells on stderr, in a terminal or in a log."""

from __future__ import annotations

import pytest

from vqcompress.cli.progress import StageProgress

DETAIL = "down_blocks.0.resnets.0.conv1: 3.00 bits, error 0.00[1], 2.3 s"


def progress_text(capsys: pytest.CaptureFixture[str], *, quiet: bool) -> str:
    with StageProgress(quiet=quiet) as progress:
        progress("calibrate unet", 1, 2, "pass 1 of 1")
        progress("encode unet", 1, 771, DETAIL)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_every_encoded_layer_leaves_a_line_with_its_bits_error_and_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress_text(capsys, quiet=False).splitlines()
    assert f"1/771 {DETAIL}" in lines
    assert not any(line.startswith("1/2 pass") for line in lines)


def test_quiet_runs_tell_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert progress_text(capsys, quiet=True) == ""
