"""The judge accepts correct images, rejects wrong captions, and names what is wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from vqcompress.shapes.judge import ASPECTS, Rate, judge, judge_for, score
from vqcompress.shapes.render import render
from vqcompress.shapes.scenes import Item, Scene, caption, sample_scenes

SCENES = list(sample_scenes(300, seed=5))
IMAGES = [render(scene) for scene in SCENES]
CAPTIONS = [caption(scene) for scene in SCENES]
STAR_BESIDE_BAR = Scene(
    "gray", (Item("star", "blue", "large", 8, 15), Item("bar", "red", "large", 24, 17)), "relation", "to the left of"
)


UNTOUCHED = ("background", "size", "label")


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return np.rint(ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0))).astype(np.uint8)


def altered(item: int, **changes) -> Scene:
    items = list(STAR_BESIDE_BAR.items)
    items[item] = dataclasses.replace(items[item], **changes)
    return dataclasses.replace(STAR_BESIDE_BAR, items=tuple(items))


def test_true_images_pass() -> None:
    assert score(IMAGES, CAPTIONS)["all"].rate >= 0.98


def test_slightly_blurred_images_pass() -> None:
    assert score([blurred(p, 0.6) for p in IMAGES], CAPTIONS)["all"].rate >= 0.98


def test_wrong_captions_fail() -> None:
    assert score(IMAGES, CAPTIONS[1:] + CAPTIONS[:1])["all"].rate <= 0.05


@pytest.mark.parametrize(
    ("scene", "wrong"),
    [
        (STAR_BESIDE_BAR, set()),
        (dataclasses.replace(STAR_BESIDE_BAR, background="white"), {"background"}),
        (altered(0, color="green"), {"color", "binding", "relation"}),
        (altered(1, shape="ring"), {"shape", "binding", "relation"}),
        (altered(0, x=24, y=7), {"relation"}),
        (dataclasses.replace(STAR_BESIDE_BAR, items=STAR_BESIDE_BAR.items[:1]), {*ASPECTS} - {*UNTOUCHED}),
    ],
)  # fmt: skip
def test_verdicts_name_what_is_wrong(scene: Scene, wrong: set[str]) -> None:
    verdict = judge(render(scene), STAR_BESIDE_BAR)
    assert {aspect for aspect in ASPECTS if not verdict[aspect]} == wrong
    assert verdict["all"] == (not wrong)


def test_swapped_colors_are_a_binding_fault() -> None:
    star, bar = STAR_BESIDE_BAR.items
    swapped = (dataclasses.replace(star, color="red"), dataclasses.replace(bar, color="blue"))
    verdict = judge(render(dataclasses.replace(STAR_BESIDE_BAR, items=swapped)), STAR_BESIDE_BAR)
    assert verdict["shape"]
    assert verdict["color"]
    assert not verdict["binding"]


def test_size_is_judged_where_the_caption_tells_it() -> None:
    small = Scene("black", (Item("ring", "pink", "small", 12, 16),), "single", names_size=True)
    large = dataclasses.replace(small, items=(dataclasses.replace(small.items[0], size="large"),))
    assert judge(render(small), small)["all"]
    assert not judge(render(large), small)["size"]
    assert judge(render(large), dataclasses.replace(small, names_size=False))["all"]


def test_floats_are_read_as_shares_of_255() -> None:
    assert judge(IMAGES[0] / np.float32(255), CAPTIONS[0])["all"]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_image_fails(value: int) -> None:
    verdict = judge(np.full((32, 32, 3), value, np.uint8), STAR_BESIDE_BAR)
    assert not verdict["count"]
    assert not verdict["all"]


def test_noise_fails() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert not judge(noise, STAR_BESIDE_BAR)["all"]


def test_a_rate_has_the_wilson_interval() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, score method: 81 of 263 -> .2553 .3662.
    assert Rate(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert Rate(0, 0).interval == (0.0, 1.0)
    assert Rate(0, 0).rate == 1.0


def test_there_is_no_judge_of_foreign_captions() -> None:
    assert judge_for(CAPTIONS) is judge
    assert judge_for([*CAPTIONS, "a cat"]) is None
