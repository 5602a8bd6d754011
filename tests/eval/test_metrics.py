"""PSNR against its closed form, SSIM against scikit-image."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as skimage_data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from eval.metrics import psnr, ssim

METRICS = {"psnr": psnr, "ssim": ssim}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def noisy(images: Tensor, sigma: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return images + sigma * torch.randn(images.shape, generator=generator, dtype=images.dtype)


def photo(grey: bool = False) -> Tensor:
    """Two crops of a photograph, (2, C, 96, 80)."""
    pixels = skimage_data.camera()[..., None] if grey else skimage_data.astronaut()
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    return torch.stack([image[:, 60:156, 180:260], image[:, 300:396, 40:120]])


def skimage_ssim(a: Tensor, b: Tensor) -> float:
    return float(
        structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=0,
        )
    )


@pytest.mark.parametrize("error", [0.1, 0.01, 1e-4])
def test_psnr_of_a_constant_error(error: float) -> None:
    reference = torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64)
    assert torch.allclose(psnr(reference + error, reference), torch.tensor(-20 * math.log10(error)).double())


def test_psnr_of_equal_images_is_infinite() -> None:
    assert psnr(photo(), photo()).tolist() == [math.inf, math.inf]


def test_psnr_does_not_clip() -> None:
    white = torch.ones(1, 1, 8, 8)
    assert psnr(white + 0.1, white).item() == pytest.approx(20, abs=1e-4)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5])
def test_both_agree_with_scikit_image(grey: bool, sigma: float) -> None:
    reference = photo(grey)
    reconstruction = noisy(reference, sigma)
    expected = [skimage_ssim(a, b) for a, b in zip(reconstruction, reference, strict=True)]
    assert ssim(reconstruction, reference).tolist() == pytest.approx(expected, abs=1e-4)
    expected = [
        peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1)
        for a, b in zip(reconstruction, reference, strict=True)
    ]
    assert psnr(reconstruction, reference).tolist() == pytest.approx(expected, abs=1e-3)


def test_ssim_leaves_the_border_out() -> None:
    """An error at the border counts only through windows inside the image, as in scikit-image."""
    reference = photo()[:1]
    reconstruction = reference.clone()
    reconstruction[..., :5, :] = 0
    assert ssim(reconstruction, reference).item() == pytest.approx(
        skimage_ssim(reconstruction[0], reference[0]), abs=1e-4
    )


@pytest.mark.parametrize("shape", [(1, 3, 11, 11), (1, 1, 11, 32), (3, 3, 16, 12)])
def test_ssim_of_small_images(shape: tuple[int, ...]) -> None:
    reference = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    reconstruction = noisy(reference, 0.2)
    expected = [skimage_ssim(a, b) for a, b in zip(reconstruction, reference, strict=True)]
    assert ssim(reconstruction, reference).tolist() == pytest.approx(expected, abs=1e-4)


@every_metric
def test_one_value_per_image_whatever_its_neighbours(metric) -> None:
    reference = photo()
    reconstruction = noisy(reference, 0.1)
    both = metric(reconstruction, reference)
    one = metric(reconstruction[:1], reference[:1])
    assert both.shape == (2,)
    assert one.shape == (1,)
    assert one[0] == pytest.approx(both[0].item(), abs=1e-5)
    assert metric(reconstruction.flip(0), reference.flip(0)).tolist() == pytest.approx(both.flip(0).tolist())
    assert metric(reference, reconstruction).tolist() == pytest.approx(both.tolist())


def test_ssim_of_equal_images_is_one() -> None:
    assert ssim(photo(), photo()).tolist() == pytest.approx([1, 1])


@every_metric
def test_other_shapes_and_types_are_refused(metric) -> None:
    images = photo()
    with pytest.raises(ValueError, match="of one shape, got"):
        metric(images, images[:1])
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\)"):
        metric(images[0], images[0])
    with pytest.raises(TypeError, match="floating point"):
        metric(images, images.double())
    with pytest.raises(TypeError, match="floating point"):
        metric((images * 255).byte(), (images * 255).byte())


def test_ssim_refuses_sides_under_the_window() -> None:
    with pytest.raises(ValueError, match="at least 11 pixels, got"):
        ssim(torch.rand(1, 3, 10, 32), torch.rand(1, 3, 10, 32))


def test_ssim_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match=r"dipdefense\[eval\]"):
        ssim(photo(), photo())


@pytest.mark.data
def test_camera_noise_has_the_psnr_its_readme_states(data: Path) -> None:
    """data/README.md: PSNR(real, mean) of the PolyU pairs is 31.1 to 33.1 dB."""

    def read(path: Path) -> Tensor:
        return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255

    values = [
        psnr(read(real), read(Path(str(real).replace("_real", "_mean")))).item()
        for real in sorted((data / "polyu").glob("*_real.JPG"))
    ]
    assert len(values) == 6
    assert min(values) == pytest.approx(31.1, abs=0.06)
    assert max(values) == pytest.approx(33.1, abs=0.06)
