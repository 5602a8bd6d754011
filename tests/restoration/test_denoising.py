"""`denoise` of independent noise: what it removes, what it leaves, how tiles, runs and filters act together."""

import pytest
import torch
from restoration_images import BRIEF, QUICK, error, noise, smooth

from dipdefense import denoise, fit
from dipdefense.filters.collaborative_filter import collaborative_wiener
from dipdefense.filters.cosine_filters import threshold
from dipdefense.filters.noise_estimate import estimate_sigma


def test_denoising_takes_noise_out():
    clean = smooth(height=32, width=32)
    noisy = (clean + 0.2 * noise(clean)).clamp(0, 1)
    assert error(denoise(noisy, config=QUICK), clean) < 0.3 * error(noisy, clean)


def test_runs_are_averaged_over_seeds_and_progress_counts_them_all():
    images, shares = smooth(1), []
    mean = denoise(images, runs=2, seed=4, config=BRIEF, callback=lambda state: shares.append(state.share))
    alone = [fit(images, BRIEF, seed=seed).reconstruction for seed in (4, 5)]
    torch.testing.assert_close(mean, (alone[0] + alone[1]) / 2)
    assert shares == pytest.approx([i / 24 for i in range(1, 25)])


def test_by_default_noise_goes_at_every_strength(small_fits):
    """Each image has its own noise, and tiles of its own."""
    clean = smooth(4, 3, 40, 40, seed=3)
    sigma = torch.tensor([0.0, 0.02, 0.06, 0.2]).view(4, 1, 1, 1)
    noisy = (clean + sigma * noise(clean)).clamp(0, 1)
    result = denoise(noisy)
    left = [error(a, b) / max(1e-9, error(c, b)) for a, b, c in zip(result, clean, noisy, strict=True)]
    assert torch.equal(result[0], noisy[0])  # nothing to be removed
    assert max(left[1:]) < 0.25


def test_the_filters_need_the_fit_and_the_fit_needs_them(small_fits):
    clean = 0.5 + 0.3 * torch.sign(smooth(1, 3, 40, 40, seed=3) - 0.5)  # edges, which 8x8 cosines do not have
    noisy = (clean + 0.05 * noise(clean)).clamp(0, 1)
    sigma = estimate_sigma(noisy)
    without_fit = collaborative_wiener(noisy, threshold(noisy, sigma), sigma)
    without_filters = denoise(noisy, refine=False)
    assert error(denoise(noisy), clean) < min(error(without_fit, clean), error(without_filters, clean))


def test_grey_stored_as_colour_is_denoised_as_grey(small_fits):
    grey = (smooth(2, 1, 30, 30) + 0.1 * noise(smooth(2, 1, 30, 30))).clamp(0, 1)
    colour = (smooth(1, 3, 30, 30) + 0.1 * noise(smooth(1, 3, 30, 30))).clamp(0, 1)
    mixed = torch.cat([grey[:1].expand(-1, 3, -1, -1), colour, grey[1:].expand(-1, 3, -1, -1)])
    shares: list[float] = []
    together = denoise(mixed, callback=lambda state: shares.append(state.share))
    torch.testing.assert_close(together[[0, 2]], denoise(grey).expand(-1, 3, -1, -1), atol=2e-3, rtol=0)
    assert shares == sorted(shares)
    assert 0.5 < max(shares) <= 1


def test_tiles_of_an_image_are_joined_without_seams(small_fits):
    """The error at the borders of the tiles is not larger than elsewhere."""
    clean = smooth(1, 3, 60, 60, seed=3)
    noisy = (clean + 0.1 * noise(clean)).clamp(0, 1)
    wrong = (denoise(noisy) - clean).square().mean((0, 1))
    starts = [0, 18, 36]
    seams = torch.zeros(60, dtype=torch.bool)
    seams[[position + edge for position in starts[1:] for edge in (-1, 0, 5, 6)]] = True
    assert wrong[seams].mean() < 1.5 * wrong[~seams].mean()
    assert wrong[:, seams].mean() < 1.5 * wrong[:, ~seams].mean()


def test_every_fit_has_its_own_checkpoint(small_fits, tmp_path):
    noisy = (smooth(1) + 0.1 * noise(smooth(1))).clamp(0, 1)
    whole = denoise(noisy, runs=2, checkpoint=tmp_path / "fit")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.1", "fit.2"]
    assert torch.equal(denoise(noisy, runs=2, checkpoint=tmp_path / "fit"), whole)


@pytest.mark.parametrize("runs", [0, 1.5, True])
def test_bad_runs_are_refused(runs):
    with pytest.raises(ValueError, match="runs must be an integer of at least 1, got"):
        denoise(smooth(), runs=runs, config=BRIEF)
