"""The rules that look at the observed image: closed forms, and plain re-computations with numpy."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dipdefense import FitConfig, fit, masked_mse
from dipdefense.fitting.config import build_rule
from dipdefense.fitting.fit import fit_context
from dipdefense.fitting.problem import build_problem
from dipdefense.stopping import Iterate
from dipdefense.stopping.held_out import SubImage, Validation
from dipdefense.stopping.noise_level import Discrepancy, Sure
from dipdefense.stopping.residual import BlindDiscrepancy, DIPDefend

TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=40)
N, SIGMA = 2, 0.1


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(fitted: torch.Tensor, observed: torch.Tensor, sane: torch.Tensor | None = None) -> Iterate:
    sane = torch.ones(len(fitted), dtype=torch.bool) if sane is None else sane
    return Iterate(fitted, fitted, observed, sane, lambda images: images)


def begun(rule, observed: torch.Tensor, seed: int = 0):
    rule.prepare(observed, torch.Generator().manual_seed(seed))
    return rule


def trajectory(T: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Iterates (T, N, 3, 8, 8) that take in the image first and the noise after; observed, clean."""
    clean = torch.nn.functional.interpolate(draw(N, 3, 2, 2).sigmoid(), (8, 8), mode="bilinear")
    noise = SIGMA * draw(N, 3, 8, 8, seed=1)
    t = torch.arange(1, T + 1, dtype=torch.float64).view(T, 1, 1, 1, 1)
    image, noisy = 1 - torch.exp(-t / 3), 1 - torch.exp(-t / 60)
    return image * clean + noisy * noise, clean + noise, clean


def run(rule, frames: torch.Tensor, observed: torch.Tensor) -> tuple[list[int], list[int]]:
    """Chosen iterate and end of each image, from 1; the number of frames where it never ended."""
    chosen, end = torch.zeros(N, dtype=torch.long), torch.full((N,), len(frames))
    ended = torch.zeros(N, dtype=torch.bool)
    for t, frame in enumerate(frames, 1):
        better, done = rule.observe(seen(frame, observed))
        chosen[better & ~ended] = t
        end[done & ~ended] = t
        ended |= done
    return chosen.tolist(), end.tolist()


def smoothed_minimum(values: np.ndarray, rate: float, patience: int) -> tuple[int, int]:
    s, best, least = values[0], 1, math.inf
    for t, value in enumerate(values, 1):
        s = s + rate * (value - s)
        if s < least:
            best, least = t, s
        if t - best >= patience:
            return best, t
    return best, len(values)


def test_dipdefend_follows_the_recursion():
    a, P = 0.1, 6
    frames, observed, _ = trajectory()
    frames = torch.cat([frames, frames.flip(0)])  # the PSNR rises and falls again
    chosen, end = run(DIPDefend(patch=4, rate=a, patience=P), frames, observed)
    error = ((frames - observed) ** 2).mean(2).numpy()  # (T, N, 8, 8)
    windows = error.reshape(len(frames), N, 2, 4, 2, 4).mean((3, 5)).reshape(len(frames), N, 4)
    for i in range(N):
        x = -10 * np.log10(windows[:, i].max(1))
        s, b, trace = x[0], x[1] - x[0], [x[0]]
        for value in x[1:]:
            new = a * value + (1 - a) * (s + b)
            s, b = new, a * (new - s) + (1 - a) * b
            trace.append(s)
        assert (chosen[i], end[i]) == smoothed_minimum(-np.array(trace), 1.0, P)
        assert end[i] < len(frames)


@pytest.mark.parametrize(("size", "windows"), [((16, 16), 1), ((40, 70), 2), ((64, 32), 2)])
def test_dipdefend_looks_at_the_worst_window_of_any_size(size, windows):
    fitted, observed = torch.zeros(1, 3, *size), torch.zeros(1, 3, *size)
    fitted[..., 0, 0] = 0.5  # in one window only
    rule = DIPDefend()
    level = -rule.statistic(seen(fitted, observed)).item()
    assert level == pytest.approx(10 * math.log10(size[0] * size[1] / windows / 0.25), abs=1e-4)
    assert math.isfinite(rule.statistic(seen(observed, observed)).item())


