"""Image-space DiffiT from the paper: shapes, windows, time, labels, which matrices run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vqcompress.errors import ArchitectureError
from vqcompress.models.diffit_image import (
    DiffiTImage,
    TransposedConvolution,
    WindowTimeAttention,
    from_windows,
    to_windows,
)
from vqcompress.models.diffit_latent import TimeSelfAttention
from vqcompress.models.presets import preset

TINY = {"image_size": 16, "widths": (32, 64), "blocks": (2, 1), "window": 4}


def tiny(**change) -> DiffiTImage:
    torch.manual_seed(0)
    return DiffiTImage(**TINY | change).eval()


def test_windows_round_trip() -> None:
    x = torch.randn(2, 8, 12, 3)
    assert from_windows(to_windows(x, 4), 8, 12).equal(x)
    assert to_windows(x, 4)[1].equal(x[0, :4, 4:8].reshape(16, 3))


def test_patches_that_are_added_make_the_transposed_convolution() -> None:
    torch.manual_seed(0)
    ours, torchs = TransposedConvolution(6, 5), nn.ConvTranspose2d(6, 5, 4, 2, padding=1)
    with torch.no_grad():
        ours.patches.weight.copy_(torchs.weight.flatten(1).T)
        ours.bias.copy_(torchs.bias)
    x = torch.randn(2, 6, 3, 4)
    assert torch.allclose(ours(x), torchs(x), atol=1e-6)


def test_one_window_is_the_latent_models_attention() -> None:
    torch.manual_seed(0)
    windowed, whole = WindowTimeAttention(32, 32, 2, window=4), TimeSelfAttention(32, 2, window=4)
    nn.init.normal_(windowed.relative_position_bias_table)
    whole.load_state_dict(windowed.state_dict())
    x, time = torch.randn(2, 4, 4, 32), torch.randn(2, 32)
    assert torch.allclose(windowed(x, time).flatten(1, 2), whole(x.flatten(1, 2), time), atol=1e-6)


@pytest.mark.parametrize("change", [{}, {"widths": (32, 64, 64), "blocks": (1, 1, 1)}, {"window": 16}])
def test_output_is_an_image(change: dict) -> None:
    x = torch.randn(2, 3, 16, 16)
    out = tiny(**change)(x, torch.tensor([0.1, 0.2]))
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


def test_time_and_label_matter() -> None:
    model, x, t = tiny(num_classes=3), torch.randn(1, 3, 16, 16), torch.tensor([0.5])
    base = model(x, t, torch.tensor([1]))
    assert not torch.allclose(base, model(x, t + 1, torch.tensor([1])))
    assert not torch.allclose(base, model(x, t, torch.tensor([3])))
    with pytest.raises(ArchitectureError, match="labels"):
        model(x, t)


def test_every_matrix_is_called() -> None:
    model, called = tiny(), set()
    matrices = {m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for part in matrices:
        part.register_forward_hook(lambda module, *_: called.add(module))
    model(torch.randn(1, 3, 16, 16), torch.tensor([0.5]))
    assert called == matrices


@pytest.mark.parametrize("change", [{"window": 3}, {"blocks": (1,)}, {"head_dim": 48}, {"image_size": 15}])
def test_sizes_that_do_not_divide(change: dict) -> None:
    with pytest.raises(ArchitectureError):
        DiffiTImage(**TINY | change)


@pytest.mark.parametrize(("name", "levels"), [("diffit-image-64", 4), ("diffit-image-cifar10", 3)])
def test_presets(name: str, levels: int) -> None:
    model = preset(name).build()
    assert len(model.encoder) == levels
    size = model.config["image_size"]
    x, t = torch.zeros(1, 3, size, size, device="meta"), torch.zeros(1, device="meta")
    y = torch.zeros(1, dtype=torch.long, device="meta") if model.config["num_classes"] else None
    assert model(x, t, y).shape == x.shape


@pytest.mark.parametrize("shift", [0, 8, 40])
def test_save_and_load(tmp_path: Path, shift: int) -> None:
    model, x, t = tiny(), torch.randn(1, 3, 16, 16), torch.tensor([0.5])
    model.save_pretrained(tmp_path)
    # Where weights lie in memory changes the rounding of sums; where a file has them depends on its header's length.
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(
        {key: value.clone() for key, value in load_file(file).items()},
        file,
        metadata={"format": "pt", "shift": "-" * shift},
    )
    opened = DiffiTImage.from_pretrained(tmp_path)
    assert all(opened.get_parameter(name).equal(weight) for name, weight in model.named_parameters())
    assert opened(x, t).equal(model(x, t))
