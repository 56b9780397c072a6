"""Weights decoded on a second stream before they are asked for: the same outputs, and no wait left out."""

from __future__ import annotations

import copy
import gc
import pickle
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from random_weights import Extras, scalar, trellis
from tests.layers.late_gpu import MAIN, OTHER, SIDE, LateGpu
from vqcompress.kernels.cuda.groups import bytes_in_group, parts_of
from vqcompress.layers import VQConv2d, VQLinear, set_decode_ahead, set_dense_budget
from vqcompress.layers.decode_ahead import MOST_PLANS, STATE, STEADY

WIDTH = 32


class Block(nn.Module):
    """Linears of two rates, plain and transformed, one of another format, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = packed_linear(trellis((WIDTH, WIDTH), 8, (6, 4)))
        self.other = packed_linear(trellis((WIDTH, WIDTH), 8, (4, 6)))
        self.second = packed_linear(trellis((WIDTH, WIDTH), 8, (6, 4), Extras(column_scales=True, outliers=3)))
        spec, _, tensors = trellis((WIDTH, WIDTH, 3, 3), 8, (6,))
        self.conv = VQConv2d(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), spec, tensors)
        self.last = packed_linear(scalar((WIDTH, WIDTH), 3, 4))

    def forward(self, x: Tensor, backwards: bool) -> Tensor:
        layers = [self.first, self.other, self.second, self.last]
        for layer in reversed(layers) if backwards else layers:
            x = layer(x.tanh())
        image = x.t().reshape(1, WIDTH, 2, -1)
        return x + self.conv(image).flatten(2)[0].t()


class Net(nn.Module):
    """Blocks, whose order may be turned around."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: Tensor, backwards: bool = False, only: int | None = None) -> Tensor:
        for block in list(self.blocks)[:only]:
            x = block(x, backwards)
        return x


def packed_linear(weight) -> VQLinear:
    spec, shape, tensors = weight
    return VQLinear(nn.Linear(shape[1], shape[0]), spec, tensors)


def one_block() -> int:
    """Bytes of a block's decoded weights in a group."""
    return sum(bytes_in_group(tuple(layer.dense_shape), torch.float32) for layer in Block().children())


class Setup:
    """A network whose layers are served by a `LateGpu`, its groups as large as a block, and what it should give."""

    def __init__(self, blocks: int = 3) -> None:
        self.net, self.x = Net(blocks), torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
        self.expected = copy.deepcopy(self.net)
        self.gpu, self.alone = LateGpu(self.net), LateGpu(self.expected)
        set_decode_ahead(self.net, one_block(), side=lambda device: self.gpu)
        self.serve()

    def serve(self) -> None:
        """Let both be decoded by launches, as a layer's first call would, also after a change."""
        self.gpu.serve(self.x), self.alone.serve(self.x)

    def check(self, **how) -> list:
        """Outputs are those of layers that decode for themselves; what happened."""
        with torch.no_grad():
            found = self.net(self.x, **how)
            assert torch.equal(found, self.expected(self.x, **how))
        assert not self.gpu.waiting
        return self.gpu.happened()

    def steady(self) -> None:
        for _ in range(STEADY):
            self.check()

    @property
    def launches(self) -> list[int]:
        return self.net.__dict__[STATE].launches


@pytest.fixture
def setup() -> Setup:
    return Setup()


def launched(events: list, stream: int) -> int:
    return sum(event[0] == "launch" and event[1] == stream for event in events)


def test_each_block_is_decoded_by_a_launch_for_each_kernel_while_the_one_before_is_multiplied(setup) -> None:
    setup.steady()
    kernels = setup.launches[0]
    assert setup.launches == [kernels] * 3
    assert kernels == 3  # plain and transformed, of whatever rates, and scalar
    events = setup.check()
    decoded = [("fork", MAIN), *[("launch", SIDE)] * kernels, ("mark",)]
    expected = [*decoded, ("join", MAIN), *decoded, ("join", MAIN), *decoded, ("join", MAIN)]
    assert [event[:2] if event[0] == "launch" else event for event in events] == expected
    assert sum(event[2] for event in events if event[0] == "launch") == 3 * 5


def test_alone_each_layer_launches_for_itself(setup) -> None:
    alone = setup.check()
    assert launched(alone, SIDE) == 0
    assert launched(alone, MAIN) == 3 * 5


def test_at_most_two_buffers_exist(setup, monkeypatch) -> None:
    setup.steady()
    alive, most, large = [], 0, one_block() // 2
    empty = torch.empty

    def noted(*size, **keywords):
        nonlocal most
        out = empty(*size, **keywords)
        if len(size) == 1 and not isinstance(size[0], tuple) and size[0] * 4 > large:
            alive[:] = [reference for reference in alive if not reference.expired()]
            alive.append(torch.multiprocessing.reductions.StorageWeakRef(out.untyped_storage()))
            most = max(most, len(alive))
        return out

    monkeypatch.setattr(torch, "empty", noted)
    setup.check()
    gc.collect()
    assert most == 2
    assert all(reference.expired() for reference in alive)


@pytest.mark.parametrize("how", [{"backwards": True}, {"only": 1}, {"only": 0}])
def test_another_order_or_fewer_layers_give_the_same(setup, how) -> None:
    setup.steady()
    setup.check(**how)
    setup.check()


def test_an_order_that_stays_gets_groups_of_its_own(setup) -> None:
    setup.steady()
    for _ in range(STEADY):
        setup.check(backwards=True)
    assert launched(setup.check(backwards=True), MAIN) == 0


def change_scale(net: Net) -> None:
    net.blocks[1].second.scale.mul_(2)


