"""The fitting loop: against torch's own Adam, and image by image."""

import dataclasses
import gc
import math

import numpy as np
import pytest
import torch

from dipdefense import ARCHITECTURES, FitConfig, fit, masked_mse
from dipdefense.fitting.config import build_network
from dipdefense.fitting.fit import FitResult
from dipdefense.fitting.inputs import INPUTS

TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=30)
ALL = {
    "autoencoder": {"channels": [8, 8]},
    "unet": {"channels": [8, 8]},
    "skip": {"channels": [8, 8], "skip_channels": 2},
}


def images(n: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Smooth random images: a few waves each."""
    generator = torch.Generator().manual_seed(seed)
    C, H, W = shape or (3, 16, 16)
    coarse = torch.rand(n, C, 4, 4, generator=generator, dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear").to(dtype)


def db(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(max((a - b).square().mean().item(), 1e-30))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_a_plain_loop_with_torch_adam(architecture):
    """One network, torch.optim.Adam, the same z, weights and jitter: the same reconstruction."""
    config = dataclasses.replace(TINY, architecture=architecture, architecture_options=ALL[architecture])
    observed = images(2, dtype=torch.float64)
    result = fit(observed, config, seed=5)
    for_weights, for_z, for_jitter = (int(s) for s in np.random.SeedSequence(5).generate_state(3))
    for i in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(for_weights)
            net = build_network(config, 3).double()
        generator = torch.Generator().manual_seed(for_z)
        z = INPUTS["noise"](8, 16, 16, generator=generator).double()
        generator = torch.Generator().manual_seed(for_jitter)
        adam = torch.optim.Adam(net.parameters(), lr=config.lr)
        for _ in range(config.iterations):
            jitter = torch.randn(z.shape[1:], generator=generator, dtype=torch.float64)
            output = net(z + config.jitter * jitter)
            adam.zero_grad()
            (output - observed[i]).square().mean().backward()
            adam.step()
        assert db(result.reconstruction[i], output[0].detach()) > 150


def test_converges_to_a_smooth_image():
    observed = images(2)
    result = fit(observed, dataclasses.replace(TINY, iterations=400))
    assert min(db(a, b) for a, b in zip(result.reconstruction, observed, strict=True)) > 25
    assert result.chosen.tolist() == result.iterations.tolist() == [400, 400]
    assert not result.stopped.any()
    assert result.seconds > 0


@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 100), (torch.float32, 45)])
def test_alone_and_in_a_batch_of_16_agree(dtype, least):
    config = dataclasses.replace(TINY, iterations=50)
    observed = images(16, dtype=dtype)
    together = fit(observed, config).reconstruction
    for i in (0, 7, 15):
        assert db(together[i], fit(observed[i : i + 1], config).reconstruction[0]) > least


def test_other_neighbours_leave_an_image_bit_identical():
    observed = images(8)
    others = torch.cat([images(5, seed=1), observed[5:6], images(2, seed=2)])
    assert torch.equal(fit(observed, TINY).reconstruction[5], fit(others, TINY).reconstruction[5])


def test_repeats_bit_by_bit_and_follows_the_seed():
    observed = images(3)
    first = fit(observed, TINY, seed=1).reconstruction
    assert torch.equal(first, fit(observed, TINY, seed=1).reconstruction)
    assert not torch.equal(first, fit(observed, TINY, seed=2).reconstruction)
    fresh, again = fit(observed, TINY, seed=None), fit(observed, TINY, seed=None)
    assert fresh.seed != again.seed
    assert torch.equal(fresh.reconstruction, fit(observed, TINY, seed=fresh.seed).reconstruction)


def test_leaves_the_world_as_found():
    observed = images(2).requires_grad_()
    before, state = observed.detach().clone(), torch.get_rng_state()
    with torch.no_grad():
        result = fit(observed, TINY)
    assert torch.equal(observed.detach(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert observed.grad is None
    assert not result.reconstruction.requires_grad
    with torch.inference_mode():
        assert torch.equal(fit(before.clone(), TINY).reconstruction, result.reconstruction)


@pytest.mark.usefixtures("one_thread")
def test_stopped_images_leave_and_the_rest_goes_on():
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    observed = torch.cat([images(1), noise]).double()  # float32 rounding alone can move the least variance
    config = dataclasses.replace(TINY, iterations=600, stopping="emv", stopping_options={"patience": 40})
    sizes = []
    both = fit(observed, config, callback=lambda p: sizes.append(len(p.index)))
    assert both.stopped.any()
    assert both.iterations[0] != both.iterations[1]
    assert sizes[0] == 2
    assert sizes.count(2) == both.iterations.min()
    assert (both.chosen < both.iterations)[both.stopped].all()
    for i in range(2):
        alone = fit(observed[i : i + 1], config)
        assert alone.chosen[0] == both.chosen[i]
        assert db(alone.reconstruction[0], both.reconstruction[i]) > 45


def test_returns_the_iterate_the_rule_chose():
    seen = {}

    def keep(progress):
        for row, i in enumerate(progress.index.tolist()):
            seen[i, progress.iteration] = progress.output[row].clone()

    config = dataclasses.replace(TINY, iterations=200, stopping="wmv", stopping_options={"window": 10, "patience": 30})
    result = fit(images(3), config, callback=keep)
    for i, chosen in enumerate(result.chosen.tolist()):
        assert torch.equal(result.reconstruction[i], seen[i, chosen])


def test_the_average_of_iterates():
    outputs = []
    result = fit(images(1), dataclasses.replace(TINY, ema=0.9), callback=lambda p: outputs.append(p.output.clone()))
    average = outputs[0]
    for output in outputs[1:]:
        average = 0.9 * average + 0.1 * output
    torch.testing.assert_close(result.reconstruction, average)


def test_large_kernels_meet_small_images():
    options = {"channels": [4, 4], "skip_channels": 0, "kernel_down": 7}
    observed = images(1, 3, 5, 5)
    assert fit(observed, dataclasses.replace(TINY, architecture_options=options)).reconstruction.shape == (1, 3, 5, 5)


def test_surroundings_change_nothing():
    plain = fit(images(1), TINY).reconstruction
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fit(images(1), TINY).reconstruction, plain)
    torch.set_default_device("meta")
    try:
        inside = fit(plain, dataclasses.replace(TINY, iterations=2)).reconstruction
    finally:
        torch.set_default_device(None)
    assert torch.equal(inside, fit(plain, dataclasses.replace(TINY, iterations=2)).reconstruction)


@pytest.mark.parametrize("seed", [-1, 0.5, "0"])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed must be None or an integer of at least 0"):
        fit(images(1), TINY, seed=seed)


def test_a_degrade_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="output and observed must have one shape"):
        fit(images(1), TINY, degrade=lambda x, index: x.mean((2, 3), keepdim=True))
    with pytest.raises(ValueError, match="loss must give one number an image"):
        fit(images(2), TINY, loss=lambda output, observed, index: (output - observed).square().mean())


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 16), (28, 28), (33, 17)])
def test_any_size_is_fitted(size):
    observed = images(1, 1, *size)
    result = fit(observed, dataclasses.replace(TINY, iterations=300))
    assert result.reconstruction.shape == observed.shape
    assert db(result.reconstruction, observed) > 20


def test_cosine_loss_gets_its_scale_back():
    observed = images(2)
    result = fit(observed, dataclasses.replace(TINY, loss="cosine", iterations=400))
    assert min(db(a, b) for a, b in zip(result.reconstruction, observed, strict=True)) > 22


def test_masks_follow_their_images_when_others_leave():
    """What stands in unknown pixels changes nothing, bit by bit, though images leave at different times."""
    generator = torch.Generator().manual_seed(0)
    observed = torch.cat([images(2), torch.rand(1, 3, 16, 16, generator=generator)])
    mask = (torch.rand(3, 1, 16, 16, generator=generator) > 0.3).float()
    config = dataclasses.replace(TINY, iterations=400, stopping="emv", stopping_options={"patience": 40})
    result = fit(observed, config, loss=masked_mse(mask))
    again = fit(torch.where(mask.bool(), observed, 1 - observed), config, loss=masked_mse(mask))
    assert len(set(result.iterations.tolist())) > 1
    assert torch.equal(result.reconstruction, again.reconstruction)


def test_a_masked_fit_reaches_the_known_pixels():
    mask = (torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.3).float()
    result = fit(images(2), dataclasses.replace(TINY, iterations=300), loss=masked_mse(mask))
    known = mask.bool().expand_as(images(2))
    assert db(result.reconstruction[known], images(2)[known]) > 22


def test_degrade_sees_original_positions():
    """Image i is darkened by a factor of its own: after others left, each still meets its own factor."""
    factor = torch.tensor([1.0, 0.8, 0.6, 0.4], dtype=torch.float64)
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    observed = factor.view(4, 1, 1, 1) * torch.cat([images(3), noise]).double()
    config = dataclasses.replace(TINY, iterations=300, stopping="emv", stopping_options={"patience": 20})
    result = fit(observed, config, degrade=lambda x, index: factor[index].view(-1, 1, 1, 1) * x)
    assert len(set(result.iterations.tolist())) > 1
    for i in range(4):
        alone = fit(observed[i : i + 1], config, degrade=lambda x, index, i=i: factor[i] * x)
        assert alone.chosen[0] == result.chosen[i]
        assert db(alone.reconstruction[0], result.reconstruction[i]) > 60


def test_given_z_sets_the_size_of_the_reconstruction():
    observed = images(2)
    z = torch.rand(1, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    pool = torch.nn.AvgPool2d(2)
    result = fit(observed, dataclasses.replace(TINY, iterations=200), z=z, degrade=lambda x, index: pool(x))
    assert result.reconstruction.shape == (2, 3, 32, 32)
    assert db(pool(result.reconstruction), observed) > 20
    own = fit(observed, TINY, z=torch.cat([z, 2 * z]), degrade=lambda x, index: pool(x)).reconstruction
    assert db(own[0], fit(observed[:1], TINY, z=z, degrade=lambda x, index: pool(x)).reconstruction[0]) > 45


def test_meshgrid_input():
    config = dataclasses.replace(TINY, input="meshgrid", input_channels=2, iterations=200)
    assert db(fit(images(1), config).reconstruction, images(1)) > 20
    with pytest.raises(ValueError, match="input_channels must be 2 for the meshgrid"):
        fit(images(1), dataclasses.replace(config, input_channels=3))


def test_chunks_change_nothing():
    observed = images(9)
    whole = fit(observed, TINY)
    sizes = set()
    parts = fit(
        observed,
        dataclasses.replace(TINY, memory_gb=0.0015),
        callback=lambda p: sizes.add((int(p.index[0]), len(p.index))),
    )
    assert len(sizes) > 1
    assert db(parts.reconstruction, whole.reconstruction) > 45


def test_a_budget_too_small_says_how_much():
    with pytest.raises(
        ValueError, match=r"memory_gb must be at least 0\.\d+ for one image of this size, got 1e-06: raise it"
    ):
        fit(images(1), dataclasses.replace(TINY, memory_gb=1e-6))


def test_running_out_of_memory_halves_the_chunk():
    def greedy(x, index):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    with pytest.warns(UserWarning, match="out of memory: going on with chunks of"):
        result = fit(images(5), TINY, degrade=greedy)
    assert db(result.reconstruction, fit(images(5), TINY).reconstruction) > 45


def test_other_errors_pass_unchanged():
    def broken(x, index):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(images(1), TINY, degrade=broken)


@pytest.mark.usefixtures("one_thread")
def test_a_fit_that_drops_rolls_back():
    """Ten steps towards the negative of image 0: the iterates in between are held back, then undone."""
    calls = []

    def shaky(x, index):
        calls.append(len(index))
        negative = (index == 0) & torch.tensor(102 <= len(calls) <= 111)  # call 1 weighs the memory of a step
        return torch.where(negative.view(-1, 1, 1, 1), 1 - x, x)

    curve = []
    config = dataclasses.replace(TINY, iterations=112, jitter=0.0, lr=0.05)
    observed = images(2)

    def watch(progress):
        curve.append([db(a, b) for a, b in zip(progress.output, observed, strict=True)])

    fit(observed, config, degrade=shaky, callback=watch)
    assert curve[110][0] > curve[99][0] - 1  # iteration 111 starts again where iteration 100 ended
    assert len({row[0] for row in curve[100:110]}) <= 2  # the last sane iterate is held meanwhile
    undisturbed = fit(observed, config)
    calls.clear()
    disturbed = fit(observed, config, degrade=shaky)
    assert torch.equal(disturbed.reconstruction[1], undisturbed.reconstruction[1])


class Poison(torch.autograd.Function):
    """The identity, whose gradient is not a number where there should be one."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(gradient == 0, 0.0, math.nan)


WELL: dict[str, FitResult] = {}  # the fit that no error disturbs, by its stopping rule


def fit_well(config: FitConfig, stopping: str) -> FitResult:
    if stopping not in WELL:
        WELL[stopping] = fit(images(2), config)
    return WELL[stopping]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stopping", ["fixed", "emv"])
@pytest.mark.parametrize("iteration", [2, 10, 54, 59, 60, 61])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_a_number_in_the_middle_is_survived(where, iteration, stopping):
    """At a look, before and after it; in the loss, or in the gradient alone. The neighbour feels nothing."""
    calls = []

    def sick(output, observed, index):
        calls.append(1)
        error = (output - observed).square().flatten(1).mean(1)
        ill = (index == 1) & torch.tensor(len(calls) == iteration + 1)  # call 1 weighs the memory of a step
        if where == "gradient" and ill.any():
            return torch.where(ill, Poison.apply(error), error)
        return error * torch.where(ill, math.nan, 1.0)

    options = {} if stopping == "fixed" else {"patience": 50}
    config = dataclasses.replace(TINY, iterations=90, ema=0.5, stopping=stopping, stopping_options=options)
    result = fit(images(2), config, loss=sick)
    well = fit_well(config, stopping)
    assert result.reconstruction.isfinite().all()
    assert torch.equal(result.reconstruction[0], well.reconstruction[0])
    if stopping == "fixed":
        assert result.iterations.tolist() == [90, 90]
        assert db(result.reconstruction[1], images(2)[1]) > 18


def test_not_a_number_from_the_start_is_an_error():
    with pytest.raises(RuntimeError, match=r"the fit of images \[1\] must be finite from its start"):
        fit(images(2), TINY, degrade=lambda x, index: torch.where((index == 1).view(-1, 1, 1, 1), math.nan, x))


def test_a_fit_that_keeps_diverging_ends_with_a_warning():
    def hopeless(output, observed, index):
        hopeless.calls += 1
        error = (output - observed).square().flatten(1).mean(1)
        return error * torch.where((index == 0) & torch.tensor(hopeless.calls > 20), math.nan, 1.0)

    hopeless.calls = 0
    with pytest.warns(UserWarning, match=r"the fit of images \[0\] keeps diverging"):
        result = fit(images(2), dataclasses.replace(TINY, iterations=300), loss=hopeless)
    assert result.iterations[0] < result.iterations[1] == 300
    assert not result.stopped.any()  # no rule ended it
    assert result.reconstruction.isfinite().all()


@pytest.mark.parametrize(
    ("observed", "error", "message"),
    [
        ([[1.0]], TypeError, "observed must be a float32 or float64 tensor, got list"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "float64 tensor, got torch.uint8: convert it"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.float16), TypeError, "got torch.float16"),
        (torch.zeros(3, 8, 8), ValueError, r"observed must be a non-empty \(B, C, H, W\)"),
        (torch.zeros(0, 3, 8, 8), ValueError, "non-empty"),
        (torch.full((1, 3, 8, 8), math.nan), ValueError, "observed must be finite"),
    ],
)
def test_bad_images_are_refused(observed, error, message):
    with pytest.raises(error, match=message):
        fit(observed, TINY)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(1, 4, 16, 16), r"z must be \(1 or 2, 8, H, W\)"),
        (torch.zeros(3, 8, 16, 16), r"z must be \(1 or 2, 8, H, W\)"),
        (torch.zeros(1, 8, 18, 16), "multiples of the network's stride 4"),
        (torch.zeros(1, 8, 4, 16), "at least 8"),
        (torch.zeros(1, 8, 16, 16, dtype=torch.float64), "z must have the dtype and device of observed"),
        (torch.zeros(1, 8, 32, 32), "unless degrade maps one to the other"),
    ],
)
def test_bad_z_is_refused(z, message):
    with pytest.raises(ValueError, match=message):
        fit(images(2), TINY, z=z)


