"""The sections of `gpu_check.py`, most telling first. Each runs in a process of its own and yields results by name.

A check's result is ``"ok"`` or what went wrong; every other result is a number or a table of numbers. Checks need
torch, cuda-core, Triton, numba and safetensors; sections that need more say so in `SECTIONS`.
"""

from __future__ import annotations

import math
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import matmul
import sdxl_layers
import unet_step
from every_weight import weights as every_weight
from gpu_lab import Lab, coded, plain, reference_dense
from peers import PEERS
from random_weights import Coded
from synthetic import FORMATS, packed_weight
from vqcompress import kernels
from vqcompress.formats.trellis import window_states
from vqcompress.formats.trellis_table import value_table
from vqcompress.kernels import reference
from vqcompress.kernels.cuda import driver
from vqcompress.kernels.cuda.driver import Kernel
from vqcompress.kernels.cuda.jobs import launches
from vqcompress.kernels.cuda.products import TILES, FinishName, ProductName
from vqcompress.kernels.first_use import DIFFERS
from vqcompress.kernels.triton import operations as triton
from vqcompress.layers.decode_ahead import STATE, set_decode_ahead
from vqcompress.search.viterbi import CpuViterbi
from vqcompress.working_memory import one_thread_each, usable_cores

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
SHAPES = [(640, 640), (1280, 1280), (10240, 1280), (1280, 5120)]
SAMPLES = [2, 16, 154, 2048, 8192]
CONVS = [((320, 320, 3, 3), 128), ((640, 640, 3, 3), 64), ((1280, 1280, 3, 3), 32), ((640, 1920, 1, 1), 64)]
AHEAD = [(1280, 1280)] * 6 + [(5120, 1280), (1280, 5120)]  # about a transformer block of SDXL, in a row
AHEAD_BYTES = (16_000_000, 64_000_000)
SEARCHES_ON_GPU = 32  # layers encoded at once: each search keeps one multiprocessor busy
Found = Iterator[tuple[str, Any]]


@dataclass(frozen=True)
class Section:
    """``run(lab)`` yields results; ``budget`` are the seconds after which it is ended, ``needs`` modules that the list
    of packages above lacks."""

    name: str
    budget: int
    run: Callable[[Lab], Found]
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Modules that are needed and are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def outcome(check: Callable[[], object]) -> str:
    """``"ok"``, or the end of the traceback."""
    try:
        check()
    except Exception:  # noqa: BLE001 - one failure must not keep the rest from being seen
        return traceback.format_exc(limit=3)
    return "ok"


def compile_all(lab: Lab) -> Found:
    """Every kernel that later sections launch, in as many processes as there are cores."""
    start, tasks = time.perf_counter(), compile_tasks(lab)
    workers = min(14, usable_cores(), len(tasks))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        failed = [found for found in pool.map(compiled, tasks) if found]
    yield "compiles", "ok" if not failed else "\n".join(failed)
    yield "compiled", {"kernels": len(tasks), "workers": workers, "seconds": time.perf_counter() - start}


def compile_tasks(lab: Lab) -> list[tuple[Any, ...]]:
    """CUDA kernels with what to compile them for, and calls that make Triton compile."""
    if lab.rehearsal:
        names = _kernel_names([(coded(packed_weight("trellis", (64, 8))), torch.bfloat16)])
        found = find_spec("cuda") is not None and find_spec(driver.CORE) is not None
        return [("cuda", name, (9, 0)) for name in names if found] + [("triton", "scalar", torch.float32, True)]
    capability = torch.cuda.get_device_capability()
    cases = [*every_weight(), *((coded(packed_weight(f, (64, 64))), dtype) for f in FORMATS for dtype in DTYPES)]
    cuda_tasks: list[tuple[Any, ...]] = [("cuda", name, capability) for name in _kernel_names(cases)]
    return cuda_tasks + [("triton", name, dtype, False) for name in FORMATS for dtype in DTYPES]


