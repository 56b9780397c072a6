"""Build, check and time every GPU kernel: ``python benchmarks/gpu_check.py --out results`` on a machine with a GPU.

Compiles what is launched, holds every format and many geometries against the reference in float32, float16 and
bfloat16, runs the operators under ``torch.compile`` and in a CUDA graph, then runs ``matmul.py`` and ``unet_step.py``
and says which of the project's targets are met. Ends with a non-zero code when a check fails; ``--quick`` leaves the
timings out. Each result is appended to ``OUT/results.jsonl`` as it comes, so that a crash loses one; all of them go to
``OUT/gpu_check.json``. Checks need no diffusers.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import click
import torch
import torch.nn.functional as F
from torch import Tensor

import matmul
import unet_step
from synthetic import FORMATS, packed_weight
from vqcompress import kernels
from vqcompress.formats.trellis import window_states
from vqcompress.formats.trellis_table import value_table
from vqcompress.kernels import reference
from vqcompress.kernels.cuda import operations as cuda
from vqcompress.kernels.triton import operations as triton
from vqcompress.kernels.triton import trellis as triton_trellis
from vqcompress.matrix_view import from_transposed
from vqcompress.quantized_weight import QuantizedWeight
from vqcompress.quantizers import TrellisSettings, quantize_weight
from vqcompress.quantizers.layer_error import relative_error
from vqcompress.search.triton_viterbi import search_columns
from vqcompress.search.viterbi import CpuViterbi
from vqcompress.working_memory import one_thread_each, usable_cores

SHAPES = [(640, 640), (1280, 1280), (10240, 1280), (1152, 4608), (321, 77), (45, 1), (1000, 333), (320, 4, 3, 3)]
DEVICE = "cuda"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
TABLE_PLACES = {"shared memory": 12, "L1 cache": 0}
Check = tuple[str, Callable[[], None]]


@click.command(help=__doc__)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("gpu_check"), show_default=True)
@click.option("--quick", is_flag=True, help="Checks only.")
@click.option("--compiled", is_flag=True, help="Time torch.compile in the whole-network benchmark too.")
def main(out: Path, quick: bool, compiled: bool) -> None:
    if not torch.cuda.is_available():
        raise click.UsageError(
            "torch sees no GPU here; on a CPU, tests/kernels runs the same kernels under Triton's interpreter"
        )
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "results.jsonl")
    results["device"] = report["device"]
    report["checks"] = run_checks(all_checks(), results)
    if not quick:
        timings(compiled, results)
        report |= results
        report["targets"] = targets(report)
    (out / "gpu_check.json").write_text(json.dumps(report, indent=1))
    failed = [name for name, error in report["checks"].items() if error]
    print(f"{len(report['checks']) - len(failed)} checks passed, {len(failed)} failed: {', '.join(failed) or 'none'}")
    for name, target in report.get("targets", {}).items():
        print(f"{'met' if target['met'] else 'NOT MET':<8} {name}: {target['measured']} (target {target['target']})")
    sys.exit(bool(failed))


class Results(dict[str, Any]):
    """Results by name; each is appended to a file as it is set."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: value}) + "\n")


def run_checks(checks: Iterator[Check], results: dict[str, Any]) -> dict[str, str]:
    """Name -> what went wrong, empty where nothing did."""
    found = {}
    for name, check in checks:
        start = time.perf_counter()
        try:
            check()
            found[name] = ""
        except Exception:  # noqa: BLE001 - one failure must not keep the rest from being seen
            found[name] = traceback.format_exc(limit=3)
        results[name] = found[name] or "ok"
        print(f"{'ok' if not found[name] else 'FAILED':<7}{name} ({time.perf_counter() - start:.1f} s)", flush=True)
        if found[name]:
            print(found[name])
    return found


