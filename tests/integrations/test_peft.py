"""LoRA adapters on packed Linear and Conv2d layers."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from vqcompress.errors import UnsupportedError
from vqcompress.layers import swap, vq_layers

TARGETS = ["to_q", "to_v", "conv1", "proj_in"]


def _adapter(unet: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA in diffusers' own layout for the tiny UNet, made by PEFT itself on a dense UNet."""
    from peft.utils import get_peft_model_state_dict

    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False))
    state = get_peft_model_state_dict(unet)
    generator = torch.Generator().manual_seed(seed)
    drawn = {key: 0.1 * torch.randn(tensor.shape, generator=generator) for key, tensor in state.items()}
    return {f"unet.{key}": tensor for key, tensor in drawn.items()}


@pytest.mark.today("LoRA")
@pytest.mark.feature("several LoRA adapters, switched and disabled without a trace", "UNet")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_adapters_load_switch_and_leave_without_a_trace(compressed_pipeline, make_tiny_unet, run_unet):
    pipeline = compressed_pipeline
    bare = run_unet(pipeline.unet)
    pipeline.load_lora_weights(_adapter(make_tiny_unet(), 1), adapter_name="one")
    one = run_unet(pipeline.unet)
    pipeline.load_lora_weights(_adapter(make_tiny_unet(), 2), adapter_name="two")
    pipeline.set_adapters(["one", "two"], [0.5, 0.7])
    both = run_unet(pipeline.unet)
    assert not torch.equal(one, bare)
    assert not torch.equal(both, one)
    pipeline.set_adapters(["one"], [1.0])
    assert torch.equal(run_unet(pipeline.unet), one)
    pipeline.disable_lora()
    assert torch.equal(run_unet(pipeline.unet), bare)
    pipeline.enable_lora()
    pipeline.unload_lora_weights()
    assert torch.equal(run_unet(pipeline.unet), bare)


@pytest.mark.today("LoRA")
def test_an_adapter_adds_what_it_adds_to_the_dense_layer(random_weight):
    torch.manual_seed(0)
    nets = [nn.ModuleDict({"a": nn.Linear(16, 24), "c": nn.Conv2d(4, 8, 3, padding=1)}) for _ in range(2)]
    swap(nets[0], {"a": random_weight("trellis", (24, 16)), "c": random_weight("additive", (8, 4, 3, 3))})
    weights = {f"{name}.weight": layer.dense_weight() for name, layer in vq_layers(nets[0]).items()}
    biases = {f"{name}.bias": layer.bias for name, layer in vq_layers(nets[0]).items()}
    nets[1].load_state_dict({**weights, **biases})
    config = LoraConfig(r=2, target_modules=["a", "c"], init_lora_weights=False)
    wrapped = [get_peft_model(net, config) for net in nets]
    wrapped[1].load_state_dict({k: v for k, v in wrapped[0].state_dict().items() if "lora" in k}, strict=False)
    x, image = torch.randn(3, 16), torch.randn(2, 4, 6, 6)
    for layer, value in (("a", x), ("c", image)):
        inputs = [value.clone().requires_grad_() for _ in wrapped]
        ours, dense = (net.base_model.model[layer](given) for net, given in zip(wrapped, inputs, strict=True))
        torch.testing.assert_close(ours, dense)
        (ours.square().sum() + dense.square().sum()).backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    ours, dense = ({k: p.grad for k, p in net.named_parameters() if "lora" in k} for net in wrapped)
    assert len(ours) == 4
    torch.testing.assert_close(ours, dense)


@pytest.mark.feature("training under autocast, one-dimensional parameters in float32", "UNet")
def test_training_as_recipes_do(compressed_pipeline, run_unet):
    unet = compressed_pipeline.unet
    weights = {name: layer.dense_weight() for name, layer in vq_layers(unet).items()}
    for parameter in unet.requires_grad_(False).parameters():
        if parameter.ndim == 1:  # scales among them
            parameter.data = parameter.data.float()
    assert all(torch.equal(layer.dense_weight(), weights[name]) for name, layer in vq_layers(unet).items())
    unet.add_adapter(LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
    with torch.autocast("cpu", torch.bfloat16):
        output = unet(torch.randn(2, 4, 8, 8), 3, torch.randn(2, 5, 32)).sample
    output.float().square().mean().backward()
    gradients = [parameter.grad for parameter in unet.parameters() if parameter.requires_grad]
    assert len(gradients) > 3
    assert all(torch.isfinite(gradient).all() and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.feature("several LoRA adapters, switched and disabled without a trace", "text encoder")
def test_an_adapter_file_for_the_text_encoder(compressed_pipeline, make_tiny_pipeline):
    from peft.utils import get_peft_model_state_dict

    dense = make_tiny_pipeline().text_encoder
    dense.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "fc1"], init_lora_weights=False))
    state = {
        f"text_encoder.{key}": tensor
        for key, tensor in get_peft_model_state_dict(dense, save_embedding_layers=False).items()
    }
    encoder, ids = compressed_pipeline.text_encoder, torch.arange(8)[None]
    with torch.no_grad():
        bare = encoder(ids).last_hidden_state
        compressed_pipeline.load_lora_weights(state, adapter_name="one")
        assert not torch.equal(encoder(ids).last_hidden_state, bare)
        compressed_pipeline.unload_lora_weights()
        assert torch.equal(encoder(ids).last_hidden_state, bare)


@pytest.mark.feature("training a LoRA", "UNet")
def test_training_an_adapter_moves_it_and_nothing_else(compressed_pipeline):
    unet = compressed_pipeline.unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, target_modules=TARGETS))
    unet.enable_gradient_checkpointing()
    unet.train()
    before = {name: p.detach().clone() for name, p in unet.named_parameters()}
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    losses = []
    for _ in range(3):
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
        loss = unet(noise, 3, states).sample.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name for name, p in unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora" in name for name in moved)
    assert any("conv1" in name for name in moved)


@pytest.mark.feature("`fuse_lora` is refused, with the alternative", "UNet")
def test_fusing_is_refused_with_the_way_out(compressed_pipeline, make_tiny_unet, run_unet):
    compressed_pipeline.load_lora_weights(_adapter(make_tiny_unet(), 1), adapter_name="one")
    before = run_unet(compressed_pipeline.unet)
    with pytest.raises(UnsupportedError, match="vqcompress dequantize"):
        compressed_pipeline.fuse_lora()
    assert torch.equal(run_unet(compressed_pipeline.unet), before)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_merging_through_peft_is_refused(random_weight):
    net = nn.ModuleDict({"a": nn.Linear(16, 24), "c": nn.Conv2d(4, 8, 3)})
    swap(net, {"a": random_weight("trellis", (24, 16)), "c": random_weight("trellis", (8, 4, 3, 3))})
    for target in ("a", "c"):
        wrapped = get_peft_model(net, LoraConfig(r=2, target_modules=[target]))
        with pytest.raises(UnsupportedError, match="codes"):
            wrapped.merge_and_unload()
        net = wrapped.unload()