def _kernel_names(cases: list[tuple[Coded, torch.dtype]]) -> list[Kernel]:
    made = {launch.kernel for weight, dtype in cases for launch in launches([weight], dtype, [0])}
    dtypes = [dtype for dtype in {dtype for _, dtype in cases} if dtype != torch.float32]
    few = {ProductName("SHARED_HALF", dtype, tiles) for dtype in dtypes for tiles in TILES}
    return sorted({*made, *few, *map(FinishName, dtypes)}, key=str)


def compiled(task: tuple[Any, ...]) -> str:
    """Compile one, in a worker; what went wrong, or nothing. Compilers keep their results on disk."""

    def work() -> None:
        if task[0] == "cuda":
            driver.compiled(task[1], task[2], driver.program_cache())
            return
        _, name, dtype, rehearsal = task
        lab = Lab(rehearsal)
        weight = lab.here(coded(packed_weight(name, (128, 64))))
        with lab.triton():
            lab.triton_decoded(weight, dtype)
            for samples in lab.sized((1, 32), (1,)):
                triton.multiply(torch.ones(samples, 64, dtype=dtype, device=lab.device), *weight, None)

    found = outcome(work)
    return "" if found == "ok" else f"{task}: {found}"


def smoke(lab: Lab) -> Found:
    """What the machine is, whether its kernels were made, and one product."""
    yield "torch", torch.__version__
    if not lab.rehearsal:
        properties = torch.cuda.get_device_properties(0)
        yield "device", properties.name
        yield "capability", list(torch.cuda.get_device_capability())
        yield "multiprocessors", properties.multi_processor_count
        device = torch.device("cuda", torch.cuda.current_device())
        yield "CUDA C++ is served", driver.DRIVER.unsupported_reason(device) or "ok"
        yield "Triton is served", triton.device_unsupported_reason(device, False) or "ok"
    for name in FORMATS:
        weight = lab.here(coded(packed_weight(name, lab.sized((1280, 1280), (64, 32)))))
        yield f"decode {name}", outcome(lambda weight=weight: check_decoded(lab, weight, torch.bfloat16))
        yield f"product {name}", outcome(lambda weight=weight: check_products(lab, weight, torch.bfloat16, (2, 64)))
    for samples in (4, 512):
        yield f"CUDA graph, {samples} samples", outcome(lambda samples=samples: check_graph(lab, samples))


def check_decoded(lab: Lab, weight: Coded, dtype: torch.dtype) -> None:
    """CUDA C++ gives the reference's bits, on another stream too, and in the layout that the product reads."""
    expected = reference_dense(weight, dtype)
    for found in (lab.dense(weight, dtype), lab.elsewhere(lambda: lab.dense(weight, dtype))):
        same_bits(found, expected)


def same_bits(found: Tensor, expected: Tensor) -> None:
    """Raises where a weight differs."""
    if not torch.equal(found, expected):
        raise AssertionError(f"{int((found != expected).sum())} of {expected.numel()} weights differ")


def check_products(lab: Lab, weight: Coded, dtype: torch.dtype, counts: tuple[int, ...]) -> None:
    """Products at these numbers of samples, contiguous or not, within the dtype's rounding of the exact ones."""
    spec, shape, tensors = weight
    dense, bias = reference_dense(weight, torch.float32).double(), torch.randn(shape[0], device=lab.device)
    for samples in counts:
        wide = torch.randn(samples, 2 * shape[1], device=lab.device).to(dtype)
        for x in (wide[:, : shape[1]], wide[:, ::2]):
            y = kernels.linear(x, spec, shape, tensors, bias)
            close(y, F.linear(x.double(), dense, bias.double()))


def close(y: Tensor, expected: Tensor) -> None:
    """Raises where the relative error is more than rounding."""
    if y.shape != expected.shape:
        raise AssertionError(f"{tuple(y.shape)} instead of {tuple(expected.shape)}")
    if y.numel() and (error := float((y.double() - expected).norm() / expected.norm())) > TOLERANCE[y.dtype]:
        raise AssertionError(f"relative error {error:.2e} in {y.dtype}, {len(y)} samples")