def all_checks() -> Iterator[Check]:
    """Every check there is."""
    for name in FORMATS:
        for shape in SHAPES:
            weight = packed_weight(name, shape, 3, DEVICE)
            yield f"decode {name} {shape}", lambda weight=weight: check_decode(weight)
            yield f"decode {name} {shape} in CUDA C++", lambda weight=weight: check_cuda_decode(weight)
            if len(shape) == 2:
                yield f"multiply {name} {shape}", lambda weight=weight: check_multiply(weight)
        small = packed_weight(name, (640, 640), 3, DEVICE)
        yield f"CUDA graph {name}", lambda weight=small: check_graph(weight)
        yield f"torch.compile {name}", lambda weight=small: check_compiled(weight)
        yield f"repeatable {name}", lambda weight=small: check_repeatable(weight)
    yield "float16 does not overflow", check_overflow
    for state_bits, rate in ((8, 1), (12, 2), (12, 3), (12, 6), (14, 4)):
        yield f"Viterbi {state_bits} {rate}", lambda bits=state_bits, rate=rate: check_viterbi(bits, rate)
    yield "a layer searched on the GPU", check_searched_layer


def tensors(weight: QuantizedWeight) -> dict[str, Tensor]:
    """All of a weight's tensors, a shared codebook included."""
    return {**weight.tensors, **weight.shared}


