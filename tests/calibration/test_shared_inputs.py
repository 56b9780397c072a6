import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from vqcompress.calibration.shared_inputs import shared_inputs
from vqcompress.moments.cross_validation import LARGEST


class Toy(nn.Module):
    """Layers that read the same tensor always, sometimes, as a copy, after a change, or never."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("always", "too", "sometimes", "copied", "changed", "never", "named"):
            setattr(self, name, nn.Linear(8, 8))
        self.conv, self.same, self.wide = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 8, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> None:
        image = x.reshape(2, 8, 5, 5)
        self.conv(image), self.same(image), self.wide(image)
        x = x.reshape(-1, 8)
        self.always(x), self.too(x), self.named(input=x)
        self.sometimes(x if self.calls else x + 1)
        self.copied(x.clone())
        x += 1
        self.changed(x)
        self.calls += 1


NAMES = ["always", "too", "sometimes", "copied", "changed", "never", "named", "conv", "same", "wide"]


def test_only_the_very_same_input_is_shared() -> None:
    toy = Toy()

    def run() -> None:
        with torch.no_grad():
            toy(torch.randn(2, 200))
            toy(torch.randn(2, 200))

    groups = shared_inputs(toy, NAMES, run)
    assert [group.layers for group in groups] == [
        ("always", "too", "named"), ("sometimes",), ("copied",), ("changed",), ("never",), ("conv", "same"), ("wide",),
    ]  # fmt: skip
    assert [group.columns for group in groups] == [8, 8, 8, 8, 8, 8, 72]
    assert [group.ran for group in groups] == [True, True, True, True, False, True, True]


def test_inputs_are_not_kept_alive() -> None:
    toy = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    references: list[weakref.ref] = []

    def run() -> None:
        with torch.no_grad():
            for layer in toy:
                x = torch.randn(3, 4)
                references.append(weakref.ref(x))
                layer(x)
                del x
                gc.collect()
                assert references[-1]() is None

    assert len(shared_inputs(toy, ["0", "1"], run)) == 2


class Mixture(nn.Module):
    """One layer is given a vector an image, one tokens, and an expert as many of these as the router says."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation, self.tokens, self.expert = (nn.Linear(8, 8) for _ in range(3))
        self.calls = 0

    def forward(self, latents: Tensor) -> None:
        self.modulation(latents[:, 0])
        self.tokens(latents)
        if self.calls == 0:
            self.expert(latents[0, :2])
        self.calls += 1


def test_folds_are_for_one_vector_an_image() -> None:
    mixture = Mixture()

    def run() -> None:
        for _ in range(2):
            mixture(torch.randn(2, 5, 8))

    groups = shared_inputs(mixture, ["modulation", "tokens", "expert"], run, 10, folds=3)
    assert [group.folds for group in groups] == [3, 1, 1]
    assert [group.nbytes for group in groups] == [3 * 4 * 8 * 8, 4 * 8 * 8, 4 * 8 * 8]
    assert [group.folds for group in shared_inputs(mixture, ["modulation"], run, 10)] == [1]


class Modulated(nn.Module):
    """Two blocks make the same vector of what they are given, a third one another, and two are given nothing."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("first", "second", "other", "silent", "mute"):
            setattr(self, name, nn.Linear(8, 8))

    def forward(self, latents: Tensor) -> None:
        vector = latents[:, 0]
        self.first(nn.functional.silu(vector)), self.second(nn.functional.silu(vector))
        self.other(nn.functional.relu(vector))
        self.silent(torch.zeros(2, 8)), self.mute(torch.zeros(2, 8))


def test_wide_inputs_are_recorded_once() -> None:
    wide = nn.Linear(LARGEST + 1, 1)
    component = nn.Sequential(wide)
    groups = shared_inputs(component, ["0"], lambda: component(torch.randn(2, LARGEST + 1)), 1, folds=4)
    assert [group.folds for group in groups] == [1]


def test_blocks_that_make_the_same_vector_share_it() -> None:
    names = ["first", "second", "other", "silent", "mute"]
    modulated = Modulated()
    groups = shared_inputs(modulated, names, lambda: modulated(torch.randn(2, 5, 8)))
    assert [group.layers for group in groups] == [("first", "second"), ("other",), ("silent",), ("mute",)]


class Captioned(nn.Module):
    """One layer is given the text, one what depends on the latents too."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.mixed = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, latents: Tensor, text: Tensor) -> None:
        self.text(text)
        self.mixed(text + latents.mean())


@pytest.mark.parametrize("apart", [False, True], ids=["halves of guidance together", "one call after the other"])
def test_text_is_recorded_in_folds_too(apart: bool) -> None:
    captioned, prompt, empty = Captioned(), torch.randn(1, 7, 8), torch.randn(1, 7, 8)

    def run() -> None:
        for _ in range(2):
            for text in (prompt, empty) if apart else (torch.cat([empty, prompt]),):
                captioned(torch.randn(len(text), 5, 8), text)

    assert [group.folds for group in shared_inputs(captioned, ["text", "mixed"], run, 10, folds=2)] == [2, 1]


def test_a_dead_column_does_not_make_latents_text() -> None:
    captioned = Captioned()

    def run() -> None:
        for _ in range(2):
            tokens = torch.randn(2, 4096, 8)
            tokens[..., 0] = 0
            captioned(torch.randn(2, 5, 8), tokens)

    assert [group.folds for group in shared_inputs(captioned, ["text", "mixed"], run, 10, folds=2)] == [1, 1]


def test_one_step_does_not_tell_text_from_latents() -> None:
    captioned = Captioned()
    groups = shared_inputs(
        captioned, ["text", "mixed"], lambda: captioned(torch.randn(2, 5, 8), torch.randn(2, 7, 8)), 10, folds=2
    )
    assert [group.folds for group in groups] == [1, 1]
