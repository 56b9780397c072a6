"""Compiling and launching ``decode.cu`` through NVIDIA's cuda-core, which nothing imports before a GPU is there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vqcompress.errors import first_line
from vqcompress.kernels.cuda.jobs import THREADS, KernelName, Launch
from vqcompress.kernels.first_use import Verdicts
from vqcompress.kernels.tensor_cache import refuse_capture

CORE = "cuda.core"  # of the distribution cuda-core, which the extra gpu installs
MINIMUM_CAPABILITY = (7, 5)
BLOCKS_PER_PROCESSOR = 4  # of 256 threads with a table of 16 kB: two thirds of what registers allow
OPTIONS = {"std": "c++17", "fma": False}  # products and sums round one by one, as the reference's
CACHE_BYTES = 256 << 20
PROBE = KernelName("trellis", (6,), "SHARED_FLOAT", 1, torch.float16)


class Kernel(Protocol):
    """What is compiled: the ``line`` that makes function ``symbol`` after the files ``sources``."""

    @property
    def symbol(self) -> str: ...

    @property
    def line(self) -> str: ...

    @property
    def sources(self) -> tuple[str, ...]: ...

    def __hash__(self) -> int: ...


class Function(Protocol):
    """A compiled kernel whose arguments differ from call to call."""

    def __call__(self, stream: int, grid: int, threads: int, shared: int, *arguments: Any) -> None:
        """Launch it on ``stream`` (a handle). Tensors stand for their addresses, None for no address."""


class Prepared(Protocol):
    """A launch whose every argument but the output is settled."""

    def __call__(self, stream: int, out: int) -> None:
        """Launch on ``stream`` (a handle), writing to the address ``out``."""


class Driver(Protocol):
    """What decoding needs of a device. Tests stand in for it."""

    verdicts: Verdicts | None
    """What is known of each device's kernels; None where they need no trial."""

    def unsupported_reason(self, device: torch.device) -> str: ...

    def prepare(self, launch: Launch, jobs: torch.Tensor, blocks: int = BLOCKS_PER_PROCESSOR) -> Prepared:
        """Make ``launch`` ready; ``jobs`` are its records, as bytes on the device. At most ``blocks`` of threads are on
        a multiprocessor."""

    def function(self, kernel: Kernel, device: torch.device) -> Function:
        """``kernel``, compiled for ``device``."""

    def capability(self, device: torch.device) -> tuple[int, int]:
        """The GPU's compute capability."""

    def processors(self, device: torch.device) -> int:
        """How many multiprocessors it has."""

    def stream(self, device: torch.device) -> int:
        """The handle of torch's current stream."""

    def finish(self, device: torch.device) -> None:
        """Wait until what was computed on the current stream can be read on any."""

    def use(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        """Let the memory of ``tensors``, once freed, wait for the current stream."""


class CudaDriver:
    """cuda-core's compiler and launcher, on torch's streams."""

    def __init__(self) -> None:
        self.verdicts: Verdicts | None = Verdicts()

    def unsupported_reason(self, device: torch.device) -> str:
        """Why nothing can be compiled for or launched on ``device``, or an empty string. Found once for a device."""
        if device.type != "cuda":
            return f"no GPU: the input is on {device.type}"
        if torch.version.hip is not None:
            return "CUDA C++, and this GPU is AMD's"
        return _probed(device if device.index is not None else torch.device("cuda", torch.cuda.current_device()))

    def prepare(self, launch: Launch, jobs: torch.Tensor, blocks: int = BLOCKS_PER_PROCESSOR) -> Prepared:
        core = import_module(CORE)
        kernel, properties = _kernel(launch.kernel, jobs.device), torch.cuda.get_device_properties(jobs.device)
        grid = min(launch.tiles, blocks * properties.multi_processor_count)
        config = core.LaunchConfig(grid=grid, block=THREADS, shmem_size=launch.shared)
        arguments = jobs.data_ptr(), np.int32(len(launch.jobs)), np.uint32(launch.tiles)

        def run(stream: int, out: int) -> None:
            core.launch(_stream(stream), config, kernel, *arguments, out)

        return run

    def function(self, kernel: Kernel, device: torch.device) -> Function:
        core = import_module(CORE)
        code = _kernel(kernel, device)

        def run(stream: int, grid: int, threads: int, shared: int, *arguments: Any) -> None:
            core.launch(_stream(stream), _config(grid, threads, shared), code, *map(_plain, arguments))

        return run

    def capability(self, device: torch.device) -> tuple[int, int]:
        return torch.cuda.get_device_capability(device)

    def processors(self, device: torch.device) -> int:
        return torch.cuda.get_device_properties(device).multi_processor_count

    def stream(self, device: torch.device) -> int:
        return torch._C._cuda_getCurrentRawStream(device.index)

    def finish(self, device: torch.device) -> None:
        torch.cuda.current_stream(device).synchronize()

    def use(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        for tensor in tensors:
            tensor.record_stream(torch.cuda.current_stream(device))


DRIVER = CudaDriver()


@cache
def source(names: tuple[str, ...] = PROBE.sources) -> str:
    """The text of these files, one after the other."""
    return "\n".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in names)


def compiled(kernel: Kernel, capability: tuple[int, int], kept: Any = None) -> Any:
    """The machine code of a kernel, for a GPU that need not be here. Raises what cuda-core and NVRTC raise.

    It is looked for, and left, in ``kept``, a program cache of cuda-core.
    """
    core = import_module(CORE)
    options = core.ProgramOptions(arch=f"sm_{capability[0]}{capability[1]}", **OPTIONS)
    program = core.Program(f"{source(kernel.sources)}\n{kernel.line}\n", code_type="c++", options=options)
    if kept is not None:
        try:
            return program.compile("cubin", cache=kept)
        except (OSError, TypeError):  # a full disk or a folder of another user; cuda-core 1.0 takes no cache
            pass
    return program.compile("cubin")


@cache
def program_cache() -> Any:
    """Compiled kernels of earlier processes, in cuda-core's folder of the user; None where it cannot be made.

    Its keys have the source, the options and the version of NVRTC.
    """
    try:
        return import_module(f"{CORE}.utils").FileStreamProgramCache(max_size_bytes=CACHE_BYTES)
    except (ImportError, AttributeError, OSError, TypeError):
        return None


@cache
def _stream(handle: int) -> Any:
    return import_module(CORE).Stream.from_handle(handle)


@lru_cache(maxsize=1024)
def _config(grid: int, threads: int, shared: int) -> Any:
    return import_module(CORE).LaunchConfig(grid=grid, block=threads, shmem_size=shared)


def _plain(argument: Any) -> Any:
    """An argument as cuda-core takes it: addresses are plain integers."""
    if argument is None:
        return 0
    return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument


@cache
def _kernel(kernel: Kernel, device: torch.device) -> Any:
    refuse_capture(device)
    code = compiled(kernel, torch.cuda.get_device_capability(device), program_cache())
    return code.get_kernel(kernel.symbol)


@cache
def _probed(device: torch.device) -> str:
    """Compiles and loads one kernel: where that fails, whatever the reason, the next kernel of the table serves."""
    if find_spec("cuda") is None or find_spec(CORE) is None:
        return "cuda-core is not installed (pip install 'vqcompress[gpu]')"
    if (capability := torch.cuda.get_device_capability(device)) < MINIMUM_CAPABILITY:
        return f"a GPU of compute capability {capability[0]}.{capability[1]}, the kernels need 7.5"
    try:
        _kernel(PROBE, device)
    except Exception as error:  # noqa: BLE001 - a library that is missing, too old or of another CUDA raises anything
        reason = f"NVRTC made no kernel here: {type(error).__name__}: {first_line(error)}"
        warnings.warn(f"vqcompress decodes with a slower kernel on {device}; {reason}", stacklevel=2)
        return reason
    return ""
