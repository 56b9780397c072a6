"""Every kernel times every format times every layer shape of SDXL, DiT-XL/2 and PixArt, against the reference.

The shapes are read off the networks themselves. A kernel's path through a shape hangs on what its sides leave over when
cut into tiles, so most cases run on the smallest shape with the same remainders; the product of few samples, which is
quick on a CPU, runs on the shapes as they are.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F

import unet_step
from synthetic import packed_weight
from vqcompress.kernels import KERNELS, ConvGeometry, conv2d, decode_case, linear, product_case, reference
from vqcompress.kernels.precision import in_product_dtype
from vqcompress.matrix_view import from_transposed, is_quantizable

FORMATS = ("trellis", "additive", "scalar")
ODD = [(33, 35), (45, 1), (1, 7), (129, 65)]
OUT_TILE, IN_TILE = 128, 64  # what the widest kernel takes of outputs and inputs at a time; a scalar group is 64 inputs
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# The CUDA kernels run on a CPU in tests/kernels/test_cuda_source.py and test_cuda_products.py.
SERVING = [kernel for kernel in KERNELS if not kernel.name.startswith(("cuda", "reference"))]


@lru_cache(maxsize=1)
def network_shapes():
    """The distinct weights ``[out, in]`` and ``[out, in, kh, kw]`` of the three networks at full size."""
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        networks = [
            unet_step.sdxl(small=False),
            unet_step.dit(small=False),
            PixArtTransformer2DModel(sample_size=128, caption_channels=4096),
        ]
    layers = [layer for network in networks for layer in network.modules() if is_quantizable(layer)]
    return sorted({tuple(layer.weight.shape) for layer in layers}, key=lambda shape: (len(shape), shape))


def least(side, tile):
    """The smallest side, above one tile where ``side`` is, with the same remainder."""
    return side if side <= tile else tile + side % tile


def classes(ndim):
    """The distinct reduced shapes of layers with ``ndim`` dimensions."""
    tile = IN_TILE if ndim == 2 else 16
    shapes = [shape for shape in network_shapes() if len(shape) == ndim]
    return sorted({(least(shape[0], OUT_TILE), least(shape[1], tile), *shape[2:]) for shape in shapes})


def packed(name, shape):
    weight = packed_weight(name, shape)
    return weight, (weight.spec, weight.shape, {**weight.tensors, **weight.shared})


def inputs(columns):
    """Name -> inputs: in sequence, in columns, every other one of wider samples, one sample for all, none."""
    random = torch.Generator().manual_seed(1)
    wide = torch.randn(2, 2 * columns, generator=random)
    return {
        "contiguous": wide[:, :columns].contiguous()[None],
        "transposed": torch.randn(columns, 2, generator=random).t(),
        "strided": wide[:, ::2],
        "expanded": wide[:1, :columns].expand(2, columns),
        "empty": torch.zeros(2, 0, columns),
    }


def product(kernel, x, spec, shape, tensors, bias):
    if kernel.multiply is not None:
        return kernel.multiply(x, spec, shape, tensors, bias)

    def dense(x):
        weight = from_transposed(kernel.decode_transposed(spec, shape, tensors, x.dtype), shape)
        return F.linear(x, weight, bias.to(x.dtype))

    return in_product_dtype(x, dense)


def close(y, expected, dtype):
    difference, size = (y.float() - expected).norm(), expected.norm()
    return y.dtype == dtype and y.shape == expected.shape and bool(difference <= TOLERANCE[dtype] * size)


def test_the_networks_have_the_shapes_that_we_know():
    shapes = network_shapes()
    assert {(1280, 1280), (10240, 1280), (1280, 2816), (1152, 4608), (1152, 4096), (320, 4, 3, 3)} <= set(shapes)
    assert (128, 64) in classes(2)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kernel", SERVING, ids=lambda kernel: kernel.name)
def test_products(kernel, name, request):
    if kernel.name.startswith("triton"):
        request.getfixturevalue("interpreted")
    for shape in (*classes(2), *ODD):
        _, case = packed(name, shape)
        weight = from_transposed(reference.decode_transposed(*case), shape)
        bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(2))
        for index, (kind, plain) in enumerate(inputs(shape[1]).items()):
            # Every input on the first shape in every dtype; after that the dtypes take turns.
            for dtype in TOLERANCE if shape == (128, 64) else [list(TOLERANCE)[index % 3]]:
                x = plain.to(dtype) if kind == "contiguous" else as_it_lies(plain, dtype)
                if kernel.unsupported_reason(case[0], shape, product_case(x)):
                    assert kernel.name.startswith("triton")
                    continue
                y = product(kernel, x, *case, bias)
                assert close(y, F.linear(x.float(), weight, bias), dtype), (shape, kind, dtype)


def as_it_lies(x, dtype):
    """``x`` in ``dtype`` with its strides: a cast would lay an expanded or strided tensor out anew."""
    if 0 in x.shape:
        return x.to(dtype)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((extent,), (1,)).to(dtype).as_strided(x.shape, x.stride())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kernel", SERVING, ids=lambda kernel: kernel.name)
def test_filters(kernel, name, request):
    if kernel.name.startswith("triton"):
        request.getfixturevalue("interpreted")
    for shape in classes(4):
        _, case = packed(name, shape)
        if kernel.unsupported_reason(case[0], shape, decode_case(torch.device("cpu"), torch.float32)):
            continue
        found, expected = kernel.decode_transposed(*case), reference.decode_transposed(*case)
        assert torch.equal(found, expected), shape


@pytest.mark.parametrize("name", FORMATS)
def test_a_sample_times_layers_of_full_size(name):
    for shape in (shape for shape in network_shapes() if len(shape) == 2):
        _, case = packed(name, shape)
        x = torch.randn(1, shape[1], generator=torch.Generator().manual_seed(1))
        by_decoding = linear(x.expand(3, -1), *case, None)[:1]  # three samples are served by another kernel
        assert close(linear(x, *case, None), by_decoding, torch.float32), shape


@pytest.mark.parametrize("name", FORMATS)
def test_images_through_filters(name):
    for shape in classes(4):
        weight, case = packed(name, shape)
        x = torch.randn(2, shape[1], 5, 5, generator=torch.Generator().manual_seed(1))
        for image in (x, x.to(memory_format=torch.channels_last), x[:0]):
            assert close(
                conv2d(image, *case, None, ConvGeometry(padding=(1, 1))),
                F.conv2d(image, weight.decode(), padding=1),
                x.dtype,
            )
