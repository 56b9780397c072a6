"""Flag-DiT, Large-DiT and Next-DiT: parity with the authors' outputs, other configurations, guidance, sizes."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vqcompress.errors import ArchitectureError
from vqcompress.models import from_official
from vqcompress.models.flag_dit import FlagDiT, FlagDiTLabels, LargeDiT
from vqcompress.models.next_dit import NextDiT, NextDiTLabels
from vqcompress.models.presets import preset

FIXTURES = {"flag_dit_t2i": "flag_dit", "lumina_next": "next_dit"}
LABELLED = {
    "flag_dit_imagenet": "flag_dit",
    "large_dit_imagenet": "large_dit",
    "next_dit_imagenet": "next_dit",
    "next_dit_imagenet_grouped": "next_dit",
}
SMALL = {"dim": 48, "n_layers": 2, "n_heads": 4, "multiple_of": 16}
TEXT_NETWORKS = (FlagDiT, NextDiT)
LABEL_NETWORKS = (FlagDiTLabels, LargeDiT, NextDiTLabels)
PUBLISHED = [
    ("lumina-t2i", FlagDiT, 5_046_643_744, 326),
    ("flag-dit-3b", FlagDiTLabels, 4_237_824_032, 261),
    ("large-dit-600m", LargeDiT, 609_836_576, 133),
    ("large-dit-3b", LargeDiT, 4_237_824_032, 261),
    ("large-dit-7b", LargeDiT, 7_293_819_936, 261),
    ("lumina-next-t2i", NextDiT, 1_627_386_400, 246),
    ("lumina-next-sft", NextDiT, 1_627_386_400, 246),
]


def randomized(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return network.eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flag_blocks_on_a_grid(config: dict, weights: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A labelled network of Flag-DiT's blocks with 2-D rotary positions (arXiv 2405.05945, 2406.18583), in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, width, half = config["n_heads"], config["dim"], len(x)
    head = width // heads

    def linear(name: str, z: Tensor) -> Tensor:
        return functional.linear(z, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name: str, z: Tensor) -> Tensor:
        return functional.layer_norm(z, z.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def rms(name: str, z: Tensor) -> Tensor:
        return z * (z.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w[f"{name}.weight"]

    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    angles = torch.zeros(rows * columns, head // 2, dtype=torch.float64)
    for token, pair in itertools.product(range(rows * columns), range(head // 2)):
        position = token % columns if pair % 2 else token // columns
        angles[token, pair] = position / 10000 ** (2 * (pair // 2) * 2 / head)
    turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]

    def rotated(z: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)

    def attention(name: str, z: Tensor) -> Tensor:
        q = rotated(norm(f"{name}.q_norm", linear(f"{name}.wq", z)).unflatten(-1, (heads, head)))
        k = rotated(norm(f"{name}.k_norm", linear(f"{name}.wk", z)).unflatten(-1, (-1, head)))
        v = linear(f"{name}.wv", z).unflatten(-1, (-1, head))
        k, v = (part.repeat_interleave(heads // part.shape[2], 2) for part in (k, v))
        scores = torch.einsum("bqhc,bkhc->bhqk", q, k) / head**0.5
        return linear(f"{name}.wo", torch.einsum("bhqk,bkhc->bqhc", scores.softmax(-1), v).flatten(2))

    frequencies = 10000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    time = torch.cat([(t[:, None] * frequencies).cos(), (t[:, None] * frequencies).sin()], 1)
    condition = linear("t_embedder.mlp.2", functional.silu(linear("t_embedder.mlp.0", time)))
    condition = functional.silu(condition + w["y_embedder.embedding_table.weight"][y])
    z = linear("x_embedder", functional.unfold(x.double(), 2, stride=2).transpose(1, 2))
    for i in range(config["n_layers"]):
        parts = linear(f"layers.{i}.adaLN_modulation.1", condition)[:, None].chunk(6, -1)
        given = rms(f"layers.{i}.attention_norm", z) * (1 + parts[1]) + parts[0]
        z = z + parts[2] * attention(f"layers.{i}.attention", given)
        given = rms(f"layers.{i}.ffn_norm", z) * (1 + parts[4]) + parts[3]
        gate, up = (linear(f"layers.{i}.feed_forward.{name}", given) for name in ("w1", "w3"))
        z = z + parts[5] * linear(f"layers.{i}.feed_forward.w2", functional.silu(gate) * up)
    shift, scale = linear("final_layer.adaLN_modulation.1", condition)[:, None].chunk(2, -1)
    z = linear("final_layer.linear", functional.layer_norm(z, z.shape[-1:], eps=1e-6) * (1 + scale) + shift)
    cells = z.reshape(half, rows, columns, 2, 2, -1).permute(0, 5, 1, 3, 2, 4)
    return cells.reshape(half, -1, rows * 2, columns * 2)[:, :4].float()


def text_inputs(batch: int, width: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, 5, dtype=torch.int32)
    mask[-1, 3:] = 0
    return {"t": torch.linspace(0.2, 0.7, batch), "cap_feats": normal(batch, 5, width, seed=1), "cap_mask": mask}


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("name", FIXTURES | LABELLED)
def test_official_outputs(official_run, tolerance: float, name: str, call: int) -> None:
    run = official_run(name)
    network = from_official((FIXTURES | LABELLED)[name], run.config, run.weights)
    assert not network.training
    assert run.calls[call].deviation(network) <= tolerance


@pytest.mark.parametrize(("name", "network", "parameters", "linears"), PUBLISHED)
def test_published_sizes(name: str, network: type, parameters: int, linears: int) -> None:
    built = preset(name).build()
    assert type(built) is network
    assert sum(p.numel() for p in built.parameters()) == parameters
    assert sum(isinstance(m, nn.Linear) for m in built.modules()) == linears


@pytest.mark.parametrize(
    "variant", [{"n_kv_heads": 2, "qk_norm": True}, {"ffn_dim_multiplier": 1.3}, {"patch_size": 4}]
)
@pytest.mark.parametrize("network", TEXT_NETWORKS)
def test_mixed_sizes_agree_with_one_by_one(network: type, variant: dict) -> None:
    built = randomized(network(**SMALL, **variant, cap_feat_dim=24))
    images, inputs = [normal(4, 8, 16), normal(4, 16, 8, seed=2), normal(4, 4, 8, seed=3)], text_inputs(3, 24)
    with torch.no_grad():
        together = built(images, **inputs)
        alone = [built(image[None], **{k: v[[i]] for k, v in inputs.items()})[0] for i, image in enumerate(images)]
    assert [out.shape for out in together] == [image.shape for image in images]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", TEXT_NETWORKS)
def test_masked_text_changes_nothing(network: type) -> None:
    built, inputs = randomized(network(**SMALL, cap_feat_dim=24)), text_inputs(2, 24)
    changed = inputs | {"cap_feats": inputs["cap_feats"].clone()}
    changed["cap_feats"][1, 3:] = 100.0
    x = normal(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(built(x, **inputs), built(x, **changed))


@pytest.mark.parametrize("network", TEXT_NETWORKS)
def test_guidance_acts_on_three_channels(network: type) -> None:
    built, inputs = randomized(network(**SMALL, cap_feat_dim=24)), text_inputs(2, 24)
    half = normal(1, 4, 8, 8)
    x = torch.cat([half, normal(1, 4, 8, 8, seed=5)])
    with torch.no_grad():
        conditional, unconditional = built(torch.cat([half, half]), **inputs)
        guided = built.forward_with_cfg(x, **inputs, cfg_scale=4.0)
    expected = unconditional + 4 * (conditional - unconditional)
    torch.testing.assert_close(guided[:, :3], expected[:3].expand(2, -1, -1, -1))
    torch.testing.assert_close(guided[0, 3], conditional[3])


def test_scaled_sampling_follows_time() -> None:
    built, inputs = randomized(NextDiT(**SMALL, cap_feat_dim=24)), text_inputs(2, 24)
    x, scaled = normal(2, 4, 16, 16), {"cfg_scale": 2.0, "scale_factor": 2.0}
    with torch.no_grad():
        plain = built.forward_with_cfg(x, **inputs, cfg_scale=2.0)
        early = built.forward_with_cfg(x, **inputs, **scaled, scale_watershed=0.9)
        late = built.forward_with_cfg(x, **inputs, **scaled, scale_watershed=0.1)
        sharp = built.forward_with_cfg(x, **inputs, cfg_scale=2.0, base_seqlen=4, proportional_attn=True)
        same = built.forward_with_cfg(x, **inputs, cfg_scale=2.0, base_seqlen=64, proportional_attn=True)
    assert all(not torch.allclose(plain, other, atol=1e-3) for other in (early, late, sharp))
    assert not torch.allclose(early, late, atol=1e-3)
    torch.testing.assert_close(plain, same, rtol=1e-4, atol=1e-4)


def test_flag_scaling_arguments_override_the_constructor() -> None:
    inputs, x = text_inputs(2, 24), normal(2, 4, 8, 8)
    stretched = randomized(FlagDiT(**SMALL, cap_feat_dim=24, rope_scaling_factor=2.0))
    plain = randomized(FlagDiT(**SMALL, cap_feat_dim=24))
    with torch.no_grad():
        given = plain.forward_with_cfg(x, **inputs, cfg_scale=2.0, rope_scaling_factor=2.0)
        assert given.equal(stretched.forward_with_cfg(x, **inputs, cfg_scale=2.0))
        assert not torch.allclose(given, plain.forward_with_cfg(x, **inputs, cfg_scale=2.0), atol=1e-3)


@pytest.mark.parametrize("network", LABEL_NETWORKS)
def test_labels_condition_and_guide(network: type) -> None:
    built = randomized(network(**SMALL, num_classes=10, qk_norm=True))
    channels = 8 if network is LargeDiT else 4
    half, t, y = normal(1, 4, 8, 12), torch.tensor([0.5, 0.5]), torch.tensor([3, 10])
    with torch.no_grad():
        conditional, null = built(torch.cat([half, half]), t, y)
        guided = built.forward_with_cfg(torch.cat([half, half]), t, y, 4.0)
    assert conditional.shape == (channels, 8, 12)
    assert not torch.allclose(conditional, null, atol=1e-3)
    torch.testing.assert_close(guided[0, :3], (null + 4 * (conditional - null))[:3])


@pytest.mark.parametrize("network", LABEL_NETWORKS)
def test_guided_calls_go_through_the_module(network: type) -> None:
    """Calibration records calls with hooks on the network."""
    built, calls = randomized(network(**SMALL, num_classes=10)), []
    built.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        built.forward_with_cfg(normal(2, 4, 8, 8), torch.tensor([0.5, 0.5]), torch.tensor([3, 10]), 4.0)
    assert len(calls) == 1


def test_large_dit_is_flag_dit_with_the_variance() -> None:
    config = SMALL | {"num_classes": 10, "qk_norm": True}
    weights = randomized(FlagDiTLabels(**config)).state_dict()
    flag, large = (from_official(family, config, weights) for family in ("flag_dit", "large_dit"))
    assert isinstance(flag, FlagDiTLabels)
    assert isinstance(large, LargeDiT)
    x, t, y = normal(2, 4, 8, 8), torch.tensor([17.0, 430.0]), torch.tensor([1, 10])
    with torch.no_grad():
        assert flag(x, t, y).equal(large(x, t, y)[:, :4])


@pytest.mark.parametrize("network", LABEL_NETWORKS)
def test_label_networks_have_the_official_defaults(network: type) -> None:
    """Those of ``DiT_Llama``, which the constructors of the published sizes leave as they are."""
    with torch.device("meta"):
        config = network(n_layers=1).config
    official = {"input_size": 32, "patch_size": 2, "in_channels": 4, "dim": 4096, "n_heads": 32, "n_kv_heads": None}
    official |= {"multiple_of": 256, "ffn_dim_multiplier": None, "norm_eps": 1e-5, "class_dropout_prob": 0.1}
    official |= {"num_classes": 1000, "learn_sigma": True, "qk_norm": False}
    assert {name: config[name] for name in official} == official


def test_next_dit_labels_scale_positions_for_one_call(official_run) -> None:
    run = official_run("next_dit_imagenet")
    network = from_official("next_dit", run.config, run.weights)
    given = {**run.calls[2].inputs}
    with torch.no_grad():
        plain = network.forward_with_cfg(**given)
        scaled = network.forward_with_cfg(**given, rope_scaling_factor=2.0, ntk_factor=1.5)
        assert network.forward_with_cfg(**given, rope_scaling_factor=1.0, ntk_factor=1.0).equal(plain)
    assert not torch.allclose(plain, scaled, atol=1e-3)
    assert run.calls[2].deviation(network) < 2e-5
    with pytest.raises(ArchitectureError, match="both of"):
        network.forward_with_cfg(**given, ntk_factor=2.0)


@pytest.mark.parametrize("grouped", [None, 2])
def test_next_dit_labels_with_flag_blocks(grouped: int | None) -> None:
    """Six modulation vectors a block tell Flag-DiT's blocks; the reference is written from the equations."""
    config = SMALL | {"num_classes": 10, "qk_norm": True, "n_kv_heads": grouped, "input_size": 8}
    weights = randomized(NextDiTLabels(**config, sandwich_norm=False)).state_dict()
    network = from_official("next_dit", config, weights)
    assert not network.config["sandwich_norm"]
    x, t, y = normal(2, 4, 8, 12), torch.tensor([0.2, 0.9]), torch.tensor([3, 10])
    with torch.no_grad():
        expected = flag_blocks_on_a_grid(config, weights, x, t, y)
        torch.testing.assert_close(network(x, t, y), expected, rtol=1e-4, atol=1e-4)