def test_nothing_is_left_of_a_fit():
    """Tensors in memory after some fits, and after as many again."""

    def living():
        gc.collect()
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    quick = dataclasses.replace(TINY, iterations=1)
    counts = []
    for _ in range(3):
        fit(images(2), quick)
        counts.append(living())
    assert counts[1] == counts[2]


@pytest.mark.usefixtures("one_thread")
def test_memory_grows_with_the_chunk_not_with_the_data():
    """Parameters and moments of images that left are gone: only their reconstructions stay."""
    config = dataclasses.replace(TINY, iterations=10, memory_gb=0.0015)
    held = []

    def weigh(progress):
        if progress.iteration == 10:
            states = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.dim() == 6]  # (3, B, O, I, k, k)
            rows = {
                state.untyped_storage().data_ptr(): state.shape[1] for state in states
            }  # once where memory is shared
            held.append((len(progress.index), sum(rows.values())))

    fit(images(40), config, callback=weigh)
    assert len(held) >= 4
    convolutions = sum(parameter.dim() == 4 for parameter in build_network(config, 3).parameters())
    # theta and moments of each, and the state kept to roll back to
    assert all(rows == 2 * convolutions * chunk for chunk, rows in held)


def test_an_iterate_of_pixels_is_not_changed_by_the_step_that_follows():
    config = FitConfig(architecture="pixels", input_channels=1, iterations=1, jitter=0.0)
    assert (fit(images(2), config).reconstruction == 0.5).all()


def test_a_shape_that_z_cannot_hold_is_refused():
    z = torch.zeros(1, 8, 16, 16)
    with pytest.raises(ValueError, match=r"z must be at least as large as shape, \(20, 24\), got \(16, 16\)"):
        fit(images(2, 3, 20, 24), TINY, z=z, shape=(3, 20, 24))
    for shape in ((3, 20), (3, 0, 4), (3, 2.0, 4)):
        with pytest.raises(ValueError, match=r"shape must be three positive integers \(C, H, W\), got"):
            fit(images(2, 3, 20, 24), TINY, shape=shape)