def test_discrepancy_is_done_at_the_noise_level():
    frames, observed, _ = trajectory()
    chosen, end = run(Discrepancy(sigma=SIGMA, factor=0.9), frames, observed)
    for i in range(N):
        error = ((frames - observed) ** 2).mean((2, 3, 4))[:, i].numpy()
        first = int(np.argmax(error <= 0.9 * SIGMA**2)) + 1
        assert chosen[i] == end[i] == first
        assert first > 1


def test_sure_is_the_risk_of_a_linear_shrinkage():
    """x = k y' has the divergence k N, and its risk is known."""
    clean = draw(N, 3, 128, 128, seed=2).sigmoid()
    observed = clean + SIGMA * draw(N, 3, 128, 128)
    rule = Sure(sigma=SIGMA)
    target, hidden = rule.prepare(observed, torch.Generator().manual_seed(3))
    assert hidden is None
    b, values = (target - observed)[0] / rule.tau, clean[0].numel()
    assert b.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * values))
    torch.testing.assert_close(target[0] - observed[0], target[1] - observed[1])
    for k in (0.3, 0.9):
        fitted = k * target
        risk = (fitted - clean).square().mean((1, 2, 3))
        variance = rule.sigma**2 + rule.tau**2
        error = 2 * variance * math.sqrt((1 - k) ** 2 / rule.tau**2 + 2 * k**2) / math.sqrt(values)
        error += 4 * math.sqrt(variance / values)  # of the mean of the squared noise, and its product with the image
        assert (rule.statistic(seen(fitted, observed)) - risk).abs().max() < 3 * error
    residual = fitted - observed
    divergence = (residual * b).mean((1, 2, 3)) / rule.tau
    assert divergence.sub(0.9).abs().max() < 4 * 0.1 / (rule.tau * math.sqrt(values)) + 0.03
    expected = ((target - fitted) ** 2).mean((1, 2, 3)) - variance + 2 * variance * divergence
    torch.testing.assert_close(rule.statistic(seen(fitted, observed)), expected)


@pytest.mark.parametrize("rule", [Sure(sigma=SIGMA, rate=0.3, patience=5), Validation(0.3, 0.3, 5)])
def test_the_least_smoothed_statistic_is_chosen(rule):
    frames, observed, _ = trajectory()
    begun(rule, observed)
    values = np.array([rule.statistic(seen(frame, observed)).tolist() for frame in frames])
    chosen, end = run(rule, frames, observed)
    assert list(zip(chosen, end, strict=True)) == [smoothed_minimum(values[:, i], 0.3, 5) for i in range(N)]


def test_validation_is_the_error_at_the_hidden_pixels():
    observed = draw(N, 3, 10, 12).sigmoid()
    rule = Validation(fraction=0.1)
    target, hidden = rule.prepare(observed, torch.Generator().manual_seed(0))
    mask = hidden.expand_as(observed).numpy()
    assert hidden.shape == (1, 1, 10, 12)
    assert mask[0, 0].sum() == 12
    assert torch.equal(target[~hidden.expand_as(observed)], observed[~hidden.expand_as(observed)])
    fitted = draw(N, 3, 10, 12, seed=1)
    squares = ((fitted - observed) ** 2).numpy()
    expected = [squares[i][mask[i]].mean() for i in range(N)]
    np.testing.assert_allclose(rule.statistic(seen(fitted, observed)).numpy(), expected)