def check_decode(weight: QuantizedWeight, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
    """Bit for bit, in every dtype; the table's places give the same."""
    for dtype in dtypes:
        expected = reference.decode_transposed(weight.spec, weight.shape, tensors(weight), dtype)
        for bits in TABLE_PLACES.values():
            with table_place(bits):
                found = triton.decode_transposed(weight.spec, weight.shape, tensors(weight), dtype)
            if not torch.equal(found, expected):
                raise AssertionError(f"{int((found != expected).sum())} of {found.numel()} weights differ in {dtype}")


def check_cuda_decode(weight: QuantizedWeight) -> None:
    """Bit for bit, in every dtype, and again on another stream; a filter also channels last."""
    reason = cuda.DRIVER.unsupported_reason(torch.device(DEVICE, torch.cuda.current_device()))
    if reason:
        raise AssertionError(reason)
    for dtype in DTYPES:
        expected = reference.decode_transposed(weight.spec, weight.shape, tensors(weight), dtype)
        found = [cuda.decode_transposed(weight.spec, weight.shape, tensors(weight), dtype)]
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            found.append(cuda.decode_transposed(weight.spec, weight.shape, tensors(weight), dtype))
        side.synchronize()
        for own in found:
            if not torch.equal(own, expected):
                raise AssertionError(f"{int((own != expected).sum())} of {own.numel()} weights differ in {dtype}")
        dense = cuda.dense_weight(weight.spec, weight.shape, tensors(weight), dtype)
        if not torch.equal(dense, from_transposed(expected, weight.shape)):
            raise AssertionError(f"another weight in its own layout, in {dtype}")


class table_place:
    """Trellis tables of up to so many state bits in shared memory while this lives."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def __enter__(self) -> None:
        self.before, triton_trellis.STATE_BITS_IN_SHARED = triton_trellis.STATE_BITS_IN_SHARED, self.bits

    def __exit__(self, *error: object) -> None:
        triton_trellis.STATE_BITS_IN_SHARED = self.before


def check_multiply(weight: QuantizedWeight) -> None:
    """Few samples, at every count that takes another path, contiguous or not."""
    dense = weight.decode()
    for dtype in DTYPES:
        bias = torch.randn(weight.shape[0], device=DEVICE)
        for samples in (0, 1, 3, 16, 17, 32):
            wide = torch.randn(samples, 2 * weight.shape[1], device=DEVICE).to(dtype)
            for x in (wide[:, : weight.shape[1]], wide[:, ::2]):
                y = triton.multiply(x, weight.spec, weight.shape, tensors(weight), bias)
                close(y, F.linear(x.double(), dense.double(), bias.double()), dtype)


def close(y: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within the dtype's rounding of the exact product."""
    if y.dtype != dtype or y.shape != expected.shape:
        raise AssertionError(f"{y.dtype} {tuple(y.shape)} instead of {dtype} {tuple(expected.shape)}")
    if y.numel() and (error := float((y.double() - expected).norm() / expected.norm())) > TOLERANCE[dtype]:
        raise AssertionError(f"relative error {error:.2e} in {dtype}, {len(y)} samples")


def product(weight: QuantizedWeight, x: Tensor) -> Tensor:
    """Through the operator, as a layer calls it."""
    return kernels.linear(x, weight.spec, weight.shape, tensors(weight), None)


@torch.no_grad()
def check_graph(weight: QuantizedWeight) -> None:
    """A recorded product follows its input, for few samples and many."""
    for samples in (4, 512):
        x = torch.randn(samples, weight.shape[1], device=DEVICE, dtype=torch.bfloat16)
        product(weight, x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = product(weight, x)
        x.normal_()
        graph.replay()
        close(y, F.linear(x.double(), weight.decode().double()), x.dtype)


@torch.no_grad()
def check_compiled(weight: QuantizedWeight) -> None:
    """One graph, no second compilation for new contents."""
    run = torch.compile(lambda x: product(weight, x).relu(), fullgraph=True)
    for _ in range(2):
        x = torch.randn(64, weight.shape[1], device=DEVICE, dtype=torch.bfloat16)
        close(run(x), F.linear(x.double(), weight.decode().double()).relu(), x.dtype)


def check_repeatable(weight: QuantizedWeight) -> None:
    """The same bits every time."""
    x = torch.randn(5, weight.shape[1], device=DEVICE, dtype=torch.float16)
    first = product(weight, x)
    if not all(torch.equal(first, product(weight, x)) for _ in range(20)):
        raise AssertionError("the same input gave another output")


def check_overflow() -> None:
    """Unscaled sums beyond float16's range, scaled results within it."""
    weight = packed_weight("trellis", (640, 640), 3, DEVICE)
    weight.tensors["scale"].fill_(1e-3)
    for samples in (1, 64):
        x = torch.full((samples, 640), 2e4, device=DEVICE, dtype=torch.float16)
        y = product(weight, x)
        if not torch.isfinite(y).all():
            raise AssertionError("infinite outputs")


def check_viterbi(state_bits: int, rate: int) -> None:
    """Paths as cheap as the CPU's, that decode to what they say; other codes only where sums round differently."""
    table, outputs = value_table(state_bits, rate, 0.0), 200
    targets, scale = torch.randn(8, outputs), 0.5 + torch.rand(outputs)
    symbols, values = search_columns(targets.to(DEVICE), scale.to(DEVICE), table.to(DEVICE), rate, 5)
    if not torch.equal(table.float()[window_states(symbols.cpu().int(), rate, state_bits).long()], values.cpu()):
        raise AssertionError("the symbols do not decode to the values")
    search = CpuViterbi(outputs, state_bits, {rate: table}, 5)
    for target, own in zip(targets, values.cpu(), strict=True):
        cost, expected = ((target - scale * v).square().sum() for v in (own, search(target, scale, rate)[1]))
        if abs(float(cost / expected) - 1) > 1e-4:
            raise AssertionError(f"cost {float(cost):.6f}, the CPU found {float(expected):.6f}")


def check_searched_layer() -> None:
    """A layer with feedback and polish: an error as small as that of the CPU's search."""
    weight, inputs = torch.randn(640, 320), torch.randn(2048, 320) @ torch.randn(320, 320)
    moment = inputs.t() @ inputs / len(inputs)
    on_cpu, on_gpu = (
        relative_error(
            weight,
            quantize_weight(weight, moment, settings=TrellisSettings(state_bits=10, search=where)).decode(),
            moment,
        )
        for where in ("cpu", "gpu")
    )
    if abs(on_gpu / on_cpu - 1) > 1e-2:
        raise AssertionError(f"error {on_gpu:.3e}, the CPU's search leaves {on_cpu:.3e}")


def search_speed() -> float:
    """Weights a second that the search codes at 12 state bits and 3 bits a weight, as many columns at once as keep the
    device busy."""
    targets, scale = torch.randn(512, 1280, device=DEVICE), torch.ones(1280, device=DEVICE)
    table = value_table(12, 3, 0.0).to(DEVICE)
    return targets.numel() / matmul.seconds([lambda: search_columns(targets, scale, table, 3)], DEVICE)


def encoding_speed(search: Literal["cpu", "gpu"]) -> float:
    """Weights a second of whole layers encoded side by side as a model's are, default settings, wall clock."""
    from vqcompress.stages.encoding import SEARCHES_ON_GPU  # which imports diffusers

    at_once = max(SEARCHES_ON_GPU, usable_cores()) if search == "gpu" else usable_cores()
    weight, moment, settings = torch.randn(1280, 640), torch.eye(640) + 0.5, TrellisSettings(search=search)

    def encode(seed: int) -> None:
        quantize_weight(weight, moment, seed=seed, settings=settings)

    encode(0)
    start = time.perf_counter()
    with one_thread_each(), ThreadPoolExecutor(at_once) as pool:
        list(pool.map(encode, range(at_once)))
    return at_once * weight.numel() / (time.perf_counter() - start)


def timings(compiled: bool, found: dict[str, Any]) -> None:
    """Everything that has a target, into ``found``."""
    shapes = matmul.parse_shapes("sdxl,dit")
    report = matmul.benchmark(shapes, [1, 16, 32, 154, 2048, 8192], list(FORMATS), 3, torch.bfloat16, "cuda")
    print(matmul.markdown(report), flush=True)
    found["matmul"] = report
    for place, bits in TABLE_PLACES.items():
        with table_place(bits):
            found[f"trellis tables in {place}"] = matmul.benchmark(
                [(1280, 1280)], [1, 16], ["trellis"], 3, torch.bfloat16, "cuda"
            )
            print(
                f"\n### trellis tables in {place}\n\n{matmul.markdown(found[f'trellis tables in {place}'])}", flush=True
            )
    found["decode sdxl"] = decode_sdxl()
    found["searched weights a second"] = search_speed()
    print(f"Viterbi: {found['searched weights a second'] / 1e6:.1f} M weights a second", flush=True)
    places: tuple[Literal["cpu", "gpu"], ...] = ("cpu", "gpu")
    for search in places:
        speed = found[f"encoded weights a second, {search}"] = encoding_speed(search)
        print(f"encoding, search on the {search}: {speed / 1e6:.2f} M weights a second", flush=True)
    found["step"] = unet_step.benchmark(["sdxl", "dit"], ["trellis", "additive"], 3, compiled, False, "cuda")
    print(unet_step.markdown(found["step"]), flush=True)


@torch.no_grad()
def decode_sdxl() -> dict[str, float]:
    """Seconds to decode all of SDXL's layers once, in bfloat16, as one CUDA graph."""
    with torch.device("meta"):
        network = unet_step.sdxl(False)
    found = {}
    for name in ("trellis", "additive"):
        weights = list(unet_step.random_codes(network, name, 3, "cuda").values())
        for label, kernel in (("", cuda.decode_transposed), (", Triton", triton.decode_transposed)):
            work = [lambda w=w, k=kernel: k(w.spec, w.shape, tensors(w), torch.bfloat16) for w in weights]
            found[name + label] = matmul.seconds(work, "cuda") * len(work)
            print(f"decode all of SDXL, {name}{label}: {1e3 * found[name + label]:.2f} ms")
    return found


def targets(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The project's targets for an H200, and what was measured."""
    lines = report["matmul"]["lines"]
    decode = [line for line in lines if line["what"] == "decode" and line["candidate"] != "scalar"]
    ours = [line for line in lines if line["what"] == "product" and line["candidate"] in ("trellis", "additive")]
    steps = [line for line in report["step"] if line["model"] == "sdxl" and line["weights"] != "dense"]
    best_step = min(line["ratio_to_dense"] for line in steps)
    saved = min(line["bytes_saved"] for line in steps)
    share = min(line["share_of_copy_bandwidth"] for line in decode)
    many = max(line["ratio_to_dense"] for line in ours if line["samples"] >= 2048)
    few = max(line["ratio_to_dense"] for line in ours if line["samples"] <= 16)
    whole = report["decode sdxl"]["trellis"]
    return {
        "decode, share of copy bandwidth": against_target(f"{share:.2f}", ">= 0.50", share >= 0.5),
        "decode of all SDXL layers": against_target(f"{1e3 * whole:.2f} ms", "<= 2 ms", whole <= 2e-3),
        "linear, 2048 samples or more": against_target(f"{many:.2f} x dense", "<= 1.15 x", many <= 1.15),
        "linear, 16 samples or fewer": against_target(f"{few:.2f} x dense", "<= 0.5 x", few <= 0.5),
        "SDXL step": against_target(f"{best_step:.3f} x dense", "<= 1.10 x", best_step <= 1.1),
        "SDXL step, memory saved": against_target(f"{saved / 1e9:.2f} GB", ">= 3.8 GB", saved >= 3.8e9),
    }


def against_target(measured: str, target: str, met: bool) -> dict[str, Any]:
    """One target."""
    return {"measured": measured, "target": target, "met": met}


if __name__ == "__main__":
    main()
