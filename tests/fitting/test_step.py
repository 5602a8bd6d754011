"""One iteration of the fit: the two updates of Adam, and the step in place beside the step with a graph."""

import copy
from dataclasses import replace

import pytest
import torch

from dipdefense import FitConfig
from dipdefense.fitting.problem import build_problem
from dipdefense.fitting.step import (
    AdamState,
    State,
    adam_in_place,
    adam_with_graph,
    begin,
    choose,
    draw_input,
    is_check,
    step,
)

CONFIG = FitConfig(
    architecture_options={"channels": [4, 8], "skip_channels": 2}, input_channels=4, iterations=12, ema=0.5
)


def parameters(seed: int) -> list[torch.Tensor]:
    """One tensor of two images for each of two parameters."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 5), (2, 7))]


def images(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("update", [adam_in_place, adam_with_graph])
def test_both_updates_of_adam_are_that_of_torch(update):
    start = parameters(0)
    expected = [torch.nn.Parameter(p.clone()) for p in start]
    optimiser = torch.optim.Adam(expected, lr=0.03)
    tensors = {str(i): torch.stack([p, torch.zeros_like(p), torch.zeros_like(p)]) for i, p in enumerate(start)}
    state = AdamState(tensors, torch.zeros(2))
    for t in range(5):
        gradient = parameters(t + 1)
        for parameter, g in zip(expected, gradient, strict=True):
            parameter.grad = g.clone()
        optimiser.step()
        state = update(state, tuple(gradient), 0.03)
    assert state.count.tolist() == [5, 5]
    for i, parameter in enumerate(expected):
        torch.testing.assert_close(state.tensors[str(i)][0], parameter.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(
            state.tensors[str(i)][1], optimiser.state[parameter]["exp_avg"], rtol=1e-12, atol=1e-14
        )
        torch.testing.assert_close(
            state.tensors[str(i)][2], optimiser.state[parameter]["exp_avg_sq"], rtol=1e-12, atol=1e-14
        )


def test_both_updates_of_adam_agree_where_images_have_taken_different_numbers_of_steps():
    tensors = {"a": torch.stack([p.abs() for p in (parameters(0)[0], parameters(1)[0], parameters(2)[0])])}
    state, gradient = AdamState(tensors, torch.tensor([3.0, 40.0])), (parameters(3)[0],)
    expected = adam_with_graph(state, gradient, 0.1)
    actual = adam_in_place(state, gradient, 0.1)
    torch.testing.assert_close(actual.tensors, expected.tensors, rtol=1e-12, atol=1e-14)
    assert actual.count.tolist() == expected.count.tolist() == [4, 41]
    other = adam_with_graph(replace(expected, count=expected.count.flip(0)), gradient, 0.1)
    assert not torch.allclose(adam_with_graph(expected, gradient, 0.1).tensors["a"], other.tensors["a"])


def test_what_is_kept_between_steps_in_place_is_made_anew_where_the_images_change():
    """Leaves and views share the memory of their state, and an image that rolls back has its own step count."""
    problem = build_problem(images(), CONFIG, 0, None, None, None)
    state, index = begin(problem.theta, torch.zeros_like(problem.observed)), torch.arange(2)
    for iteration in (1, 2):
        state, _ = step(problem, state, problem.z, problem.observed, iteration, CONFIG, index=index)
    leaves, views = state.adam.leaves, state.adam.views
    far = problem.observed + torch.tensor([0.0, 1e3]).view(2, 1, 1, 1)
    state, _ = step(problem, state, problem.z, problem.observed, 3, CONFIG, index=index)
    assert state.adam.leaves is leaves
    assert state.adam.views is views
    assert all(torch.equal(leaf, state.adam.tensors[name][0]) for name, leaf in leaves.items())
    state, _ = step(problem, state, problem.z, far, 10, CONFIG, index=index)
    assert state.adam.views.runs == [1, 1]
    assert [count.item() for count in state.adam.views.counts[:2]] == [4, 0]
    assert all(leaf.data_ptr() == state.adam.tensors[name].data_ptr() for name, leaf in state.adam.leaves.items())


@pytest.mark.parametrize("mask", [[True, True], [True, False], [False, False]])
def test_choose_takes_each_image_from_one_of_two(mask):
    new, old = images(), images() + 1
    chosen = choose(torch.tensor(mask), new, old)
    assert all(torch.equal(chosen[i], (new if here else old)[i]) for i, here in enumerate(mask))


def walk(config: FitConfig, iterations: int, **how) -> State:
    problem = build_problem(images(), config, 0, None, None, None)
    generator, index = torch.Generator().manual_seed(problem.jitter_seed), torch.arange(2)
    state = begin(problem.theta, torch.zeros_like(problem.observed))
    if how.get("graph"):
        for tensor in state.adam.tensors.values():
            tensor.requires_grad_()
    for iteration in range(1, iterations + 1):
        z = draw_input(problem, index, config.jitter, generator)
        state, _ = step(problem, state, z, problem.observed, iteration, config, index=index, **how)
    return state


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, lr=0.3, rollback_db=0.01, jitter=0.3)])
def test_a_step_in_place_and_out_of_place_are_the_same(config, graph):
    fast, slow = walk(config, 12), walk(config, 12, update=adam_with_graph, graph=graph)
    assert fast.adam.count.tolist() == slow.adam.count.tolist()
    assert slow.average.requires_grad == graph
    torch.testing.assert_close(fast.average, slow.average.detach(), rtol=1e-6, atol=1e-9)
    for name, tensor in fast.adam.tensors.items():
        torch.testing.assert_close(tensor, slow.adam.tensors[name].detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [8, 40])  # a small map of a single image has no stack, a large one has
@pytest.mark.parametrize("stacked", [True, False])
def test_a_problem_evaluates_its_network_at_other_parameters_and_leaves_its_own(size, stacked):
    observed = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    problem = build_problem(observed, CONFIG, 0, None, None, None)
    net = problem.net.double()
    before, theta = dict(net.named_parameters()), {name: 1.1 * p for name, p in problem.theta.items()}
    expected = torch.func.functional_call(net, theta, (problem.z,))
    actual = problem.generate({name: p[None] for name, p in theta.items()} if stacked else theta, problem.z)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert all(parameter is before[name] for name, parameter in net.named_parameters())


def test_a_step_out_of_place_leaves_its_state_as_it_is():
    problem = build_problem(images(), CONFIG, 0, None, None, None)
    state = begin(problem.theta, torch.zeros_like(problem.observed))
    before = copy.deepcopy(state)
    after, evaluation = step(
        problem, state, problem.z, problem.observed, 1, CONFIG, index=torch.arange(2), update=adam_with_graph
    )
    for name, tensor in before.adam.tensors.items():
        assert torch.equal(state.adam.tensors[name], tensor)
        assert torch.equal(state.saved.tensors[name], before.saved.tensors[name])
    assert state.adam.count.tolist() == [0, 0]
    assert any(not torch.equal(after.adam.tensors[name], tensor) for name, tensor in before.adam.tensors.items())
    assert torch.equal(after.saved_loss, evaluation.losses)


def test_an_image_whose_loss_jumps_returns_to_the_state_that_was_saved():
    problem = build_problem(images(), CONFIG, 0, None, None, None)
    state = begin(problem.theta, torch.zeros_like(problem.observed))
    index = torch.arange(2)
    state, first = step(problem, state, problem.z, problem.observed, 1, CONFIG, index=index)
    far = problem.observed + torch.tensor([0.0, 1e3]).view(2, 1, 1, 1)
    saved, average = {name: tensor.clone() for name, tensor in state.saved.tensors.items()}, state.average
    state, second = step(problem, state, problem.z, far, 10, CONFIG, index=index)
    assert first.sane.tolist() == [True, True]
    assert second.sane.tolist() == [True, False]
    assert state.adam.count.tolist() == [2, 0]
    assert torch.equal(state.saved_loss, torch.stack([second.losses[0], first.losses[1]]))
    assert torch.equal(state.average[1], average[1])
    assert not torch.equal(state.average[0], average[0])
    for name, tensor in state.adam.tensors.items():
        assert torch.equal(tensor[:, 1], saved[name][:, 1])


def test_the_first_the_last_and_every_tenth_iteration_is_a_check():
    assert [i for i in range(1, 26) if is_check(i, replace(CONFIG, iterations=25))] == [1, 10, 20, 25]
