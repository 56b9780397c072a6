"""PT-DiT: parity with the authors' outputs, other windows, proxies and sizes, one timestep per batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqcompress.errors import ArchitectureError
from vqcompress.models import from_official
from vqcompress.models.presets import preset
from vqcompress.models.pt_dit import PTDiT

FIXTURES = ("pt_dit_t2i", "pt_dit_video")
SEVERAL_PROXIES = ("pt_dit_proxies", "pt_dit_video_proxies")
SMALL = {
    "num_heads": 2,
    "head_dim": 24,
    "num_layers": 2,
    "cross_attention_dim": 48,
    "caption_channels": 20,
    "sample_size": 16,
    "compress_ratios": (1, 4, 4),
    "proxy_compress_ratios": (1, 4, 4),
}


def randomized(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.15, generator=generator)
    return network.eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(*size: int, t: tuple[float, ...] = (431.5, 431.5)) -> dict[str, Tensor]:
    batch = len(t)
    mask = torch.ones(batch, 6)
    mask[-1, 4:] = 0
    return {
        "hidden_states": normal(batch, 4, *size),
        "timestep": torch.tensor(t),
        "encoder_hidden_states": normal(batch, 6, 20, seed=1),
        "encoder_attention_mask": mask,
    }


def official(official_run, name: str):
    """The run and its network; the video fixture stores only the tensor in which it differs from the other."""
    run = official_run(name)
    return run, from_official("pt_dit", run.config, official_run("pt_dit_t2i").weights | run.weights)


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("name", FIXTURES)
def test_official_outputs(official_run, tolerance: float, name: str, call: int) -> None:
    run, network = official(official_run, name)
    assert not network.training
    assert run.calls[call].deviation(network) <= tolerance


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("name", SEVERAL_PROXIES)
def test_official_outputs_with_several_proxies_a_window(official_run, tolerance: float, name: str, call: int) -> None:
    """Windows of 4 × 4 tokens with 2 × 2 proxies; windows of 2 × 4 × 4 with 4 × 2 proxies over both frames."""
    run, network = official(official_run, name)
    assert run.calls[call].deviation(network) <= tolerance


@pytest.mark.parametrize("name", FIXTURES)
def test_position_table_is_the_stored_one(official_run, name: str) -> None:
    run, network = official(official_run, name)
    table = network.rebuilt_buffers()["pos_embed.pos_embed"]
    torch.testing.assert_close(table, run.weights["pos_embed.pos_embed"], rtol=0, atol=1e-6)
    assert "pos_embed.pos_embed" not in network.state_dict()


def test_published_size() -> None:
    network = preset("qihoo-t2i").build()
    assert sum(p.numel() for p in network.parameters()) == 1_131_629_216
    assert sum(isinstance(m, nn.Linear) for m in network.modules()) == 678
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == 1


VARIANTS = [
    ({"proxy_compress_ratios": (1, 2, 2)}, (1, 16, 16)),
    ({"compress_ratios": (2, 4, 2), "proxy_compress_ratios": (1, 2, 2), "frame": 4}, (4, 16, 8)),
    ({"compress_ratios": (1, 2, 4), "proxy_compress_ratios": (1, 2, 4), "attention_bias": False}, (1, 8, 24)),
    ({"shift_window": False, "activation_fn": "geglu", "out_channels": None}, (1, 16, 16)),
    ({"caption_channels": None, "cross_attention_dim": 20, "patch_size": 4}, (1, 32, 32)),
    ({"compress_ratios": (6, 4, 4), "proxy_compress_ratios": (6, 4, 4), "frame": 6}, (6, 8, 8)),
]


@pytest.mark.parametrize(("variant", "size"), VARIANTS)
def test_batches_of_one_timestep_agree_with_one_by_one(variant: dict, size: tuple[int, ...]) -> None:
    network, given = randomized(PTDiT(**SMALL | variant)), inputs(*size)
    with torch.no_grad():
        together = network(**given)
        alone = torch.cat([network(**{name: value[[i]] for name, value in given.items()}) for i in range(2)])
    channels = 4 if variant.get("out_channels", 8) is None else 8
    assert together.shape == (2, channels, *size)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_two_timesteps_in_a_batch_mix_as_in_the_official_network() -> None:
    network, given = randomized(PTDiT(**SMALL)), inputs(1, 16, 16, t=(37.5, 812.25))
    with torch.no_grad():
        together = network(**given)[0]
        alone = network(**{name: value[:1] for name, value in given.items()})[0]
    assert float((together - alone).abs().max() / alone.abs().max()) > 0.02


def test_nothing_is_kept_between_resolutions() -> None:
    network, fresh = randomized(PTDiT(**SMALL)), randomized(PTDiT(**SMALL))
    with torch.no_grad():
        network(**inputs(1, 24, 8))
        network(**inputs(3, 8, 8))
        assert network(**inputs(1, 16, 16)).equal(fresh(**inputs(1, 16, 16)))


def test_masked_text_changes_nothing_and_absent_text_is_allowed() -> None:
    network, given = randomized(PTDiT(**SMALL)), inputs(1, 8, 8)
    changed = given | {"encoder_hidden_states": given["encoder_hidden_states"].clone()}
    changed["encoder_hidden_states"][1, 4:] = 50.0
    with torch.no_grad():
        torch.testing.assert_close(network(**given), network(**changed))
        empty = given | {"encoder_attention_mask": torch.zeros(2, 6)}
        assert network(**empty).isfinite().all()


def test_shifted_windows_and_proxies_carry_far(official_run) -> None:
    """One changed corner reaches every token: the proxies see the whole picture."""
    run, network = official(official_run, "pt_dit_t2i")
    given = dict(run.calls[0].inputs)
    changed = given | {"hidden_states": given["hidden_states"].clone()}
    changed["hidden_states"][:, :, :, 0, 0] += 1
    with torch.no_grad():
        assert bool(((network(**given) - network(**changed)).abs().amax(dim=1) > 0).all())


@pytest.mark.parametrize("name", FIXTURES)
def test_every_matrix_is_called(official_run, name: str) -> None:
    run, network = official(official_run, name)
    matrices = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    called = set()
    for layer, module in matrices.items():
        module.register_forward_hook(lambda *_, layer=layer: called.add(layer))
    run.calls[0].deviation(network)
    assert called == matrices.keys()


def test_saved_network_loads_bit_for_bit(official_run, tmp_path: Path) -> None:
    run, network = official(official_run, "pt_dit_video")
    network.save_pretrained(tmp_path)
    loaded = PTDiT.from_pretrained(tmp_path)
    assert run.calls[2].deviation(loaded) == run.calls[2].deviation(network)


def test_half_precision_runs() -> None:
    network = randomized(PTDiT(**SMALL)).bfloat16()
    given = {name: value if name == "timestep" else value.bfloat16() for name, value in inputs(1, 8, 8).items()}
    with torch.no_grad():
        out = network(**given)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"norm_type": "layer_norm"}, "norm_type='layer_norm' is not known"),
        ({"compress_ratios": (4, 4)}, "three positive numbers"),
        ({"proxy_compress_ratios": (1, 3, 4)}, "must divide"),
        ({"head_dim": 20}, "multiple of 16"),
    ],
)
def test_unusable_arguments_are_named(argument: dict, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        PTDiT(**SMALL | argument)


def test_misfits_are_named(official_run) -> None:
    run = official_run("pt_dit_t2i")
    weights = dict(run.weights)
    weights["stranger"] = weights.pop("proj_out.bias")
    with pytest.raises(ArchitectureError, match=r"missing: proj_out\.bias.*unexpected: stranger"):
        from_official("pt_dit", run.config, weights)
    with pytest.raises(ArchitectureError, match=r"pos_embed\.pos_embed"):
        from_official("pt_dit", run.config | {"sample_size": 32}, run.weights)
    with pytest.raises(ArchitectureError, match="cannot be cut into windows"), torch.no_grad():
        randomized(PTDiT(**SMALL))(**inputs(1, 12, 16))
