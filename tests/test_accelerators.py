"""What is predicted of accelerators: kernels of programs, and hours by hand."""

import types

import pytest

import abs_model
from benchmarks import accelerators
from benchmarks.accelerators import Cost, ModelCosts, count_kernels, predict

PROGRAM = """HloModule jit_f

%fused_computation (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  ROOT %b = f32[2]{0} add(%a, %a)
}

%region_add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], f32[2], f32[2], f32[2], f32[2], /*index=5*/f32[2])) -> (s32[], f32[2]) {
  %p = (s32[], f32[2], f32[2], f32[2], f32[2], /*index=5*/f32[2]) parameter(0)
  %c = f32[2]{0} get-tuple-element(%p), index=1
  %d = f32[2]{0} fusion(%c), kind=kLoop, calls=%fused_computation
  %e = f32[] reduce(%d, %zero), dimensions={0}, to_apply=%region_add
  ROOT %t = (s32[], f32[2], f32[2], f32[2], f32[2], /*index=5*/f32[2]) tuple(%c, %d)
}

%condition (p.1: (s32[], f32[2])) -> pred[] {
  %p.1 = (s32[], f32[2]) parameter(0)
  ROOT %less = pred[] compare(%p.1, %p.1), direction=LT
}

ENTRY %main (arg: f32[2]) -> f32[2] {
  %arg = f32[2]{0} parameter(0)
  %product = f32[2]{0} dot(%arg, %arg)
  %w = (s32[], f32[2], f32[2], f32[2], f32[2], /*index=5*/f32[2]) while(%arg), condition=%condition, body=%body
  ROOT %out = f32[2]{0} get-tuple-element(%w), index=1
}
"""  # noqa: E501


def test_kernels_are_those_of_the_program_and_its_loops():
    """A product, and in the loop a fusion, a reduction and a comparison."""
    assert count_kernels(types.SimpleNamespace(as_text=lambda: PROGRAM)) == 4


def test_a_jacobian_goes_back_once_for_each_logit():
    costs = ModelCosts(Cost(1.0, 10.0, 5), Cost(2.0, 30.0, 12))
    assert costs.jacobian == Cost(11.0, 210.0, 12)


def test_hours_by_hand(monkeypatch):
    """With one kind of query, all the time is queries times that of one."""
    cost = Cost(flop=2e9, moved=1e3, kernels=100)
    monkeypatch.setattr(accelerators, "_queries_of_table", lambda model, costs: {cost: 3600.0})
    found = predict({"cnn": abs_model.load("cnn")}, {"cnn": ModelCosts(cost, cost)})
    device = accelerators._DEVICES[0]
    working = 100 * 2e9 / device.flop_rate / accelerators._EFFICIENCY
    waiting = 100 * accelerators._PER_KERNEL + accelerators._PER_QUERY
    first = found[0]
    assert (first["images"], first["batch"]) == (1000, 100)
    assert first["hours"] == pytest.approx(10 * (waiting + working))
    assert first["share_waiting"] == pytest.approx(waiting / (waiting + working))
    eight = next(one for one in found if one["device"].startswith("8") and one["batch"] == 100)
    assert eight["hours"] == pytest.approx(2 * (waiting + working))  # ten batches take two rounds