def replace_codes(net: Net) -> None:
    layer = net.blocks[1].first
    layer.weight = nn.Parameter(torch.flip(layer.weight.data, [-1]), requires_grad=False)


def move(net: Net) -> None:
    for layer in net.blocks[1].children():
        layer._apply(torch.clone)


@pytest.mark.parametrize("change", [change_scale, replace_codes, move])
def test_a_layer_that_changes_is_decoded_anew(setup, change) -> None:
    setup.steady()
    with torch.no_grad():
        change(setup.net), change(setup.expected)
    setup.serve()
    assert launched(setup.check(), SIDE) == setup.launches[0]  # of the first group alone
    setup.serve()
    setup.steady()
    assert launched(setup.check(), SIDE) == 3 * setup.launches[0]


def test_weights_that_always_move_are_left_alone(setup) -> None:
    for _ in range(STEADY * (MOST_PLANS + 2)):
        with torch.no_grad():
            setup.net.blocks[1].second.scale.mul_(1)
            setup.serve()
            setup.net(setup.x)
    assert setup.net.__dict__[STATE]._plans_left == 0
    setup.check()


def test_on_another_stream_layers_decode_for_themselves(setup) -> None:
    setup.steady()
    hook = setup.net.blocks[0].second.register_forward_pre_hook(lambda *_: setattr(setup.gpu, "current", OTHER))
    setup.net.blocks[1].register_forward_pre_hook(lambda *_: setattr(setup.gpu, "current", MAIN))
    events = setup.check()
    assert launched(events, OTHER) > 0
    hook.remove()


def test_gradients_are_those_without_it(setup) -> None:
    setup.steady()
    gradients = []
    for net in (setup.net, setup.expected):
        x = setup.x.clone().requires_grad_()
        net(x).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert launched(setup.gpu.happened(), SIDE) == 0
    setup.check()


def test_a_call_that_fails_leaves_nothing_waiting(setup) -> None:
    setup.steady()
    with torch.no_grad(), pytest.raises(RuntimeError):
        setup.net(torch.randn(8, WIDTH + 1))
    assert not setup.gpu.waiting
    setup.check()


def test_a_graph_is_recorded_from_its_first_fork_to_its_last_join(setup) -> None:
    setup.steady()
    setup.gpu.recording = True
    events = setup.check()
    setup.gpu.recording = False
    assert events[0][0] == "fork"
    assert events[-1][0] == "join"
    ahead = setup.net.__dict__[STATE]
    (captured,) = ahead._captured
    for _ in range(STEADY):
        setup.check(backwards=True)
    assert ahead._planned is not captured  # which the graph reads, and which is kept for it
    assert ahead._captured == [captured]


def test_no_groups_are_made_while_a_graph_is_recorded(setup) -> None:
    setup.gpu.recording = True
    for _ in range(STEADY + 1):
        setup.check()
    assert setup.launches == []


def test_it_is_traced_as_without(setup) -> None:
    setup.steady()
    compiled = torch.compile(setup.net, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(setup.x), copy.deepcopy(setup.expected)(setup.x))
    assert launched(setup.gpu.happened(), SIDE) == 0


def test_copies_and_pickles_decode_for_themselves(setup) -> None:
    setup.steady()
    for twin in (copy.deepcopy(setup.net), pickle.loads(pickle.dumps(setup.net))):  # noqa: S301 - our own
        with torch.no_grad():
            assert torch.equal(twin(setup.x), copy.deepcopy(setup.expected)(setup.x))
        assert not setup.gpu.happened()


def test_threads_have_passes_of_their_own(setup) -> None:
    setup.steady()
    found = []

    def in_between(*_) -> None:
        if not found:
            found.append(None)
            thread = Thread(target=lambda: found.append(run()))
            thread.start()
            thread.join()

    @torch.no_grad()
    def run() -> Tensor:
        return setup.net(setup.x)

    setup.net.blocks[1].second.register_forward_hook(in_between)
    setup.check()
    with torch.no_grad():
        assert torch.equal(found[1], setup.expected(setup.x))


def test_a_group_that_decodes_something_else_is_not_used(setup, caplog) -> None:
    setup.gpu.wrong_from = 2
    for _ in range(STEADY + 2):
        setup.check()
    assert setup.launches == []
    assert "differ from those of its layers" in caplog.text


def test_it_ends_when_asked(setup) -> None:
    setup.steady()
    set_decode_ahead(setup.net, None)
    assert STATE not in setup.net.__dict__
    setup.serve()
    assert launched(setup.check(), SIDE) == 0


def test_weights_that_a_budget_keeps_are_in_no_group() -> None:
    setup = Setup()
    budget = set_dense_budget(setup.net.blocks[0], "all")
    set_decode_ahead(setup.net, one_block(), side=lambda device: setup.gpu)
    setup.serve()
    setup.steady()
    assert budget.used > 0
    assert len(setup.launches) == 2


def test_layers_served_by_other_kernels_are_in_no_group() -> None:
    net, x = Net(1), torch.randn(8, WIDTH)
    with torch.no_grad():
        expected = net(x)
        set_decode_ahead(net)
        for _ in range(STEADY + 2):
            assert torch.equal(net(x), expected)
    assert net.__dict__[STATE].launches == []


def test_weights_lie_one_after_the_other() -> None:
    parts = parts_of([(3, 5), (4, 2, 3, 3), (128, 1)])
    assert [(part.at, part.laid, part.end) for part in parts] == [(0, 0, 128), (128, 256, 384), (384, 384, 512)]
    assert SIDE != MAIN
