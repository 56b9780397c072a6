"""SDNQ's integer formats with the group size that it chooses itself."""

import importlib

import torch


def quantize(weight, moment, dtype):
    quantizer = importlib.import_module("sdnq.quantizer")
    made = quantizer.sdnq_quantize_layer_weight(
        weight, layer_class_name="Linear", weights_dtype=dtype, torch_dtype=torch.float32
    )
    if made is None:
        raise ValueError(f"SDNQ leaves a weight of {tuple(weight.shape)} dense")
    dequantizer, stored = made
    tensors = {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}
    dense = dequantizer(**tensors)
    # Integer codes are stored as they are, scales and zero points in the model's 16 bits.
    nbytes = sum(t.numel() * (2 if t.is_floating_point() else t.element_size()) for t in tensors.values())
    return dense.reshape(weight.shape), nbytes
