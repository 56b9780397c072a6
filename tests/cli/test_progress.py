"""What a run tells on stderr, in a terminal or in a log."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from vqcompress.cli.progress import StageProgress, _BlockSummary, _Log, _Terminal, block_of
from vqcompress.progress import EncodedLayer


def encoded(layer: str, bits: float, error: float, seconds: float = 2.0) -> EncodedLayer:
    return EncodedLayer(layer, f"{bits:.2f} bits, error {error:.2g}, {seconds:.1f} s", bits, error, seconds)


LAYERS = (
    encoded("blocks.0.attn.to_q", 3.0, 0.01),
    encoded("blocks.0.attn.to_k", 2.5, 0.02),
    encoded("blocks.1.ff", 3.25, 0.03),
    EncodedLayer("blocks.1.odd", "stays dense: too small"),
)


def progress_lines(capsys: pytest.CaptureFixture[str], *, quiet: bool = False, layers: bool = False) -> list[str]:
    with StageProgress(quiet=quiet, layers=layers) as progress:
        progress("calibrate unet", 1, 2, "pass 1 of 1")
        for index, layer in enumerate(LAYERS):
            progress("encode unet", index + 1, len(LAYERS), layer)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_every_block_leaves_a_line_with_its_layers_bits_worst_error_and_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = progress_lines(capsys)
    timeless = [re.sub(r" \d+\.\d s,", "", line) for line in lines]
    assert "  blocks.0: 2 layers, 2.50-3.00 bits, error up to 0.02, worst attn.to_k" in timeless
    assert "  blocks.1: 1 layer, 3.25 bits, error up to 0.03, worst ff" in timeless
    assert "blocks.1.odd: stays dense: too small" in lines


def test_a_block_takes_the_time_of_the_clock_whatever_its_layers_took_side_by_side() -> None:
    """Layers of 5 seconds, two at a time, finish at 5, 5, 10 and 10 seconds: the second block took 5."""
    told: list[str] = []
    times = iter((5.0, 5.0, 10.0, 10.0))
    summary = _BlockSummary(told.append, every_layer=False, clock=lambda: next(times))
    for block in (0, 1):
        for name in ("up", "down"):
            summary.add(encoded(f"blocks.{block}.{name}", 2.999, 0.01, seconds=5.0))
    summary.finish()
    assert told == [
        "  blocks.0: 2 layers, 3.00 bits, error up to 0.01, 5.0 s, worst up",
        "  blocks.1: 2 layers, 3.00 bits, error up to 0.01, 5.0 s, worst up",
    ]


def test_every_layer_leaves_a_line_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress_lines(capsys, layers=True)
    assert [line for line in lines if line in LAYERS] == list(LAYERS)
    assert not any("layers," in line for line in lines)


def test_quiet_runs_tell_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert progress_lines(capsys, quiet=True) == []


def test_a_log_tells_share_and_remaining_time_from_the_first_step_on() -> None:
    """Steps of ten seconds: a line for the first, one for each tenth or half minute, one for the last."""
    text, clock = StringIO(), iter(range(0, 10_000, 10))
    log = _Log(Console(file=text), clock=lambda: next(clock))
    for done in range(1, 41):
        log.step("encode", done, 40, f"layer {done}")
    lines = text.getvalue().splitlines()
    assert lines[0] == "encode: 1/40 (2 %)  layer 1"
    assert lines[1] == "encode: 4/40 (10 %)  0:30 elapsed, 6:00 left  layer 4"
    assert lines[-1] == "encode: 40/40 (100 %)  6:30 elapsed  layer 40"
    assert len(lines) == 14


def test_a_stage_that_comes_again_is_timed_anew() -> None:
    text, clock = StringIO(), iter((0, 10, 100, 110))
    log = _Log(Console(file=text), clock=lambda: next(clock))
    for _ in range(2):
        log.step("record", 1, 2, "")
        log.step("record", 2, 2, "")
    assert text.getvalue().splitlines() == 2 * ["record: 1/2 (50 %)", "record: 2/2 (100 %)  0:10 elapsed"]


def test_opening_is_told_when_work_begins() -> None:
    """A mistake that is found when the model is open stays one line."""
    text, clock = StringIO(), iter((0, 12, 13))
    log = _Log(Console(file=text), clock=lambda: next(clock))
    log.step("open", 0, 1, "sdxl")
    log.step("open", 1, 1, "sdxl")
    assert text.getvalue() == ""
    log.step("calibrate", 0, 4, "1 pass")
    assert text.getvalue().splitlines() == ["open: 1/1 (100 %)  0:12 elapsed  sdxl", "calibrate: 0/4 (0 %)  1 pass"]


@pytest.fixture
def terminals() -> dict[int, str]:
    drawn = {}
    for width in (80, 120):
        text = StringIO()
        shown = _Terminal(Console(file=text, force_terminal=True, width=width, color_system=None))
        shown.start()
        shown.step("calibrate transformer", 31, 771, "pass 1 of 3: everything up to transformer_blocks.17.ff.net.2")
        shown.line(
            "  transformer_blocks.17: 12 layers, 2.50-3.00 bits, error up to 0.02, 14.0 s, worst attn.to_add_out"
        )
        shown.step("allocate transformer", 3, 3, "allocated: images 28.4 dB, error 0.0036")
        shown.stop()
        drawn[width] = text.getvalue()
    return drawn


def test_a_line_of_progress_fits_the_terminal(terminals: dict[int, str]) -> None:
    for width, text in terminals.items():
        lines = [re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", line) for line in text.splitlines()]
        assert any("31/771" in line for line in lines)
        assert max(map(len, lines)) <= width
    assert "attn.to_add_out" in terminals[120]
    assert "…" in terminals[80]
    assert "error up to 0.02, 14.0 s" in terminals[80]
    assert "allocate transformer: allocated: images 28.4 dB, error 0.0036" in terminals[80]


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("transformer_blocks.3.attn.to_q", "transformer_blocks.3"),
        ("down_blocks.1.resnets.0.conv1", "down_blocks.1"),
        ("proj_out", "proj_out"),
        ("layers.11", "layers.11"),
        ("time_embedding.linear_1", "time_embedding.linear_1"),
    ],
)
def test_a_block_is_the_name_up_to_its_first_number(layer: str, block: str) -> None:
    assert block_of(layer) == block
