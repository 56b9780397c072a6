"""llm-compressor's GPTQ: asymmetric groups of 64, damping of 1 %, ranges by minimum and maximum, its defaults else."""

import importlib

import torch

GROUP = 64


def quantize(weight, moment, bits):
    quantization = importlib.import_module("compressed_tensors.quantization")
    calculate_qparams = importlib.import_module("compressed_tensors.quantization.utils").calculate_qparams
    gptq = importlib.import_module("llmcompressor.modifiers.gptq.gptq_quantize")
    rows, columns = weight.shape
    if columns % GROUP:
        raise ValueError(f"llm-compressor's groups of {GROUP} do not divide {columns} columns")
    args = quantization.QuantizationArgs(
        num_bits=bits, type="int", symmetric=False, strategy="group", group_size=GROUP, actorder="static"
    )
    groups = weight.reshape(rows, columns // GROUP, GROUP)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    hessian = torch.eye(columns) if moment is None else moment
    made = gptq.quantize_weight(weight[None].clone(), hessian[None].clone(), scale[None], zero[None], None, args)
    # Codes and zero points in whole bytes together, scales in 16 bits.
    nbytes = -(-(rows * columns + zero.numel()) * bits // 8) + 2 * scale.numel()
    return made[0][0], nbytes