@torch.no_grad()
def check_graph(lab: Lab, samples: int) -> None:
    """A recorded product follows its input."""
    weight = lab.here(coded(packed_weight("trellis", lab.sized((640, 640), (64, 32)))))
    x = torch.randn(samples, weight[1][1], device=lab.device, dtype=torch.bfloat16)
    y, replay = lab.recorded(lambda: kernels.linear(x, *weight, None))
    x.normal_()
    replay()
    lab.synchronize()
    close(y, F.linear(x.double(), reference_dense(weight, torch.float32).double()))


def bandwidth(lab: Lab) -> Found:
    """What the device's memory and its matrix units give here."""
    source = torch.ones(lab.sized(64 << 20, 1 << 10), dtype=torch.float32, device=lab.device)
    target = torch.empty_like(source)
    yield "copied bytes a second", 2 * source.nbytes / lab.seconds([lambda: target.copy_(source)])
    side = lab.sized(8192, 32)
    a, b = (torch.randn(side, side, device=lab.device, dtype=torch.bfloat16) for _ in range(2))
    yield "bfloat16 operations a second", 2 * side**3 / lab.seconds([lambda: a @ b])


@torch.no_grad()
def decoding(lab: Lab) -> Found:
    """All of SDXL's layers decoded once, as one CUDA graph, and the host's part of a call."""
    chosen = lab.sized(sdxl_layers.shapes(), [(64, 32), (32, 8, 3, 3)])
    for name in lab.sized(("trellis", "additive"), ("trellis",)):
        weights = [coded(packed_weight(name, shape, 3, lab.device, seed)) for seed, shape in enumerate(chosen)]
        count = sum(math.prod(shape) for shape in chosen)
        for label, decode in ((name, lab.decoded), (f"{name}, Triton", lab.triton_decoded)):
            taken = lab.seconds([lambda w=w, d=decode: d(w, torch.bfloat16) for w in weights])
            yield f"SDXL, {label}", {"seconds": taken, "weights": count, "layers": len(chosen)}
        laid = lab.seconds([lambda w=w: lab.dense(w, torch.bfloat16) for w in weights])
        yield f"SDXL, {name}, filters channels last", {"seconds": laid, "weights": count, "layers": len(chosen)}
        del weights
    layer = matmul.packed_layer("trellis", lab.sized((640, 640), (64, 32)), 3, lab.device, 0)
    dense = matmul.dense_layer(tuple(layer.dense_shape), torch.bfloat16, lab.device)
    x = torch.zeros(64, layer.in_features, dtype=torch.bfloat16, device=lab.device)
    yield "host, packed call", lab.host_seconds(layer, x)
    yield "host, dense call", lab.host_seconds(dense, x)


@torch.no_grad()
def decoding_ahead(lab: Lab) -> Found:
    """Layers of SDXL's transformer blocks one after the other, eager and in a graph: each decoding for itself, and with
    groups of several sizes decoded on a second stream. Outputs must be the same bits in every call."""
    shapes, samples = lab.sized((AHEAD, 2048), ([(64, 64)] * 3, 40))
    network = chain(lab, shapes * lab.sized(12, 2))
    x = torch.randn(samples, shapes[0][1], dtype=torch.bfloat16, device=lab.device)
    expected = network(x)
    for group_bytes in (0, *lab.sized(AHEAD_BYTES, (30_000,))):
        for blocks in (1, 2, 4) if group_bytes else (0,):
            set_decode_ahead(network, group_bytes, blocks)
            name = f"groups of {group_bytes / 1e6:g} MB, {blocks} blocks" if group_bytes else "for itself"
            yield f"{name}, same bits", outcome(partial(check_ahead, lab, network, x, expected))
            taken = {"graph": lab.seconds([partial(network, x)]), "eager": lab.eager_seconds(partial(network, x))}
            yield name, taken | {"launches": ahead_launches(network)}