def test_labels_next_dit_takes_a_pad_token_if_there_is_one() -> None:
    config = SMALL | {"num_classes": 10}
    padded = from_official("next_dit", config, randomized(NextDiTLabels(**config, has_pad_token=True)).state_dict())
    images, t, y = [normal(4, 8, 8), normal(4, 4, 8)], torch.tensor([0.1, 0.9]), torch.tensor([1, 2])
    with torch.no_grad():
        mixed = padded(images, t, y)
        torch.testing.assert_close(mixed[1], padded(images[1][None], t[1:], y[1:])[0], rtol=1e-4, atol=1e-4)
        bare = {name: tensor for name, tensor in padded.state_dict().items() if name != "pad_token"}
        with pytest.raises(ArchitectureError, match="no pad_token"):
            from_official("next_dit", config, bare)(images, t, y)


def test_single_sigma_keeps_all_channels() -> None:
    built = randomized(LargeDiT(**SMALL, num_classes=10, learn_sigma=False))
    with torch.no_grad():
        assert built(normal(1, 4, 8, 8), torch.tensor([3.0]), torch.tensor([2])).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("name", FIXTURES)
def test_every_matrix_is_called(official_run, name: str) -> None:
    run, called = official_run(name), set()
    network = from_official(FIXTURES[name], run.config, run.weights)
    linears = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    for layer, module in linears.items():
        module.register_forward_hook(lambda *_, layer=layer: called.add(layer))
    run.calls[0].deviation(network)
    assert called == linears.keys()
    matrices = {n.removesuffix(".weight") for n, p in network.named_parameters() if p.ndim > 1}
    assert matrices == linears.keys()


