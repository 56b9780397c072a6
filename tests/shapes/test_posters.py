"""Posters: reproducible, readable back, judged by what they show, and laid out for training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from vqcompress.shapes.caption_parser import CaptionError, parse_caption
from vqcompress.shapes.judge import ASPECTS, judge, score
from vqcompress.shapes.posters.detector import detect
from vqcompress.shapes.posters.glyphs import BITMAPS, LETTERS
from vqcompress.shapes.posters.render import render
from vqcompress.shapes.posters.scenes import (
    GAP,
    HEIGHT,
    IN_FRONT,
    KINDS,
    SIZE,
    SOLID,
    TEXTURES,
    WIDTH,
    Item,
    Poster,
    calibration_captions,
    caption,
    held_out_captions,
    monitor_captions,
    sample_posters,
)
from vqcompress.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, split_of
from vqcompress.shapes.train.layout import EMPTY, POSTER_CLASSES, poster_layout
from vqcompress.shapes.train.text_encoders import POSTER_ATTRIBUTES, poster_attributes_of

PROMPTS = Path(__file__).parents[2] / "calib_prompts" / "posters.txt"
POSTERS = list(sample_posters(300, seed=5))
IMAGES = [render(poster) for poster in POSTERS]
CAPTIONS = [caption(poster) for poster in POSTERS]
CIRCLE = Item("circle", "red", "striped", "large", 20, 20)
TRIANGLE = Item("triangle", "blue", "plain", "large", 47, 30)
BESIDE = Poster("gray", (CIRCLE, TRIANGLE), "relation", "to the left of", label="HX")
FRONT = Poster("white", (CIRCLE, dataclasses.replace(TRIANGLE, x=31, y=22)), "overlap", IN_FRONT)


def altered(index: int, **changes: object) -> Poster:
    items = list(BESIDE.items)
    items[index] = dataclasses.replace(items[index], **changes)
    return dataclasses.replace(BESIDE, items=tuple(items))


def test_one_seed_gives_the_same_posters_and_images() -> None:
    again = list(sample_posters(40, seed=5))
    assert again == POSTERS[:40]
    assert all(np.array_equal(render(poster), image) for poster, image in zip(again, IMAGES, strict=False))
    assert {image.shape for image in IMAGES} == {(SIZE, SIZE, 3)}


def test_the_world_is_fully_visited() -> None:
    items = [item for poster in POSTERS for item in poster.items]
    assert {item.shape for item in items} == set(SHAPES)
    assert {item.color for item in items} == set(COLORS)
    assert {item.texture for item in items} == set(TEXTURES)
    assert {poster.background for poster in POSTERS} == set(BACKGROUNDS)
    assert {poster.kind for poster in POSTERS} == set(KINDS)
    assert set("".join(poster.label for poster in POSTERS)) == set(LETTERS)


def test_objects_lie_above_the_label_and_only_overlap_where_the_caption_says_so() -> None:
    for poster in POSTERS:
        for item in poster.items:
            assert min(item.x, item.y) >= item.radius
            assert item.x + item.radius <= WIDTH
            assert item.y + item.radius <= HEIGHT
            assert item.texture == TEXTURES[0] or item.shape in SOLID
        if len(poster.items) == 2:
            first, second = poster.items
            distance = max(abs(first.x - second.x), abs(first.y - second.y))
            apart = distance >= first.radius + second.radius + GAP
            assert apart != (poster.kind == "overlap")
            assert apart or (first.shape in SOLID and first.color != second.color)


def test_captions_say_what_the_poster_holds() -> None:
    for poster, text in zip(POSTERS, CAPTIONS, strict=True):
        content = parse_caption(text)
        assert content.background == poster.background
        assert content.objects == tuple((item.color, item.shape) for item in poster.items)
        assert content.textures == tuple(item.texture for item in poster.items)
        assert content.relation == poster.relation
        assert content.label == poster.label
        assert (content.size is not None) == poster.names_size


@pytest.mark.parametrize(
    "text",
    [
        "a spotted red circle on a gray background",
        "a red circle on a gray background labelled Q Q",
        "a red circle on a gray background labelled H",
        "a red circle behind a blue star on a gray background",
    ],
)
def test_other_sentences_are_refused(text: str) -> None:
    with pytest.raises(CaptionError, match="no caption"):
        parse_caption(text)


def test_caption_sets_are_disjoint_and_never_trained_on() -> None:
    sets = [set(held_out_captions()), set(monitor_captions()), set(calibration_captions())]
    assert [len(s) for s in sets] == [200, 96, 640]
    assert len(set.union(*sets)) == 936
    assert not {caption(poster) for poster in sample_posters(2000, 0, "train")} & set.union(*sets)
    assert {split_of(text) for text in held_out_captions()} == {"held-out"}


def test_the_prompt_file_is_what_its_command_writes() -> None:
    assert PROMPTS.read_text().splitlines() == calibration_captions()


@pytest.mark.parametrize("blur", [0.0, 0.6])
def test_true_images_pass(blur: float) -> None:
    images = [
        np.rint(ndimage.gaussian_filter(image.astype(float), (blur, blur, 0))).astype(np.uint8) for image in IMAGES
    ]
    rates = score(images, CAPTIONS)
    assert rates["all"].rate >= 0.98
    assert rates["label"].rate == 1.0
    assert rates["label"].total == sum(bool(poster.label) for poster in POSTERS)


def test_wrong_captions_fail() -> None:
    assert score(IMAGES, CAPTIONS[1:] + CAPTIONS[:1])["all"].rate <= 0.02


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        (BESIDE, set()),
        (dataclasses.replace(BESIDE, background="white"), {"background"}),
        (dataclasses.replace(BESIDE, label=""), {"label"}),
        (dataclasses.replace(BESIDE, label="HZ"), {"label"}),
        (dataclasses.replace(BESIDE, label="XH"), {"label"}),
        (altered(0, texture="plain"), {"texture", "binding"}),
        (altered(0, texture="checkered"), {"texture", "binding"}),
        (altered(1, texture="dotted"), {"texture", "binding"}),
        (altered(0, color="green"), {"color", "binding", "relation"}),
        (altered(1, shape="star"), {"shape", "binding", "relation"}),
        (altered(0, x=44, y=9), {"relation"}),
        (dataclasses.replace(BESIDE, items=BESIDE.items[:1]), {*ASPECTS} - {"background", "size", "label"}),
    ],
)  # fmt: skip
def test_verdicts_name_what_is_wrong(shown: Poster, wrong: set[str]) -> None:
    verdict = judge(render(shown), BESIDE)
    assert {aspect for aspect in ASPECTS if not verdict[aspect]} == wrong
    assert verdict["all"] == (not wrong)


def test_swapped_textures_are_a_binding_fault() -> None:
    circle, triangle = BESIDE.items
    swapped = dataclasses.replace(circle, texture="plain"), dataclasses.replace(triangle, texture="striped")
    verdict = judge(render(dataclasses.replace(BESIDE, items=swapped)), BESIDE)
    assert verdict["texture"]
    assert not verdict["binding"]


def test_the_object_in_front_is_the_one_that_is_on_top() -> None:
    assert judge(render(FRONT), FRONT)["all"]
    behind = dataclasses.replace(FRONT, items=FRONT.items[::-1])
    assert {aspect for aspect, passed in judge(render(behind), FRONT).items() if not passed} == {"relation", "all"}
    apart = dataclasses.replace(FRONT, items=BESIDE.items)
    assert not judge(render(apart), FRONT)["relation"]


def test_an_object_that_is_partly_covered_keeps_its_shape_and_place() -> None:
    behind = next(found for found in detect(render(FRONT)).objects if found.color == "blue")
    assert behind.shape == "triangle"
    assert (behind.x, behind.y) == (pytest.approx(31, abs=1), pytest.approx(22, abs=1))
    assert behind.on_top < 0.3


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_image_fails(value: int) -> None:
    verdict = judge(np.full((SIZE, SIZE, 3), value, np.uint8), BESIDE)
    assert not verdict["count"]
    assert not verdict["label"]
    assert not verdict["all"]


def test_noise_fails() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    assert not judge(noise, BESIDE)["all"]


def test_letters_differ_in_many_cells() -> None:
    for i, a in enumerate(LETTERS):
        for b in LETTERS[:i]:
            assert (BITMAPS[a] != BITMAPS[b]).sum() >= 5


def test_places_name_what_lies_there() -> None:
    color, shape, texture, letter = poster_layout(BESIDE)
    assert color[2, 2] == 1 + list(COLORS).index("red")
    assert shape[2, 2] == 1 + SHAPES.index("circle")
    assert texture[2, 2] == 1 + TEXTURES.index("striped")
    assert texture[3, 5] == 1 + TEXTURES.index("plain")
    assert letter[7, 6:].tolist() == [1 + LETTERS.index(each) for each in BESIDE.label]
    assert (letter[:7] == EMPTY).all()
    overlap = poster_layout(FRONT)[0]
    assert overlap[2, 3] == 1 + list(COLORS).index("red")  # both objects lie there, the circle in front
    assert all(plane.max() < classes for plane, classes in zip(poster_layout(BESIDE), POSTER_CLASSES, strict=True))


def test_attributes_go_by_position() -> None:
    mirrored = dataclasses.replace(BESIDE, items=BESIDE.items[::-1], relation="to the right of")
    names = list(POSTER_ATTRIBUTES)
    here, there = (dict(zip(names, poster_attributes_of(caption(p)), strict=True)) for p in (BESIDE, mirrored))
    assert here == there
    assert here["texture"] == TEXTURES.index("striped")
    assert here["second texture"] == TEXTURES.index("plain")
    assert (here["letter"], here["second letter"]) == (1 + LETTERS.index("H"), 1 + LETTERS.index("X"))
    front = dict(zip(names, poster_attributes_of(caption(FRONT)), strict=True))
    assert front["axis"] == 3
    assert front["letter"] == front["second letter"] == 0
    for text in CAPTIONS:
        assert all(
            0 <= value < size
            for value, size in zip(poster_attributes_of(text), POSTER_ATTRIBUTES.values(), strict=True)
        )