def chain(lab: Lab, shapes: list[tuple[int, int]]) -> nn.Sequential:
    """Packed layers in a row, with a norm before each, which keeps numbers finite."""
    layers: list[nn.Module] = []
    for seed, shape in enumerate(shapes):
        layers += [nn.RMSNorm(shape[1]), matmul.packed_layer("trellis", shape, 3, lab.device, seed)]
    return nn.Sequential(*layers).to(lab.device, torch.bfloat16)


def check_ahead(lab: Lab, network: nn.Module, x: Tensor, expected: Tensor, calls: int = 30) -> None:
    """Each of many calls gives the same, whatever the two streams do meanwhile."""
    for _ in range(lab.sized(calls, 5)):
        same_bits(network(x), expected)


def ahead_launches(network: nn.Module) -> list[int]:
    """Of each group, if there are any."""
    found = network.__dict__.get(STATE)
    return [] if found is None else found.launches


@torch.no_grad()
def products(lab: Lab) -> Found:
    """Packed against dense layers, weights from memory: enough copies of each in turn."""
    for shape in lab.sized(SHAPES, [(64, 32)]):
        copies = lab.sized(math.ceil(matmul.CACHE_BYTES["cuda"] / (2 * math.prod(shape))), 1)
        ways = {"dense": [matmul.dense_layer(shape, torch.bfloat16, lab.device) for _ in range(copies)]}
        for name in lab.sized(("trellis", "additive"), ("trellis",)):
            ways[name] = [matmul.packed_layer(name, shape, 3, lab.device, seed) for seed in range(copies)]
        for name, make in PEERS.items():
            if (first := make(shape, torch.bfloat16, lab.device)) is not None:
                ways[name] = [first]  # type: ignore[list-item]
        for samples in lab.sized(SAMPLES, [2, 40]):
            x = torch.randn(samples, shape[1], dtype=torch.bfloat16, device=lab.device)
            each = {way: lab.seconds([partial(m, x) for m in ms]) / len(ms) for way, ms in ways.items()}
            ratios = {way: taken / each["dense"] for way, taken in each.items()}
            yield f"{shape[0]}x{shape[1]}, {samples} samples", {"seconds": each, "of dense": ratios}
            if samples <= triton.MOST_SAMPLES:
                weights = [coded(packed_weight("trellis", shape, 3, lab.device, seed)) for seed in range(copies)]
                with lab.triton():
                    taken = lab.seconds([partial(triton.multiply, x, *weight, None) for weight in weights]) / copies
                found = {"seconds": taken, "of dense": taken / each["dense"]}
                yield f"{shape[0]}x{shape[1]} by {samples}, Triton", found


