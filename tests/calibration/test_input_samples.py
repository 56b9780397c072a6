import pytest
import torch
from torch import nn

from vqcompress.calibration.input_samples import input_samples, sample_count
from vqcompress.matrix_view import to_matrix, unfold_input

LAYERS = [
    nn.Linear(6, 3),
    nn.Conv2d(6, 3, 3, padding=1),
    nn.Conv2d(6, 3, 1),
    nn.Conv2d(6, 3, 3, stride=2, padding=1),
    nn.Conv2d(6, 3, (3, 2), stride=(1, 2), padding=(2, 0)),
    nn.Conv2d(6, 3, 3, dilation=2, padding=2),
    nn.Conv2d(6, 3, 3, padding="same"),
    nn.Conv2d(6, 3, 3, padding="valid"),
    nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_rows_at_positions_are_those_of_all_rows(layer: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 7, 5, 6) if isinstance(layer, nn.Linear) else (2, 6, 9, 8)
    x = torch.randn(shape, generator=generator)
    everything = unfold_input(x, layer)
    assert sample_count(x, layer) == len(everything)
    assert torch.equal(input_samples(x, layer), everything)
    positions = torch.randperm(len(everything), generator=generator)[:11]
    rows = input_samples(x, layer, positions)
    assert torch.equal(rows, everything[positions])
    with torch.no_grad():
        output = layer(x) - (layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None])
    output = output.flatten(0, -2) if isinstance(layer, nn.Linear) else output.flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows @ to_matrix(layer.weight.detach()).t(), output[positions], rtol=1e-4, atol=1e-5)
