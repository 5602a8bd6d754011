"""What a step of a fit costs in calls, operations and bytes, which no load of the machine disturbs.

A ceiling stands a few per cent above what was measured when it was set. It is a stored number because nothing else
says how cheap a step ought to be; a change that makes a step cheaper lowers it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from dipdefense import defence_for, fit
from dipdefense.fitting.problem import build_problem

CONFIG = defence_for((3, 32, 32), decision="last").fit
CALLS = 1130  # aten calls of a step of four networks: 1082.1 with torch 2.14
CALLS_ALONE = 435  # of one network: 415.1, where a plain loop makes 461
FLOPS = 97e6  # operations of a step for one image of four: 93,913,088
BYTES = 9.2e6  # of one image in a fit: 8,843,340


class Calls(TorchDispatchMode):
    """Counts the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += 1
        return operator(*args, **(kwargs or {}))


def backward_flops(grad_shape, x_shape, weight_shape, *args, out_shape=None) -> int:
    """Of a convolution: each gradient costs as much as the output. Torch's own formula overlooks groups."""
    for_x, for_weight, _ = args[-1]
    return (for_x + for_weight) * conv_flop_count(x_shape, weight_shape, grad_shape)


GROUPED = {torch.ops.aten.convolution_backward: backward_flops}


def images(n: int) -> torch.Tensor:
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")


def per_step(count: Callable[[int], Any]) -> float:
    """From the counts of 2 and of 12 iterations, so what happens once drops out; every tenth is a look."""
    return (count(12) - count(2)) / 10


@functools.cache
def calls(n: int) -> float:
    """Calls of a step of n networks. Worker threads would not be counted: conftest.py leaves one thread."""

    def count(iterations: int) -> int:
        with Calls() as mode:
            fit(images(n), dataclasses.replace(CONFIG, iterations=iterations))
        return mode.count

    return per_step(count)


@functools.cache
def flops(n: int, own_formula: bool = True) -> float:
    """Floating-point operations of a step of n networks, those of convolutions and matrix products."""

    def count(iterations: int) -> int:
        with FlopCounterMode(display=False, custom_mapping=GROUPED if own_formula else None) as mode:
            fit(images(n), dataclasses.replace(CONFIG, iterations=iterations))
        return mode.get_total_flops()

    return per_step(count)


def test_a_step_makes_no_more_calls_than_it_did():
    assert 0 < calls(4) <= CALLS


def test_a_step_of_a_single_small_image_makes_no_more_calls_than_it_did():
    assert 0 < calls(1) <= CALLS_ALONE


def test_a_step_takes_no_more_operations_than_it_did():
    assert 0 < flops(4) / 4 <= FLOPS


def test_an_image_takes_no_more_memory_than_it_did():
    problem = build_problem(images(4), CONFIG, 0, degrade=None, z=None, loss=None)
    assert 0 < problem.bytes_per_image() <= BYTES


def test_more_images_make_no_more_calls():
    """No loop over the images anywhere in a step."""
    assert calls(2) == calls(8)


def test_more_images_take_no_more_operations_each():
    assert flops(2) / 2 == pytest.approx(flops(8) / 8, rel=1e-12)


def test_operations_are_counted_as_torch_counts_them_without_groups():
    assert flops(1) == flops(1, own_formula=False)
