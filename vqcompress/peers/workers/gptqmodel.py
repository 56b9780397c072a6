"""GPTQModel's GPTQ with groups of 64 and its defaults else."""

import importlib

import torch

GROUP = 64


def quantize(weight, moment, bits):
    rows, columns = weight.shape
    if columns % GROUP:
        raise ValueError(f"GPTQModel's groups of {GROUP} do not divide {columns} columns")
    config = importlib.import_module("gptqmodel.quantization").QuantizeConfig(bits=bits, group_size=GROUP)
    layer = torch.nn.Linear(columns, rows, bias=False)
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    task = importlib.import_module("gptqmodel.quantization.gptq").GPTQ(layer, config)
    task.quantizer.configure(perchannel=True)
    inputs = _inputs(torch.eye(columns) if moment is None else moment)
    task.add_batch(inputs[None], layer(inputs)[None])
    made, scale, zero, order = task.quantize()[:4]
    # As it packs them: codes and zero points of so many bits, 16-bit scales, an int32 group index for each column.
    nbytes = -(-(rows * columns + zero.numel()) * bits // 8) + 2 * scale.numel() + 4 * order.numel()
    return made.reshape(rows, columns), nbytes


def _inputs(moment):
    """As many inputs as columns that have this second moment."""
    values, vectors = torch.linalg.eigh(moment.double())
    return ((values.clamp(min=0) * len(values)).sqrt()[:, None] * vectors.t()).float()
