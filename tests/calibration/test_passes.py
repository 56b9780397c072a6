from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqcompress.calibration.passes import in_order_within, plan_passes
from vqcompress.calibration.shared_inputs import InputGroup
from vqcompress.errors import CalibrationError


def groups(columns: list[int]) -> list[InputGroup]:
    return [InputGroup((f"layer{index}",), width, True) for index, width in enumerate(columns)]


@given(st.lists(st.integers(1, 50), max_size=30))
def test_every_group_once_and_within_budget(columns: list[int]) -> None:
    budget = 4 * 50**2
    passes = plan_passes(groups(columns), budget)
    assert sorted(group.layers for members in passes for group in members) == sorted(g.layers for g in groups(columns))
    assert all(sum(group.nbytes for group in members) <= budget for members in passes)
    sizes = [sum(group.nbytes for group in members) for members in passes]
    assert all(one + two > budget for one, two in pairwise(sizes)) or len(passes) < 2


def test_order_is_kept_inside_a_pass() -> None:
    members = groups([3, 10, 5, 10])
    assert plan_passes(members, 4 * 200) == [[members[1], members[3]], [members[0], members[2]]]
    assert plan_passes(members, None) == [members]
    assert plan_passes([], None) == []


def test_a_group_beyond_the_budget_is_named() -> None:
    with pytest.raises(CalibrationError, match=r"layer1 \(20000 columns\) takes 1\.6 GB.*budget of 1 GB"):
        plan_passes(groups([10, 20000]), 10**9)


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(0, 20))
def test_passes_in_order_keep_the_order_and_the_budget(needs: list[int], budget: int) -> None:
    passes = in_order_within({str(index): need for index, need in enumerate(needs)}, budget)
    assert [name for members in passes for name in members] == [str(index) for index in range(len(needs))]
    sizes = [sum(needs[int(name)] for name in members) for members in passes]
    assert all(size <= budget or len(members) == 1 for size, members in zip(sizes, passes, strict=True))
    assert all(size + needs[int(after[0])] > budget for size, after in zip(sizes, passes[1:], strict=False))
