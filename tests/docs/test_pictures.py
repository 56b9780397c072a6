"""The documentation's pictures show what their script computes today."""

from __future__ import annotations

import json
import runpy
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.docs.blocks import ROOT

SCRIPT = runpy.run_path(str(ROOT / "docs" / "draw_pictures.py"))
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"


def shown(name: str, folder: Path = ROOT / "docs" / "pictures") -> Any:
    """The numbers that a picture carries."""
    return json.loads(str(next(ET.parse(folder / f"{name}.svg").iter(DESCRIPTION)).text))


def close(left: Any, right: Any) -> bool:
    """Equal names and lengths, numbers within 5 %, or within a thousandth."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(close, left, right))
    return left == pytest.approx(right, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("name", [name for name in SCRIPT["PICTURES"] if name != "distortion"])
def test_a_picture_shows_what_is_computed(name: str) -> None:
    compute = SCRIPT["PICTURES"][name][0]
    assert close(shown(name), compute()), "run `python docs/draw_pictures.py`"


def test_the_curves_of_the_methods_stand_above_the_bound_in_their_order() -> None:
    for curves in shown("distortion").values():
        bound = dict(map(tuple, curves["bound"]))
        for method in ("kmeans", "additive", "trellis"):
            assert all(error > bound[round(bits)] for bits, error in curves[method])
        assert [error for _, error in curves["trellis"]] < [error for _, error in curves["additive"]]


@pytest.mark.parametrize("moment", ["white inputs", "correlated inputs"])
def test_a_point_of_the_curves(moment: str) -> None:
    """The trellis at 2 bits, computed again; the other points take a minute."""
    torch, width = SCRIPT["torch"], SCRIPT["WIDTH"]
    distance = (torch.arange(width)[:, None] - torch.arange(width)[None]).abs()
    second = torch.eye(width) if moment == "white inputs" else (SCRIPT["CORRELATION"] ** distance).float()
    weight = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    packed = SCRIPT["quantize_weight"](weight, second, method="trellis", bits=2)
    error = weight - packed.decode()
    relative = float(torch.trace(error @ second @ error.T) / torch.trace(weight @ second @ weight.T))
    assert relative == pytest.approx(shown("distortion")[moment]["trellis"][0][1], rel=0.05)


def test_every_picture_of_the_documents_is_there_and_used() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    drawn = {path.stem for path in (ROOT / "docs" / "pictures").glob("*.svg")}
    assert drawn == SCRIPT["PICTURES"].keys()
    assert all(f"pictures/{name}.svg" in texts for name in drawn)


def test_the_same_numbers_make_the_same_bytes(tmp_path: Path) -> None:
    first = SCRIPT["draw"]("peers", tmp_path).read_bytes()
    assert SCRIPT["draw"]("peers", tmp_path).read_bytes() == first
    assert shown("peers", tmp_path) == shown("peers")


def test_every_format_lies_within_the_axes_and_no_name_covers_another() -> None:
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    SCRIPT["draw_peers"](SCRIPT["peers"](), figure)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    for line in axes.lines:
        inside = axes.get_window_extent().padded(1)
        assert all(inside.contains(x, y) for x, y in axes.transData.transform(line.get_xydata()))
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert len(boxes) == len(SCRIPT["peers"]())
    overlapping = [(a, b) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    assert overlapping == []
