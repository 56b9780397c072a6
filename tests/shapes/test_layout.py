"""Layouts of scenes, and the head that is trained with a block and not saved."""

from __future__ import annotations

import numpy as np
import torch

from vqcompress.shapes.scenes import COLORS, SHAPES, Item, Scene, sample_scenes
from vqcompress.shapes.train.layout import CLASSES, EMPTY, LayoutHead, layout
from vqcompress.shapes.train.schedule import Schedule
from vqcompress.shapes.train.trainer import Trainer


def test_places_name_the_object_that_lies_there() -> None:
    items = Item("square", "red", "large", 8.0, 8.0), Item("ring", "pink", "small", 24.0, 24.0)
    places = layout(Scene("white", items, "pair"))
    square = 1 + list(COLORS).index("red") * len(SHAPES) + SHAPES.index("square")
    ring = 1 + list(COLORS).index("pink") * len(SHAPES) + SHAPES.index("ring")
    assert set(np.unique(places).tolist()) == {EMPTY, square, ring}
    assert places[1, 1] == places[2, 2] == square
    assert places[5, 5] == ring
    assert (places[:4, 4:] == EMPTY).all()
    assert (places[4:, :4] == EMPTY).all()


def test_every_scene_has_as_many_names_as_it_has_different_objects() -> None:
    for scene in sample_scenes(50, 3):
        names = {(item.color, item.shape) for item in scene.items}
        found = set(np.unique(layout(scene)).tolist()) - {EMPTY}
        assert len(found) == len(names)
        assert max(found) < CLASSES


class Colouring(Trainer):
    """A block with a layout head, and a loss of its own that has nothing to do with the layout."""

    def loss(self, generator: torch.Generator) -> torch.Tensor:
        layouts = torch.randint(2, (4, 8, 8), generator=generator)
        out = self.model(torch.nn.functional.one_hot(layouts.flatten(1), 6).float())
        return out.square().mean() + self.head.loss(layouts)


def fresh_run() -> Colouring:
    torch.manual_seed(1)
    block = torch.nn.Linear(6, 6)
    return Colouring(block, Schedule(peak=0.03, warmup=2, steps=60), 0, LayoutHead(block, 6))


def losses_of(training: Colouring) -> list[float]:
    losses: list[float] = []
    training.run(lambda step, loss: losses.append(loss), 10, lambda: None)
    return losses


def test_a_head_learns_and_is_not_part_of_the_model() -> None:
    training = fresh_run()
    losses = losses_of(training)
    assert losses[-1] < 0.2 * losses[0]
    assert training.averaged(torch.nn.Linear(6, 6)).state_dict().keys() == {"weight", "bias"}


def test_a_head_resumes_where_it_stopped(tmp_path) -> None:
    whole, first, second = fresh_run(), fresh_run(), fresh_run()
    losses_of(whole)
    for _ in range(30):
        first.train_step()
    first.save(tmp_path / "state.pt")
    second.restore(tmp_path / "state.pt")
    losses_of(second)
    for part, other in zip(whole.head.parameters(), second.head.parameters(), strict=True):
        assert torch.equal(part, other)


def test_nothing_is_kept_of_a_model_in_use() -> None:
    block = torch.nn.Linear(6, 6)
    head = LayoutHead(block, 6).eval()
    block(torch.zeros(1, 64, 6))
    assert head._tokens is None
