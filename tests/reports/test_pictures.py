import numpy as np
import pytest
import torch
from PIL import Image

from vqcompress.errors import VQCompressError
from vqcompress.reports import image_grid, tile
from vqcompress.reports.pictures import CAPTION_WIDTH, CELL, GAP, MAX_SIDE, decode, to_png


def flat(red: float, side: int = 32) -> bytes:
    image = torch.zeros(3, side, side)
    image[0] = red
    return to_png(image)


def test_png_keeps_the_pixels_and_clips():
    image = torch.tensor([-1.0, 0.0, 0.5, 2.0]).reshape(1, 2, 2).repeat(3, 1, 1)
    assert np.asarray(decode(to_png(image)))[..., 0].tolist() == [[0, 0], [128, 255]]


def test_large_images_are_scaled_down():
    assert decode(to_png(torch.zeros(3, 512, 1024))).size == (MAX_SIDE, MAX_SIDE // 2)


def test_columns_are_labels_and_rows_are_prompts():
    grid = np.asarray(image_grid({"original": [flat(1.0), flat(0.2)], "x": [flat(0.6), flat(0.4)]}, ["p", "q"]))
    bottom, right = grid.shape[0] - GAP - CELL // 2, CAPTION_WIDTH + CELL + GAP + CELL // 2
    assert grid[bottom, CAPTION_WIDTH + CELL // 2].tolist() == [51, 0, 0]
    assert grid[bottom, right].tolist() == [102, 0, 0]
    assert grid[bottom - CELL - GAP, right].tolist() == [153, 0, 0]


def test_small_images_are_enlarged_without_new_colours():
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2
    grid = np.asarray(image_grid({"original": [to_png(checks.float().expand(3, 32, 32))]}, ["p"]))
    cell = grid[-GAP - CELL : -GAP, CAPTION_WIDTH : CAPTION_WIDTH + CELL]
    assert set(np.unique(cell)) == {0, 255}
    assert (cell[:4, :4] == cell[0, 0]).all()


@pytest.mark.parametrize("pictures", [{"a": [b""], "b": []}, {"a": [], "b": []}, {"a": [b""] * 3}])
def test_uneven_grids_are_refused(pictures):
    with pytest.raises(VQCompressError, match="one image per prompt"):
        image_grid(pictures, ["p", "q"])


def test_long_prompts_and_labels_stay_on_the_sheet():
    grid = image_grid({"a label of many words that wraps": [flat(0.5)]}, ["word " * 80])
    assert grid.width == CAPTION_WIDTH + CELL + GAP


def test_tile_lays_out_row_by_row():
    pictures = [Image.new("RGB", (32, 32), (value, 0, 0)) for value in (10, 20, 30)]
    sheet = np.asarray(tile(pictures, columns=2))
    step, middle = CELL + GAP, GAP + CELL // 2
    assert sheet.shape[:2] == (2 * step + GAP, 2 * step + GAP)
    places = [(middle, middle), (middle, middle + step), (middle + step, middle)]
    assert [int(sheet[place][0]) for place in places] == [10, 20, 30]
    with pytest.raises(VQCompressError, match="no pictures"):
        tile([], columns=2)
