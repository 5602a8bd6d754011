"""The collaborative filter: what it leaves unchanged, a closed form, and the same with the transforms of scipy."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from dipdefense.restoration.filters import collaborative_filter
from dipdefense.restoration.filters.collaborative_filter import collaborative_wiener


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 1, 5, 9), (1, 3, 8, 8), (1, 4, 3, 2), (2, 3, 30, 21)])
def test_no_noise_changes_nothing(shape):
    images = draw(*shape)
    torch.testing.assert_close(collaborative_wiener(images, draw(*shape, seed=1), torch.zeros(shape[0])), images)


def test_a_constant_image_by_hand():
    """All 16 patches of a group are one, so of its coefficients only the mean is not 0: 8 * 4 c."""
    images, pilot = torch.full((1, 1, 20, 20), 0.5).double(), torch.full((1, 1, 20, 20), 0.25).double()
    filtered = collaborative_wiener(images, pilot, torch.tensor([2.0]).double())
    torch.testing.assert_close(filtered, torch.full_like(images, 0.5 * 8**2 / (8**2 + 2**2)))


def filtered_by_scipy(image: np.ndarray, pilot: np.ndarray, sigma: float) -> np.ndarray:
    """The same for a grey image (H, W), group by group."""
    y, p = (np.pad(x, 7, mode="reflect") for x in (image, pilot))
    h, w = (side - 7 for side in y.shape)
    places = [(i, j) for i in range(h) for j in range(w)]
    total, weights = np.zeros_like(y), np.zeros_like(y)
    for i, j in places:
        if i % 3 or j % 3:
            continue
        near = [at for at in places if max(abs(at[0] - i), abs(at[1] - j)) <= 16]
        apart = [((p[a : a + 8, b : b + 8] - p[i : i + 8, j : j + 8]) ** 2).sum() for a, b in near]
        group = [near[k] for k in np.argsort(apart)[:16]]
        Y, P = (dctn(np.stack([x[a : a + 8, b : b + 8] for a, b in group]), norm="ortho") for x in (y, p))
        weight = P**2 / (P**2 + sigma**2)
        back = dctn(weight * Y, type=3, norm="ortho")
        trust = 1 / np.mean(weight**2)
        for (a, b), patch in zip(group, back, strict=True):
            total[a : a + 8, b : b + 8] += trust * patch
            weights[a : a + 8, b : b + 8] += trust
    return total[7:-7, 7:-7] / weights[7:-7, 7:-7]


def test_the_transforms_of_scipy_give_the_same():
    image, pilot = draw(1, 1, 14, 11), draw(1, 1, 14, 11, seed=1)
    found = collaborative_wiener(image, pilot, torch.tensor([0.8], dtype=torch.float64))
    expected = filtered_by_scipy(image[0, 0].numpy(), pilot[0, 0].numpy(), 0.8)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-10)


def test_one_sigma_for_every_coefficient_is_white_noise():
    images, pilot, sigma = draw(2, 3, 20, 20), draw(2, 3, 20, 20, seed=1), torch.tensor([0.3, 0.7]).double()
    spectrum = sigma.view(2, 1, 1).expand(2, 3, 64)
    of_spectrum = collaborative_wiener(images, pilot, spectrum)
    torch.testing.assert_close(of_spectrum, collaborative_wiener(images, pilot, sigma))
    louder = collaborative_wiener(images, pilot, spectrum * torch.linspace(1, 3, 64))
    assert louder.square().mean() < of_spectrum.square().mean()


def test_images_of_a_batch_do_not_affect_each_other():
    images, pilot, sigma = draw(2, 1, 20, 24), draw(2, 1, 20, 24, seed=1), torch.tensor([0.3, 0.7]).double()
    alone = [collaborative_wiener(images[i : i + 1], pilot[i : i + 1], sigma[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(collaborative_wiener(images, pilot, sigma), torch.cat(alone))


def test_blocks_of_a_large_image_leave_no_seams(monkeypatch):
    down, across = torch.meshgrid(torch.arange(96.0), torch.arange(70.0), indexing="ij")
    clean = (0.5 + 0.3 * torch.sin(down / 5) * torch.sin(across / 7)).double().expand(1, 3, -1, -1)
    noisy, sigma = clean + 0.1 * draw(1, 3, 96, 70), torch.tensor([0.1]).double()
    whole = collaborative_wiener(noisy, clean, sigma)
    monkeypatch.setattr(collaborative_filter, "BLOCK", 60)
    in_blocks = collaborative_wiener(noisy, clean, sigma)
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
