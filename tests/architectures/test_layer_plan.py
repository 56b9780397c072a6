import pytest
import torch
from torch import nn

from vqcompress.architectures.layer_plan import plan_layers
from vqcompress.errors import RecipeError


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.inner = nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Linear(64, 64))
        self.grouped = nn.Conv2d(64, 64, 3, groups=2)
        self.up = nn.ConvTranspose2d(64, 64, 2)
        self.table = nn.Embedding(100, 64)
        self.tiny = nn.Linear(31, 33)
        self.head = nn.Linear(64, 100)
        self.head.weight = self.table.weight
        self.norm = nn.LayerNorm(64)
        self.shift = nn.Parameter(nn.Linear(6, 64).weight.detach())


def reasons(ignore: dict[str, str] | None = None) -> dict[str, str | None]:
    return {plan.name: plan.reason for plan in plan_layers(Toy(), ignore or {})}


def test_every_matrix_is_listed_once_and_only_plain_layers_are_quantized() -> None:
    plans = plan_layers(Toy(), {})
    assert [p.name for p in plans if p.reason is None] == ["first", "inner.0", "inner.2"]
    matrices = {id(p) for p in Toy().parameters() if p.ndim > 1}
    assert len(plans) == len(matrices) + 1  # the tied weight has two names


def test_reasons_say_why() -> None:
    found = reasons()
    assert "2 groups" in found["grouped"]
    assert "ConvTranspose2d" in found["up"]
    assert "1023 weights" in found["tiny"]
    assert "shares its weight" in found["head"]
    assert "Embedding" in found["table"]
    assert "bare parameter" in found["shift"]
    assert "norm" not in found


def test_first_matching_rule_counts() -> None:
    found = reasons({r"^first$": "because", r"first|inner": "later"})
    assert found["first"] == "because"
    assert found["inner.0"] == "later"


def test_shapes_are_those_of_the_weights() -> None:
    assert {p.name: p.shape for p in plan_layers(Toy(), {})}["inner.0"] == (64, 64, 3, 3)


def test_stacked_experts_of_an_unknown_class_stay_dense_and_say_so() -> None:
    toy = Toy()
    toy.modulation, toy.experts = nn.Parameter(torch.ones(3, 6, 32)), nn.Parameter(torch.ones(4, 32, 48))
    found = {plan.name: plan.reason for plan in plan_layers(toy, {})}
    assert found["modulation"] == "a bare parameter, not the weight of a Linear or Conv2d"
    assert found["experts"] == "a bare parameter of 4 stacked experts, in a class whose products are not known"


def test_integer_weights_count_as_quantized() -> None:
    toy = Toy()
    toy.first.weight = nn.Parameter(toy.first.weight.char(), requires_grad=False)
    assert {p.name: p.reason for p in plan_layers(toy, {})}["first"] == "already quantized (int8)"


def test_bad_pattern_is_named() -> None:
    with pytest.raises(RecipeError, match=r"'\(open' is not a regular expression"):
        reasons({"(open": "x"})


def test_a_layer_in_two_places_is_quantized_once() -> None:
    toy = Toy()
    toy.again = toy.first
    plans = plan_layers(toy, {})
    assert [p.name for p in plans if p.reason is None] == ["first", "inner.0", "inner.2"]
    assert "again" not in {p.name for p in plans}