@pytest.mark.parametrize("loss", ["mse", "l1", "cosine", "masked"])
def test_hidden_values_never_reach_the_fit(loss):
    """Changed or not, the iterates are the same, bit by bit: those the rule does not choose, too."""
    observed = draw(2, 3, 16, 16).sigmoid()
    config = dataclasses.replace(TINY, stopping="validation", loss="mse" if loss == "masked" else loss)
    known = torch.ones(1, 1, 16, 16)
    known[..., :4] = 0
    given = masked_mse(known) if loss == "masked" else None
    with fit_context(observed.device, "full"):
        problem = build_problem(observed, config, 0, None, None, None)
    hidden = build_rule(config).prepare(observed, torch.Generator().manual_seed(problem.rule_seed))[1]
    iterates = []
    for images in (observed, torch.where(hidden, 1 - observed, observed)):
        trace = []
        fit(images, config, loss=given, callback=lambda p, trace=trace: trace.append(p.output.clone()))
        iterates.append(torch.stack(trace))
    assert torch.equal(*iterates)
    shown = ~hidden & (torch.arange(16) == 15)  # the control: a value that is seen
    other = []
    changed = torch.where(shown, 1 - observed, observed)
    fit(changed, config, loss=given, callback=lambda p: other.append(p.output.clone()))
    assert not torch.equal(torch.stack(other), iterates[0])


def halves(image: np.ndarray) -> list[tuple[float, float]]:
    """D1 and D2 of every cell of (C, H, W)."""
    C, H, W = image.shape
    cells = [image[c, h : h + 2, w : w + 2] for c in range(C) for h in range(0, H - 1, 2) for w in range(0, W - 1, 2)]
    return [((m[0, 0] + m[1, 1]) / 2, (m[0, 1] + m[1, 0]) / 2) for m in cells]


def test_sub_image_multiplies_the_residuals_of_the_diagonals():
    fitted, observed = draw(N, 3, 7, 8), draw(N, 3, 7, 8, seed=1)
    for i in range(N):
        expected = np.mean([d1 * d2 for d1, d2 in halves((observed - fitted)[i].numpy())])
        assert SubImage().statistic(seen(fitted, observed))[i].item() == pytest.approx(expected)


def test_sub_image_of_noise_alone_is_about_zero():
    noise = draw(4, 3, 64, 64)
    zero = torch.zeros_like(noise)
    deviation = 0.5 / math.sqrt(3 * 32 * 32)  # of the mean over as many cells, whose halves have a variance of 1 / 2
    assert (SubImage().statistic(seen(zero, noise)).abs() < 4 * deviation).all()
    smooth = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    assert (SubImage().statistic(seen(zero, smooth)) > 0.05).all()  # structure is missing
    assert (SubImage().statistic(seen(smooth, noise)) < -0.05).all()  # the fit carries noise over


def test_sub_image_is_done_where_the_smoothed_product_falls_to_zero():
    frames, observed, _ = trajectory(80)
    frames = torch.cat([frames, torch.nn.functional.avg_pool2d(observed, 3, 1, 1).expand(20, -1, -1, -1, -1)])
    chosen, end = run(SubImage(rate=0.4), frames, observed)
    for i in range(N):
        products = [np.mean([a * b for a, b in halves((observed - frame)[i].numpy())]) for frame in frames]
        s, t = products[0], 1
        while s > 0:
            t += 1
            s = s + 0.4 * (products[t - 1] - s)
        assert 1 < t < 100
        assert chosen[i] == end[i] == t


def test_blind_discrepancy_of_noise_alone_is_about_zero():
    noise = torch.tensor([0.05, 0.1, 0.2, 0.3], dtype=torch.float64).view(4, 1, 1, 1) * draw(4, 3, 64, 64)
    ramps = torch.linspace(0, 1, 64).view(64, 1) + torch.linspace(0, 1, 64)  # which the mask does not see
    variance = noise.square().flatten(1).mean(1)
    fit_to = [BlindDiscrepancy().statistic(seen(shown, ramps + noise)) for shown in (ramps.expand(4, 3, 64, 64), noise)]
    assert (fit_to[0].abs() < 0.1 * variance).all()
    assert (fit_to[1] > variance).all()  # structure is missing
    assert (BlindDiscrepancy().statistic(seen(ramps + 0.5 * noise, ramps + noise)) < -0.5 * variance).all()