@torch.no_grad()
def convolutions(lab: Lab) -> Found:
    """Packed against dense convolutions, channels last, at the sizes that SDXL has them."""
    for shape, side in lab.sized(CONVS, [((32, 16, 3, 3), 4)]):
        weight, channels_last = coded(packed_weight("trellis", shape, 3, lab.device)), torch.channels_last
        x = torch.randn(2, shape[1], side, side, dtype=torch.bfloat16, device=lab.device)
        x = x.to(memory_format=channels_last)
        dense = reference_dense(weight, x.dtype).contiguous(memory_format=channels_last)
        geometry = kernels.ConvGeometry(padding=(shape[2] // 2, shape[3] // 2))
        ours = partial(kernels.conv2d, x, *weight, None, geometry)
        taken = lab.seconds([ours] * 4) / 4
        ratio = 4 * taken / lab.seconds([partial(F.conv2d, x, dense, None, *geometry)] * 4)
        name = "x".join(map(str, shape))
        yield f"{name}, {side} px", {"seconds": taken, "of dense": ratio}
        expected = F.conv2d(x.float(), dense.float(), None, *geometry).double()
        yield f"{name} convolves", outcome(partial(close, ours(), expected))


def sdxl_step(lab: Lab) -> Found:
    """A step of SDXL at 1024 px with guidance, eager and in a graph, and its peak memory."""
    yield "lines", unet_step.benchmark(["sdxl"], ["trellis"], 3, False, lab.rehearsal, lab.device)


def dit_step(lab: Lab) -> Found:
    """A step of DiT-XL/2."""
    yield "lines", unet_step.benchmark(["dit"], ["trellis"], 3, False, lab.rehearsal, lab.device)


def correctness(lab: Lab) -> Found:
    """Every format, rate, transform and odd shape against the reference; products, compilation, repetition."""
    for index, (weight, dtype) in enumerate(every_weight()[:: lab.sized(1, 16)]):
        own = lab.here(weight)
        name = f"{index} {weight[0].format} {'x'.join(map(str, weight[1]))} {dtype}"
        yield f"decode {name}", outcome(lambda own=own, dtype=dtype: check_decoded(lab, own, dtype))
    for name in FORMATS:
        weight = lab.here(coded(packed_weight(name, lab.sized((640, 320), (64, 16)))))
        for dtype in lab.sized(DTYPES, DTYPES[-1:]):
            yield f"Triton {name} {dtype}", outcome(lambda w=weight, d=dtype: check_triton(lab, w, d))
            counts = lab.sized((0, 1, 3, 16, 17, 32, 33), (0, 1, 33))
            yield f"products {name} {dtype}", outcome(lambda w=weight, d=dtype, c=counts: check_products(lab, w, d, c))
        yield f"torch.compile {name}", outcome(lambda name=name: check_compiled(lab, name))
        yield f"repeats {name}", outcome(lambda weight=weight: check_repeats(lab, weight))
    yield "float16 does not overflow", outcome(lambda: check_overflow(lab))


def check_triton(lab: Lab, weight: Coded, dtype: torch.dtype) -> None:
    """Triton's kernels give the reference's bits."""
    assert plain(weight)
    same_bits(lab.triton_decoded(weight, dtype), reference.decode_transposed(*weight, dtype))


@torch.no_grad()
def check_compiled(lab: Lab, name: str) -> None:
    """One graph, no second compilation for new contents."""
    layer = matmul.packed_layer(name, lab.sized((640, 320), (64, 16)), 3, lab.device, 0)
    run = torch.compile(lambda x: layer(x).relu(), fullgraph=True, backend=lab.sized("inductor", "eager"))
    dense = layer.dense_weight().double()
    for _ in range(2):
        x = torch.randn(64, layer.in_features, device=lab.device, dtype=torch.bfloat16)
        close(run(x), F.linear(x.double(), dense).relu())


def check_repeats(lab: Lab, weight: Coded) -> None:
    """The same input gives the same bits."""
    x = torch.randn(5, weight[1][1], device=lab.device, dtype=torch.float16)
    first = kernels.linear(x, *weight, None)
    for _ in range(20):
        same_bits(kernels.linear(x, *weight, None), first)


def check_overflow(lab: Lab) -> None:
    """Unscaled sums beyond float16's range, scaled results within it."""
    spec, shape, tensors = coded(packed_weight("trellis", (640, 640), 3, lab.device))
    tensors["scale"].fill_(1e-3)
    for samples in (1, 64):
        x = torch.full((samples, 640), 2e4, device=lab.device, dtype=torch.float16)
        if not torch.isfinite(kernels.linear(x, spec, shape, tensors, None)).all():
            raise AssertionError("infinite outputs")


def viterbi(lab: Lab) -> Found:
    """The search for trellis codes: as good as the CPU's, and how fast."""
    from vqcompress.search.triton_viterbi import search_columns

    for state_bits, rate in lab.sized(((8, 1), (12, 2), (12, 3), (12, 6), (14, 4)), ((8, 3),)):
        name = f"search {state_bits} {rate}"
        yield name, outcome(lambda bits=state_bits, rate=rate: check_viterbi(lab, bits, rate))
    shape, state_bits = lab.sized((512, 1280), (2, 24)), lab.sized(12, 8)
    targets, scale = torch.randn(shape, device=lab.device), torch.ones(shape[1], device=lab.device)
    table = value_table(state_bits, 3, 0.0).to(lab.device)
    with lab.triton():
        taken = lab.seconds([lambda: search_columns(targets, scale, table, 3)], rounds=3)
    yield "searched weights a second", targets.numel() / taken


def check_viterbi(lab: Lab, state_bits: int, rate: int) -> None:
    """Paths as cheap as the CPU's, that decode to what they say; other codes only where sums round differently."""
    from vqcompress.search.triton_viterbi import search_columns

    table, outputs = value_table(state_bits, rate, 0.0), lab.sized(200, 24)
    targets, scale = torch.randn(lab.sized(8, 2), outputs), 0.5 + torch.rand(outputs)
    with lab.triton():
        symbols, values = search_columns(targets.to(lab.device), scale.to(lab.device), table.to(lab.device), rate, 5)
    if not torch.equal(table.float()[window_states(symbols.cpu().int(), rate, state_bits).long()], values.cpu()):
        raise AssertionError("the symbols do not decode to the values")
    search = CpuViterbi(outputs, state_bits, {rate: table}, 5)
    for target, own in zip(targets, values.cpu(), strict=True):
        cost, expected = ((target - scale * v).square().sum() for v in (own, search(target, scale, rate)[1]))
        if abs(float(cost / expected) - 1) > 1e-4:
            raise AssertionError(f"cost {float(cost):.6f}, the CPU found {float(expected):.6f}")


def encoding(lab: Lab) -> Found:
    """Whole layers encoded side by side as a model's are, default settings, by the wall clock."""
    from vqcompress.quantizers import TrellisSettings, quantize_weight

    shape = lab.sized((1280, 640), (32, 16))
    for search in lab.sized(("cpu", "gpu"), ("cpu",)):
        at_once = lab.sized(max(SEARCHES_ON_GPU, usable_cores()) if search == "gpu" else usable_cores(), 1)
        weight, moment, settings = torch.randn(shape), torch.eye(shape[1]) + 0.5, TrellisSettings(search=search)

        def encode(seed: int, weight=weight, moment=moment, settings=settings) -> None:
            quantize_weight(weight, moment, seed=seed, settings=settings)

        encode(0)
        start = time.perf_counter()
        with one_thread_each(), ThreadPoolExecutor(at_once) as pool:
            list(pool.map(encode, range(at_once)))
        yield f"encoded weights a second, {search}", at_once * weight.numel() / (time.perf_counter() - start)


SECTIONS = (
    Section("compile", 100, compile_all),
    Section("smoke", 40, smoke),
    Section("bandwidth", 20, bandwidth),
    Section("decoding", 60, decoding),
    Section("products", 80, products),
    Section("decoding ahead", 40, decoding_ahead),
    Section("convolutions", 40, convolutions),
    Section("SDXL step", 90, sdxl_step, ("diffusers",)),
    Section("correctness", 90, correctness),
    Section("Viterbi", 40, viterbi, ("numba",)),
    Section("encoding", 50, encoding, ("pydantic", "scipy", "sklearn", "threadpoolctl")),
    Section("DiT step", 40, dit_step, ("diffusers",)),
)


def run_section(name: str, lab: Lab, fault: str | None = None) -> Found:
    """The results of one section. ``fault``, ``"NAME=abort"`` or ``"NAME=hang"``, is what tests let happen to a section
    after its first result."""
    section = next(section for section in SECTIONS if section.name == name)
    torch.manual_seed(0)
    warnings.filterwarnings("error", DIFFERS)  # elsewhere another kernel serves then; here it must be seen
    for found in section.run(lab):
        yield found
        if fault == f"{name}=abort":
            os.abort()
        if fault == f"{name}=hang":
            time.sleep(3600)
