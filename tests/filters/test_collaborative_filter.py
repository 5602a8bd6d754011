"""The collaborative filter: what it leaves unchanged, a closed form, and the same with the transforms of scipy."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from dipdefense.filters import collaborative_filter
from dipdefense.filters.collaborative_filter import collaborative_wiener


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 1, 5, 9), (1, 3, 8, 8), (1, 4, 3, 2), (2, 3, 30, 21)])
def test_no_noise_changes_nothing(shape):
    images = draw(*shape)
    torch.testing.assert_close(collaborative_wiener(images, draw(*shape, seed=1), torch.zeros(shape[0])), images)


def test_a_constant_image_by_hand():
    """All 16 patches of a group are one, so of its coefficients only the mean is not 0: 5 * 4 c."""
    images, pilot = torch.full((1, 1, 20, 20), 0.5).double(), torch.full((1, 1, 20, 20), 0.25).double()
    filtered = collaborative_wiener(images, pilot, torch.tensor([2.0]).double())
    torch.testing.assert_close(filtered, torch.full_like(images, 0.5 * 5**2 / (5**2 + 2**2)))


def padded(image: torch.Tensor) -> np.ndarray:
    return np.pad(image[0, 0].numpy(), 4, mode="reflect")


def test_a_group_has_the_patches_that_are_most_alike_and_its_own_first():
    pilot = padded(draw(1, 1, 14, 11))
    patches = np.lib.stride_tricks.sliding_window_view(pilot, (5, 5)).reshape(-1, 25)
    groups = collaborative_filter._groups(torch.from_numpy(pilot)[None, None], 5)[0].numpy()
    h, w = (side - 4 for side in pilot.shape)
    own = [i * w + j for i in range(0, h, 2) for j in range(0, w, 2)]
    assert groups[:, 0].tolist() == own
    for place, group in zip(own, groups, strict=True):
        apart = np.square(patches - patches[place]).sum(1)
        near = [abs(at // w - place // w) <= 16 and abs(at % w - place % w) <= 16 for at in range(h * w)]
        np.testing.assert_allclose(apart[group], np.sort(apart[near])[:16], atol=1e-9)
        assert len(set(group)) == 16


def test_the_transforms_of_scipy_give_the_same():
    image, pilot, sigma = draw(1, 1, 14, 11), draw(1, 1, 14, 11, seed=1), torch.tensor([0.8], dtype=torch.float64)
    y, p = padded(image), padded(pilot)
    total, weights, w = np.zeros_like(y), np.zeros_like(y), y.shape[1] - 4
    for group in collaborative_filter._groups(torch.from_numpy(p)[None, None], 5)[0].tolist():
        places = [(slice(at // w, at // w + 5), slice(at % w, at % w + 5)) for at in group]
        Y, P = (dctn(np.stack([x[place] for place in places]), norm="ortho") for x in (y, p))
        weight = P**2 / (P**2 + 0.8**2)
        for place, patch in zip(places, dctn(weight * Y, type=3, norm="ortho"), strict=True):
            total[place] += patch / np.mean(weight**2)
            weights[place] += 1 / np.mean(weight**2)
    found = collaborative_wiener(image, pilot, sigma)[0, 0].numpy()
    np.testing.assert_allclose(found, (total[4:-4, 4:-4] / weights[4:-4, 4:-4]), atol=1e-10)


def test_one_sigma_for_every_coefficient_is_white_noise():
    images, pilot, sigma = draw(2, 3, 20, 20), draw(2, 3, 20, 20, seed=1), torch.tensor([0.3, 0.7]).double()
    spectrum = sigma.view(2, 1, 1).expand(2, 3, 25)
    of_spectrum = collaborative_wiener(images, pilot, spectrum)
    torch.testing.assert_close(of_spectrum, collaborative_wiener(images, pilot, sigma))
    louder = collaborative_wiener(images, pilot, spectrum * torch.linspace(1, 3, 25))
    assert louder.square().mean() < of_spectrum.square().mean()


@pytest.mark.parametrize("block", [256, 32, 20])  # three images together, two, and blocks of each
def test_images_of_a_batch_do_not_affect_each_other(monkeypatch, block):
    monkeypatch.setattr(collaborative_filter, "BLOCK", block)
    images, pilot, sigma = draw(3, 3, 20, 24), draw(3, 3, 20, 24, seed=1), torch.tensor([0.3, 0, 0.7]).double()
    alone = [collaborative_wiener(images[i : i + 1], pilot[i : i + 1], sigma[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(collaborative_wiener(images, pilot, sigma), torch.cat(alone))


def test_blocks_of_a_large_image_leave_no_seams(monkeypatch):
    down, across = torch.meshgrid(torch.arange(96.0), torch.arange(70.0), indexing="ij")
    clean = (0.5 + 0.3 * torch.sin(down / 5) * torch.sin(across / 7)).double().expand(1, 3, -1, -1)
    noisy, sigma = clean + 0.1 * draw(1, 3, 96, 70), torch.tensor([0.1]).double()
    whole = collaborative_wiener(noisy, clean, sigma)
    monkeypatch.setattr(collaborative_filter, "BLOCK", 60)
    shares = []
    in_blocks = collaborative_wiener(noisy, clean, sigma, shares.append)
    assert shares == [0, 0.25, 0.5, 0.75, 1]
    assert (in_blocks - whole).abs().max() > 0  # they do have other groups
    assert (in_blocks - whole).square().mean() < 0.05 * (whole - clean).square().mean()
    wrong = (in_blocks - clean).square().mean((0, 1))
    assert wrong[32:64].mean() < 1.5 * wrong.mean()  # where the blocks meet


def test_what_comes_again_is_averaged(monkeypatch):
    """A square of random pixels, repeated: each patch has detail of all frequencies, and 16 and more are the same."""
    clean = draw(1, 3, 8, 8).sigmoid().repeat(1, 1, 6, 6)
    noisy, sigma = clean + 0.2 * draw(1, 3, 48, 48, seed=1), torch.tensor([0.2]).double()
    in_groups = (collaborative_wiener(noisy, clean, sigma) - clean).square().mean()
    monkeypatch.setattr(collaborative_filter, "GROUP", 1)
    assert in_groups < (collaborative_wiener(noisy, clean, sigma) - clean).square().mean() / 4