@pytest.mark.parametrize("name", FIXTURES)
def test_saved_network_loads_bit_for_bit(official_run, tmp_path: Path, name: str) -> None:
    run = official_run(name)
    network = from_official(FIXTURES[name], run.config, run.weights)
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path)
    assert all(tensor.equal(loaded.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert run.calls[2].deviation(loaded) == run.calls[2].deviation(network)


@pytest.mark.parametrize("network", TEXT_NETWORKS)
def test_half_precision_runs(network: type) -> None:
    built, inputs = randomized(network(**SMALL, cap_feat_dim=24)).bfloat16(), text_inputs(2, 24)
    inputs["cap_feats"] = inputs["cap_feats"].bfloat16()
    with torch.no_grad():
        out = built(normal(2, 4, 8, 8).bfloat16(), **inputs)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


def test_errors_name_the_cause(official_run) -> None:
    run = official_run("lumina_next")
    weights = dict(run.weights)
    weights["layers.0.stranger"] = weights.pop("pad_token")
    with pytest.raises(ArchitectureError, match=r"missing: pad_token.*unexpected: layers\.0\.stranger"):
        from_official("next_dit", run.config, weights)
    with pytest.raises(ArchitectureError, match="n_heads must divide dim"):
        NextDiT(dim=50, n_heads=4)
    with pytest.raises(ArchitectureError, match="multiples of 2"), torch.no_grad():
        from_official("next_dit", run.config, run.weights)(normal(1, 4, 7, 8), **text_inputs(1, 64))
