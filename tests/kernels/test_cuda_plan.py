"""Launches on a GPU, settled at a weight's first call: what a second call does, and when a new plan is made."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from random_weights import Extras, additive, scalar, trellis
from tests.kernels.host_time import least_seconds
from vqcompress.errors import CheckpointError
from vqcompress.kernels import Case, reference
from vqcompress.kernels.cuda import operations
from vqcompress.kernels.cuda.operations import decode_with, laid_out, plan_of, prepare_with, unsupported_reason
from vqcompress.matrix_view import from_transposed

WEIGHTS = [
    trellis((64, 40), 12, (6, 4), Extras(column_scales=True, outliers=3, rotation=32)),
    trellis((64, 4, 3, 3), 12, (5, 6)),
    additive((64, 9), 8, 8, 2),
    scalar((64, 9), 3, 4, 6),
]


class Stub:
    """A driver that notes launches."""

    verdicts = None

    def __init__(self) -> None:
        self.prepared: list = []
        self.launched: list = []
        self.used: list = []
        self.handle, self.finished = 7, 0

    def unsupported_reason(self, device):
        return ""

    def prepare(self, launch, jobs, blocks=4):
        self.prepared.append((launch, jobs))
        return lambda stream, out: self.launched.append((launch.kernel, stream, out))

    def stream(self, device):
        return self.handle

    def finish(self, device):
        self.finished += 1

    def use(self, tensors, device):
        self.used.append((self.handle, len(tensors)))


class Noted(TorchDispatchMode):
    """Names of the operators that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, kinds, arguments=(), keywords=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: f"{weight[0].format}-{len(weight[1])}")
def test_a_second_call_allocates_its_output_and_copies_nothing(weight):
    stub = Stub()
    decode_with(stub, *weight, torch.bfloat16)
    first = list(stub.launched)
    with Noted() as noted:
        out = decode_with(stub, *weight, torch.bfloat16)
    assert noted.names == ["empty"]
    assert len(stub.prepared) == len(first)
    assert stub.finished == 1
    assert [kernel for kernel, _, _ in stub.launched[len(first) :]] == [kernel for kernel, _, _ in first]
    assert {at for _, _, at in stub.launched[len(first) :]} == {out.data_ptr()}


def test_a_launch_for_all_rates_and_on_the_stream_of_the_call():
    stub = Stub()
    decode_with(stub, *trellis((64, 12), 12, (6, 4, 2)), torch.float16)
    assert len(stub.launched) == 1
    assert sorted(stub.prepared[0][0].jobs["rate"]) == [2, 4, 6]
    spec, shape, tensors = WEIGHTS[2]
    decode_with(stub, spec, shape, tensors, torch.float16)
    stub.launched, stub.handle = [], 99
    decode_with(stub, spec, shape, tensors, torch.float16)
    assert {stream for _, stream, _ in stub.launched} == {99}


@pytest.mark.parametrize("name", ["scale", "gains", "outlier_values", "weight"])
def test_a_plan_is_made_again_when_a_tensor_changes(name):
    spec, shape, tensors = trellis((64, 40), 12, (6, 4), Extras(column_scales=True, outliers=3))
    stub = Stub()
    plan = plan_of(stub, spec, shape, tensors, torch.float32)
    assert plan_of(stub, spec, shape, tensors, torch.float32) is plan
    tensors[name].add_(1)
    assert plan_of(stub, spec, shape, tensors, torch.float32) is not plan
    moved = {**tensors, name: tensors[name].clone()}
    assert plan_of(stub, spec, shape, moved, torch.float32) is not plan_of(stub, spec, shape, tensors, torch.float32)


def test_plans_hold_no_stored_tensor():
    spec, shape, tensors = trellis((64, 40), 12, (6, 4))
    plan = plan_of(Stub(), spec, shape, tensors, torch.float32)
    held = {tensor.untyped_storage()._cdata for tensor in plan.held}
    assert not held & {tensor.untyped_storage()._cdata for tensor in tensors.values()}
    assert not any(reference.expired() for reference in plan.references)


def test_a_plan_made_in_inference_mode_serves_others():
    spec, shape, tensors = trellis((64, 40), 12, (6, 4))
    with torch.inference_mode():
        plan = plan_of(Stub(), spec, shape, tensors, torch.float32)
    assert not any(tensor.is_inference() for tensor in plan.held)


def test_tensors_of_another_length_are_refused():
    spec, shape, tensors = trellis((64, 40), 12, (6, 4))
    with pytest.raises(CheckpointError, match="weight"):
        decode_with(Stub(), spec, shape, {**tensors, "weight": tensors["weight"][:, :-1]}, torch.float32)


def test_filters_lie_channels_last():
    spec, shape, tensors = WEIGHTS[1]
    transposed = reference.decode_transposed(spec, shape, tensors)
    found = laid_out(transposed, shape)
    assert torch.equal(found, from_transposed(transposed, shape))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert laid_out(transposed.new_ones(5, 3), (3, 5)).shape == (3, 5)


def test_what_cannot_be_served_is_said():
    spec, shape, _ = WEIGHTS[0]
    case = Case(torch.device("cpu"), torch.float32)
    assert "no GPU" in unsupported_reason(spec, shape, case)
    assert "interpreter" in unsupported_reason(spec, shape, case._replace(interpreted=True))
    assert "float64" in unsupported_reason(spec, shape, case._replace(dtype=torch.float64))


def test_a_plan_made_for_a_layer_launches_and_no_more():
    weight, stub = WEIGHTS[1], Stub()
    decode = prepare_with(stub, *weight, torch.bfloat16)
    assert decode().is_contiguous(memory_format=torch.channels_last)
    spec, shape, tensors = WEIGHTS[0]
    decode = prepare_with(stub, spec, shape, tensors, torch.bfloat16)
    before = len(stub.prepared)
    with Noted() as noted:
        out = decode()
    assert noted.names == ["empty", "t"]
    assert out.shape == shape
    assert len(stub.prepared) == before


def test_memory_of_a_plan_is_known_to_each_stream_that_uses_it():
    weight, stub = trellis((64, 12), 12, (6,)), Stub()
    decode = prepare_with(stub, *weight, torch.float16)
    decode()
    assert stub.used == []  # the stream that it was made on
    stub.handle = 99
    decode()
    decode()
    (use,) = stub.used
    assert use[0] == 99
    assert use[1] > 0


def test_plans_whose_weight_is_gone_are_forgotten():
    stub, alive = Stub(), trellis((32, 4), 12, (6,))
    kept = plan_of(stub, *alive, torch.float32)
    for _ in range(300):
        decode_with(stub, *trellis((32, 4), 12, (6,)), torch.float32)
    stale = [plan for plan in operations._PLANS.values() if plan.stale]
    assert len(stale) <= max(operations._LEAST, len(operations._PLANS) / 2 + 1)
    assert plan_of(stub, *alive, torch.float32) is kept


def test_host_time_of_a_call_against_a_dense_layer():
    """An `nn.Linear` takes 2 to 3 µs of the host for a call; the plan's may take four times as long."""
    stub, linear = Stub(), torch.nn.Linear(8, 8)
    weight, x = trellis((64, 40), 12, (6, 4)), torch.zeros(1, 8)
    with torch.inference_mode():
        took = least_seconds({"ours": lambda: decode_with(stub, *weight, torch.bfloat16), "dense": lambda: linear(x)})
    assert took["ours"] <= 4 * took["dense"], took
    assert operations.DRIVER.unsupported_reason(torch.device("cpu"))
