"""What the compiler makes of the CUDA kernels for GPUs that are not here, read from the machine code."""

from __future__ import annotations

import pytest
import torch

import cuda_artefacts
from cuda_artefacts import KERNELS, artefact, decoding_loops
from vqcompress.kernels.cuda.driver import compiled
from vqcompress.kernels.cuda.jobs import ALIGNED, KernelName

compiles = pytest.mark.skipif(not cuda_artefacts.has_compiler(), reason="neither NVRTC nor nvcc, or no cuobjdump")


@compiles
@pytest.mark.parametrize("capability", cuda_artefacts.CAPABILITIES)
def test_decoding_compiles_everywhere_without_spills_or_barriers(capability):
    found = artefact(KERNELS["trellis, 3 bits"], capability)
    assert found.spilled == 0
    assert not found.barrier_in_loop
    assert found.registers <= 80


@compiles
def test_six_instructions_a_weight_at_three_bits():
    assert artefact(KERNELS["trellis, 3 bits"], 90).instructions_per_weight <= 6


@compiles
def test_a_kernel_of_several_rates_has_a_loop_for_each_that_is_no_longer_than_alone():
    together, alone = artefact(KERNELS["trellis, whole bits"], 90), artefact(KERNELS["trellis, 6 bits"], 90)
    assert together.instructions_per_weight <= alone.instructions_per_weight


@compiles
@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("product")])
def test_products_neither_spill_nor_wait_within_their_loops(name):
    found = artefact(KERNELS[name], 90)
    assert found.spilled == 0
    assert not found.barrier_in_loop
    assert found.registers <= 255
    assert found.instructions_per_weight <= 9


@compiles
@pytest.mark.parametrize(
    "name",
    ["trellis, whole bits", "trellis, half bits", "trellis, whole bits, every transform", "additive", "scalar, 4 bits"],
)
def test_no_other_kernel_spills(name):
    found = artefact(KERNELS[name], 90)
    assert found.spilled == 0
    assert not found.barrier_in_loop
    assert found.registers <= 128


class Unwritable:
    """A program cache on a disk that is full."""

    def get(self, key, default=None):
        raise OSError("full")

    __getitem__ = __setitem__ = update = get


def test_compiled_kernels_are_kept_for_the_next_process(tmp_path):
    utilities = pytest.importorskip("cuda.core.utils", exc_type=ImportError)
    kernel, kept = KERNELS["scalar, 4 bits"], utilities.FileStreamProgramCache(tmp_path)
    first = bytes(compiled(kernel, (9, 0), kept).code)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size == len(first)]
    file.write_bytes(b"as another process left it")
    assert bytes(compiled(kernel, (9, 0), kept).code) == b"as another process left it"
    assert bytes(compiled(kernel, (8, 0), kept).code) != first
    assert bytes(compiled(kernel, (9, 0), Unwritable()).code) == first


def test_a_loop_is_found_in_a_listing():  # and not the one around it
    listing = """
        /*0000*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0010*/                   LDS R1, [R2] ;
        /*0020*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0030*/               @P0 BRA 0x10 ;
        /*0040*/               @P1 BRA 0x0 ;
        /*0050*/                   EXIT ;
    """
    assert decoding_loops(listing) == [["LDS R1, [R2] ", "STG.E.128 desc[UR4][R2.64], R4 ", "@P0 BRA 0x10 "]]


def test_names_in_the_machine_code():
    kernel = KernelName("trellis", (5, 7), "GLOBAL_HALF", ALIGNED, torch.bfloat16)
    assert kernel.line == f"TRELLIS({kernel.symbol}, GLOBAL_HALF, 1, Bfloat, 5, 7)"
    assert kernel.symbol == "trellis_5_7_global_half_1_bfloat"
    kernel = KernelName("scalar", (4,), "", ALIGNED, torch.bfloat16)
    assert kernel.line == f"SCALAR({kernel.symbol}, 4, 1, Bfloat)"
