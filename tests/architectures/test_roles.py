"""Layers are told by what they read in one call, whatever they are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqcompress.architectures.layer_plan import FINAL, LATENT_INPUT, ONE_SAMPLE_PER_TIMESTEP
from vqcompress.architectures.roles import NOT_REACHED, argument_kinds, trace_denoisers, why_dense
from vqcompress.architectures.traced_call import Marks

WIDE = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        return x + self.two(self.one(x) + extra)


class Opaque(nn.Module):
    """Latents ``x [n, tokens, 4]`` and ``z [n, 3, 4]``, text ``c [n, words, 8]``, a time for each token of ``x``."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcdefghi":
            setattr(self, name, nn.Linear(4 if name in "ab" else WIDE, 4 if name == "i" else WIDE))
        self.stack = nn.ModuleList(Block() for _ in range(2))
        self.later = nn.ModuleList(Block() for _ in range(2))
        self.texts = nn.ModuleList([Block()])
        self.times = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor, z: Tensor, c: Tensor, t: Tensor) -> Tensor:
        joined = torch.zeros(len(x), x.shape[1] + z.shape[1], WIDE)
        joined[:, : x.shape[1]] = self.a(x)  # through a view
        joined[:, x.shape[1] :] = self.b(z)
        text = self.c(self.texts[0](c, torch.zeros(())))
        time = self.d(t.mean(1, keepdim=True)[:, None] * torch.ones(WIDE))
        for part in self.times:
            time = part(time, time)
        pooled = self.e(text.mean(1, keepdim=True))
        for block in self.stack:
            joined = block(joined, time + pooled)
        joined = self.f(joined)
        for block in self.later:
            joined = block(joined, text.mean(1, keepdim=True))
        return self.i(joined[:, : x.shape[1]] * self.g(time))


class Watched(Opaque):
    """Notes for which of its calls a graph is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[bool] = []

    def forward(self, x: Tensor, z: Tensor, c: Tensor, t: Tensor) -> Tensor:
        output = super().forward(x, z, c, t)
        self.graphs.append(output.requires_grad)
        return output


def run(network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    x, z, c = (torch.randn(2, rows, width, generator=generator) for rows, width in ((5, 4), (3, 4), (6, WIDE)))
    for step in range(2):
        x = x + network(x, z=z, c=c, t=torch.full((2, 5), 1.0 - step / 2))
        z = z + 1


def reasons() -> dict[str, str | None]:
    network = Opaque()
    before = network.forward
    traced = trace_denoisers({"net": network}, lambda: run(network))["net"]
    assert network.forward == before
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return {name: why_dense(traced, name) for name in names}


def test_every_role_whatever_the_names() -> None:
    found = reasons()
    assert {name: found[name] for name in "abcdefghi"} == {
        "a": LATENT_INPUT,
        "b": LATENT_INPUT,
        "c": None,  # text, token by token
        "d": ONE_SAMPLE_PER_TIMESTEP,
        "e": ONE_SAMPLE_PER_TIMESTEP,  # pooled text
        "f": None,  # between the blocks
        "g": ONE_SAMPLE_PER_TIMESTEP,  # modulates the output
        "h": NOT_REACHED,
        "i": FINAL,
    }
    inside = {name: reason for name, reason in found.items() if name not in set("abcdefghi")}
    assert {name for name, reason in inside.items() if reason} == {
        f"times.{i}.{part}" for i in range(2) for part in ("one", "two")
    }


def test_no_graph_is_kept_of_the_call_that_is_followed() -> None:
    network = Watched()
    trace_denoisers({"net": network}, lambda: run(network))
    assert network.graphs == [False, False]


def calls(**stays: Tensor) -> list[dict[str, Any]]:
    return [{"x": torch.full((1, 2, 3), step), "timestep": torch.tensor([step]), **stays} for step in (1.0, 0.5)]


def test_what_stays_from_step_to_step_is_text_and_what_changes_is_latent() -> None:
    seen = calls(one=torch.ones(1, 4, 3), ids=torch.ones(2, 3), picture=torch.ones(1, 3, 2, 2))
    for step, call in enumerate(seen):
        call["two"] = torch.full((1, 4, 3), float(step))
    kinds = [marks for _, marks in argument_kinds(seen)]
    assert kinds == [Marks.LATENTS, Marks.VECTORS, Marks.TOKENS, Marks.VECTORS, Marks.LATENTS, Marks.LATENTS]


def test_two_prompts_at_one_timestep_tell_nothing_but_names_do() -> None:
    alike = {"x": torch.ones(1, 2, 3), "timestep": torch.ones(1)}
    seen = [alike | {"text": torch.full((1, 4, 3), float(branch))} for branch in range(2)]
    assert [marks for _, marks in argument_kinds(seen)][-1] == Marks.TOKENS


def test_text_in_four_dimensions_and_between_calls_without_it_is_text() -> None:
    seen = calls(encoder_hidden_states=torch.ones(1, 1, 4, 3), history_context_latents=torch.ones(1, 3, 2, 2))
    seen[1]["encoder_hidden_states"] = torch.zeros(1, 1, 4, 3)
    assert [marks for _, marks in argument_kinds(seen)][2:] == [Marks.TOKENS, Marks.LATENTS]


class Pyramid(nn.Module):
    """Latents of two tokens, which a layer between blocks makes one."""

    def __init__(self) -> None:
        super().__init__()
        self.stack, self.later = nn.ModuleList([Block()]), nn.ModuleList([Block()])
        self.halve, self.time = nn.Linear(2 * WIDE, WIDE), nn.Linear(WIDE, WIDE)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time(t[:, None, None] * torch.ones(WIDE))
        x = self.halve(self.stack[0](x, time).reshape(len(x), 1, -1))
        return self.later[0](x, time).repeat(1, 2, 1)


def test_latents_that_blocks_made_one_token_are_no_vector() -> None:
    network = Pyramid()

    def run_two_steps() -> None:
        x = torch.randn(2, 2, WIDE)
        for step in range(2):
            x = x + network(x, t=torch.full((2,), 1.0 - step / 2))

    traced = trace_denoisers({"net": network}, run_two_steps)["net"]
    assert why_dense(traced, "halve") is None
    assert why_dense(traced, "time") == ONE_SAMPLE_PER_TIMESTEP


def test_a_second_call_that_a_repeated_output_does_not_fit_is_not_needed() -> None:
    network = Opaque()

    def draw() -> None:
        run(network)
        raise ValueError("the repeated output has another shape")

    assert trace_denoisers({"net": network}, draw)["net"].blocks >= {"stack.0", "later.1"}
    with pytest.raises(ValueError, match="no call at all"):
        trace_denoisers({"net": network}, lambda: (_ for _ in ()).throw(ValueError("no call at all")))
    assert "forward" not in vars(network)