def test_blind_discrepancy_is_done_where_the_smoothed_residual_falls_to_the_noise():
    frames, observed, _ = trajectory()
    chosen, end = run(BlindDiscrepancy(factor=0.8, rate=0.4), frames, observed)
    r, y = (observed - frames).numpy(), observed.numpy()
    shared = (r.sum(2) ** 2).mean((2, 3)) / 3  # (T, N)
    mask = np.outer([1, -2, 1], [1, -2, 1])
    for i in range(N):
        detail = [(y[i, c, h : h + 3, w : w + 3] * mask).sum() for c in range(3) for h in range(6) for w in range(6)]
        variance = np.mean(np.square(detail)) / 36
        s, t = shared[0, i], 1
        while s > 0.8 * variance:
            t += 1
            s = s + 0.4 * (shared[t - 1, i] - s)
        assert t > 1
        assert chosen[i] == end[i] == t


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("discrepancy", {"sigma": 0.2}),
        ("sure", {"sigma": 0.2, "patience": 60}),
        ("validation", {"patience": 60}),
        ("sub_image", {}),
        ("blind_discrepancy", {}),
    ],
)
def test_the_chosen_iterate_of_a_fit_beats_its_last(name, options):
    """A smooth image under noise, fitted for long: the rule stops in time."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.nn.functional.interpolate(torch.rand(1, 3, 3, 3, generator=generator), (24, 24), mode="bilinear")
    observed = clean + 0.2 * torch.randn(clean.shape, generator=generator)
    config = dataclasses.replace(TINY, architecture_options={"channels": [24], "skip_channels": 4}, iterations=300)
    last = (fit(observed, config).reconstruction - clean).square().mean()
    result = fit(observed, dataclasses.replace(config, stopping=name, stopping_options=options))
    assert result.stopped.all()
    assert (result.reconstruction - clean).square().mean() < 0.8 * last


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DIPDefend(patch=0), "patch must be an integer of at least 1, got 0"),
        (lambda: DIPDefend(rate=0), r"rate must lie in \(0, 1\], got 0"),
        (lambda: DIPDefend(patience=0), "patience must be an integer of at least 1"),
        (lambda: Discrepancy(), "sigma must be given in .* such as 25/255 and be positive, got None"),
        (lambda: Discrepancy(sigma=25), "sigma must be given in .*, got 25"),
        (lambda: Discrepancy(sigma=0.1, factor=0), "factor must be positive and finite, got 0"),
        (lambda: Sure(), "sigma must be given in"),
        (lambda: Sure(sigma="big"), "sigma must be given in .*, got 'big'"),
        (lambda: Sure(sigma=0.1, probe=math.inf), "probe must be positive and finite, got inf"),
        (lambda: Sure(sigma=0.1, rate=1.5), r"rate must lie in \(0, 1\], got 1.5"),
        (lambda: Validation(fraction=0), "fraction must lie between 0 and 1, got 0"),
        (lambda: Validation(fraction=1), "fraction must lie between 0 and 1, got 1"),
        (lambda: Validation(fraction=math.nan), "fraction must lie between 0 and 1, got nan"),
        (lambda: SubImage(rate=True), r"rate must lie in \(0, 1\], got True"),
        (lambda: BlindDiscrepancy(factor=0), "factor must be positive and finite, got 0"),
        (lambda: BlindDiscrepancy(rate=-1), r"rate must lie in \(0, 1\], got -1"),
        (lambda: begun(Validation(), torch.zeros(1, 3, 1, 1)), "observed must have at least 2 pixels"),
        (lambda: begun(SubImage(), torch.zeros(1, 3, 1, 8)), r"observed must have sides of at least 2 .*\(1, 8\)"),
        (lambda: begun(BlindDiscrepancy(), torch.zeros(1, 3, 8, 2)), r"sides of at least 3 pixels, got \(8, 2\)"),
    ],
)
def test_bad_options_and_images_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rule_draws_the_same_for_every_batch():
    few, many = draw(1, 3, 8, 8), draw(5, 3, 8, 8, seed=1)
    drawn = [begun(Sure(sigma=0.1), x).b for x in (few, many)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], begun(Sure(sigma=0.1), few, seed=1).b)
    assert torch.equal(*(begun(Validation(), x).positions for x in (few, many)))
