"""Restoration tasks: what each recovers, what it never reads, and what it refuses."""

import dataclasses

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from dipdefense import (
    STOPPING_RULES,
    FitConfig,
    denoise,
    fit,
    flash_no_flash,
    inpaint,
    remove_jpeg_artifacts,
    super_resolve,
)
from dipdefense.files.reading import read_image
from dipdefense.fitting.config import build_network
from dipdefense.fitting.problem import canvas
from dipdefense.restoration.filters.collaborative_filter import collaborative_wiener
from dipdefense.restoration.filters.cosine_filters import fill, threshold
from dipdefense.restoration.inpainting import tile_side
from dipdefense.restoration.noise_estimate import estimate_sigma
from dipdefense.restoration.operators import downsample
from dipdefense.restoration.presets import (
    PIXELS,
    PUBLISHED,
    PUBLISHED_INPAINTING,
    SMALL,
    SMALL_HOLES,
    published_super_resolution,
)
from dipdefense.tiles import cut, join

QUICK = FitConfig(
    architecture_options={"channels": [8, 16], "skip_channels": 0, "upsampling": "nearest"},
    input_channels=8,
    iterations=150,
    ema=0.9,
)
BRIEF = dataclasses.replace(QUICK, iterations=12)


def smooth(n: int = 2, channels: int = 3, height: int = 20, width: int = 24, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(n, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


def noise(images: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().item()


def holes(images: torch.Tensor, share: float = 0.5) -> torch.Tensor:
    """A mask for each image; 1 = known pixel."""
    size = (len(images), 1, *images.shape[2:])
    return torch.rand(size, generator=torch.Generator().manual_seed(2)) > share


TASKS = {
    "denoise": lambda images, **numbers: denoise(images, **numbers),
    "remove_jpeg_artifacts": lambda images, **numbers: remove_jpeg_artifacts(images, **numbers),
    "inpaint": lambda images, **numbers: inpaint(images, holes(images, 0.0), **numbers),
    "super_resolve": lambda images, **numbers: super_resolve(images, 2, **numbers),
    "flash_no_flash": lambda images, **numbers: flash_no_flash(images, images, **numbers),
}


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


@pytest.fixture
def small_fits(monkeypatch):
    """The defaults with a smaller network, fewer iterations but for `denoise`, and tiles of 24 pixels."""
    network = {"architecture_options": QUICK.architecture_options, "input_channels": 8, "ema": 0.9}
    monkeypatch.setitem(SMALL, "denoise", dataclasses.replace(SMALL["denoise"], **network))
    for task in ("inpaint", "super_resolve", "remove_jpeg_artifacts"):
        monkeypatch.setitem(SMALL, task, dataclasses.replace(SMALL[task], **network, iterations=150))
    holes = dataclasses.replace(SMALL_HOLES, **network, iterations=150)
    monkeypatch.setattr("dipdefense.restoration.inpainting.SMALL_HOLES", holes)
    monkeypatch.setattr("dipdefense.restoration.prior_fit.TILE", 24)


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


def edges(side: int) -> torch.Tensor:
    """Straight edges between two smooth images, (1, 3, side, side)."""
    dark, bright = 0.2 + smooth(1, 3, side, side, seed=3) / 4, 0.55 + smooth(1, 3, side, side, seed=4) / 4
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.where((rows + 2 * columns) % 40 < 20, dark, bright)


def seams(side: int, starts: list[int], overlap: int) -> torch.Tensor:
    """The pixels on both sides of where a tile begins, and of where the one before it ends: (side,) bool."""
    found = torch.zeros(side, dtype=torch.bool)
    found[[start + edge for start in starts[1:] for edge in (-1, 0, overlap - 1, overlap)]] = True
    return found


@pytest.mark.parametrize("kind", ["edges", "photograph"])
def test_by_default_inpainting_is_as_good_as_the_better_of_fit_and_filters(small_fits, kind):
    """On straight edges the fit is the better one, on the texture of a flower the filters are."""
    flower = torch.tensor(load_sample_image("flower.jpg")[200:260, 260:320]).permute(2, 0, 1)[None] / 255
    clean = edges(60) if kind == "edges" else flower
    mask = holes(clean)
    whole = inpaint(clean * mask, mask)
    fit_alone = error(inpaint(clean * mask, mask, refine=False, paste=True), clean)
    filters_alone = error(fill(clean, mask, torch.full_like(clean, 0.5)), clean)
    assert torch.equal(whole[mask.expand_as(whole)], clean[mask.expand_as(whole)])
    assert error(whole, clean) < 1.2 * min(fit_alone, filters_alone)
    assert error(whole, clean) < 0.85 * max(fit_alone, filters_alone)
    assert (fit_alone < filters_alone) == (kind == "edges")
    wrong, at = (whole - clean).square().mean((0, 1)), seams(60, [0, 18, 36], 6)
    assert wrong[at].mean() < 1.5 * wrong[~at].mean()
    assert wrong[:, at].mean() < 1.5 * wrong[:, ~at].mean()


def test_a_hole_as_large_as_a_tile_gets_a_larger_tile(small_fits):
    """A tile of 24 pixels inside the hole would know nothing."""
    hole = torch.ones(1, 1, 60, 60, dtype=torch.bool)
    hole[..., 16:42, 16:42] = False
    assert [tile_side(mask[0], 24) for mask in (hole, holes(edges(60)), hole[..., :24, :24])] == [48, 24, None]
    one_channel = hole.repeat(1, 3, 1, 1)
    one_channel[:, :2] = True
    assert tile_side(one_channel[0], 24) == 48
    clean = smooth(1, 3, 60, 60)
    filled = inpaint(clean.masked_fill(~hole, torch.nan), hole)
    assert error(filled, clean) < 0.5 * error(torch.where(hole, clean, 0.5), clean)


def test_a_hole_larger_than_a_tile_has_settings_of_its_own(small_fits, monkeypatch):
    monkeypatch.setattr("dipdefense.restoration.inpainting.SMALL_HOLES", BRIEF)
    images, mask = edges(48), holes(edges(48))
    mask[..., 10:38, 10:38] = False
    expected = inpaint(images, mask, config=BRIEF, tile=24, refine=True)
    torch.testing.assert_close(inpaint(images, mask), expected)
    more_memory = dataclasses.replace(SMALL["inpaint"], memory_gb=5.0)
    torch.testing.assert_close(inpaint(images, mask, config=more_memory, tile=24, refine=True), expected)


def test_the_hole_of_another_image_changes_nothing(tmp_path):
    images = edges(48).double().repeat(2, 1, 1, 1)
    mask = holes(images)
    mask[1] = True
    mask[1, :, 10:38, 10:38] = False
    settings = {"config": BRIEF, "tile": 24, "refine": True}
    both = inpaint(images, mask, checkpoint=tmp_path / "fit", **settings)
    torch.testing.assert_close(both[:1], inpaint(images[:1], mask[:1], **settings), atol=1e-6, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.1", "fit.2"]


@pytest.mark.parametrize("task", ["denoise", "inpaint", "remove_jpeg_artifacts", "super_resolve"])
def test_results_have_no_gradient_and_inference_mode_is_no_obstacle(task):
    images = smooth(1).double()  # two fits in float32 would differ by more
    refined = {"config": BRIEF, "refine": True}
    result = TASKS[task](images.clone().requires_grad_(), **refined)
    assert not result.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(TASKS[task](images, **refined), result, atol=1e-9, rtol=0)


def test_by_default_super_resolution_beats_the_fit_alone_and_has_no_seams(small_fits):
    clean, factor = edges(60), 3
    small = downsample(clean, factor)
    large = super_resolve(small, factor)
    assert large.shape == clean.shape
    assert error(downsample(large, factor), small) < 1e-4
    bicubic = torch.nn.functional.interpolate(small, (60, 60), mode="bicubic", align_corners=False)
    assert error(large, clean) < error(bicubic, clean)
    assert error(large, clean) < error(super_resolve(small, factor, refine=False), clean)
    wrong = (large - clean).square().mean((0, 1))
    at = seams(60, [0, 18, 36], 6)
    assert wrong[at].mean() < 1.5 * wrong[~at].mean()
    assert wrong[:, at].mean() < 1.5 * wrong[:, ~at].mean()


def test_artefacts_are_removed_tile_by_tile():
    blocky = smooth(1, 3, 24, 16)
    expected = join(fit(cut(blocky, 16, 4), BRIEF).reconstruction, (24, 16), 16, 4)
    torch.testing.assert_close(remove_jpeg_artifacts(blocky, config=BRIEF, tile=16), expected)


def test_by_default_strong_artefacts_go_and_the_rest_stays_as_it_is(small_fits, tmp_path):
    """Each image as if it were alone; compressed at quality 10, 90 and not at all."""
    clean = torch.nn.functional.avg_pool2d(edges(80), 3, 1, 1)[:, :, 8:72, 8:72]
    seen = []
    for quality in (10, 90):
        levels = (clean[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(tmp_path / "compressed.jpg", quality=quality)
        seen.append(read_image(tmp_path / "compressed.jpg"))
    shares = []
    images = torch.stack([seen[1], seen[0], clean[0], seen[0]])
    result = remove_jpeg_artifacts(images, callback=lambda state: shares.append(state.share))
    assert torch.equal(result[0], images[0])
    assert torch.equal(result[2], images[2])
    assert error(result[1], clean[0]) < 0.9 * error(images[1], clean[0])
    torch.testing.assert_close(result[3], result[1], atol=1e-3, rtol=0)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    with pytest.raises(ValueError, match="images must have 1 or 3 channels, as JPEG has, got 2: set refine=False"):
        remove_jpeg_artifacts(clean[:, :2])


@pytest.mark.parametrize("task", ["denoise", "inpaint", "remove_jpeg_artifacts", "super_resolve"])
def test_a_tile_of_no_pixels_is_refused(task):
    with pytest.raises(ValueError, match="tile must be None or an integer of at least 1, got 0"):
        TASKS[task](smooth(), config=BRIEF, tile=0)


def test_inpainting_finds_the_missing_half():
    clean = smooth()
    mask = holes(clean)
    unknown = (~mask).expand_as(clean)
    filled = inpaint(torch.where(mask, clean, 0), mask, config=QUICK)
    assert error(filled[unknown], clean[unknown]) < 0.1 * error(clean[unknown], clean.mean())


OPTIONS = {
    "wmv": {"window": 5, "patience": 3},
    "discrepancy": {"sigma": 0.05},
    "sure": {"sigma": 0.05},
}


@pytest.mark.parametrize(
    "rule", [rule for rule in STOPPING_RULES if rule != "blind_discrepancy"]
)  # it wants all values
def test_unknown_pixels_never_leak(rule):
    """Whatever they hold, and whatever the stopping rule looks at."""
    clean = smooth(1, 1, 40, 40)
    mask = holes(clean, 0.3)
    config = dataclasses.replace(BRIEF, stopping=rule, stopping_options=OPTIONS.get(rule, {}))
    results = [inpaint(torch.where(mask, clean, other), mask, config=config) for other in (0.0, 255.0, float("nan"))]
    assert all(torch.equal(result, results[0]) for result in results)
    known = torch.where(mask, 1 - clean, clean)
    assert not torch.equal(inpaint(known, mask, config=config), results[0])


def test_pasting_puts_the_known_pixels_back_and_nothing_else():
    clean = smooth()
    mask = holes(clean)
    raw, pasted = (inpaint(clean, mask, config=BRIEF, paste=paste) for paste in (False, True))
    known = mask.expand_as(clean)
    assert torch.equal(pasted[known], clean[known])
    assert torch.equal(pasted[~known], raw[~known])
    assert not torch.equal(raw[known], clean[known])


def test_one_mask_for_all_equals_one_for_each():
    clean = smooth()
    mask = holes(clean)[:1]
    ours = inpaint(clean, mask, config=BRIEF)
    torch.testing.assert_close(ours, inpaint(clean, mask.float().expand(2, 3, -1, -1), config=BRIEF))


@pytest.mark.parametrize("factor", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_super_resolution_explains_the_small_image(factor):
    clean = smooth(2, 3, 8 * factor, 6 * factor)
    small = downsample(clean, factor)
    large = super_resolve(small, factor, config=dataclasses.replace(QUICK, iterations=300))
    assert large.shape == clean.shape
    assert error(downsample(large, factor), small) < 1e-3
    assert error(large, clean) < 3e-3


def test_flash_brings_detail_and_no_flash_the_light():
    """Texture that the noise hides is in the flash image; brightness and colour are in the other."""
    texture = 0.2 * torch.sign(smooth(1, 1, 32, 32, seed=3) - 0.5)
    clean = 0.4 + texture.expand(1, 3, -1, -1) * torch.tensor([1.0, 0.5, 0.2]).view(1, 3, 1, 1)
    dark = (clean + 0.15 * noise(clean)).clamp(0, 1)
    flash = 0.7 + texture
    config = dataclasses.replace(SMALL["flash_no_flash"], iterations=100)
    config = dataclasses.replace(config, architecture_options={"channels": [16, 16], "upsampling": "nearest"})
    ours = flash_no_flash(flash, dark, config=config)
    assert ours.shape == dark.shape
    blind = denoise(dark, config=config)
    assert error(ours, clean) < 0.6 * error(blind, clean) < 0.6 * error(dark, clean)


@pytest.mark.parametrize("task", TASKS)
def test_an_image_does_not_depend_on_its_neighbours(task):
    images = smooth().double()  # in float32 a fit amplifies the rounding that differs with the batch
    both, alone = TASKS[task](images, config=BRIEF), TASKS[task](images[1:], config=BRIEF)
    torch.testing.assert_close(both[1:], alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 1, 1, 9), (1, 3, 17, 5)])
def test_any_size_and_a_single_colour(task, shape):
    result = TASKS[task](torch.full(shape, 0.3), config=BRIEF)
    scale = 2 if task == "super_resolve" else 1
    assert result.shape == (*shape[:2], scale * shape[2], scale * shape[3])
    assert ((result >= 0) & (result <= 1)).all()


@pytest.mark.parametrize("task", TASKS)
def test_the_learning_free_rival_runs_through_the_same_function(task):
    images = smooth(2, 3, 12, 12)
    result = TASKS[task](images, config=dataclasses.replace(PIXELS, iterations=300), tv=1e-3)
    wanted = torch.nn.functional.interpolate(images, scale_factor=result.shape[2] // 12, mode="bicubic")
    assert error(result, wanted) < 2e-3


@pytest.mark.parametrize("task", TASKS)
def test_callback_and_stopping_rule_reach_the_fit(task):
    seen = []
    config = dataclasses.replace(QUICK, stopping="wmv", stopping_options={"window": 3, "patience": 2}, iterations=300)
    TASKS[task](smooth(1), config=config, callback=lambda state: seen.append(state.iteration))
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) < 300


@pytest.mark.parametrize("task", TASKS)
def test_what_is_no_image_is_refused(task):
    with pytest.raises(ValueError, match=r"must be within \[0, 1\], got"):
        TASKS[task](2 + smooth(), config=BRIEF)
    with pytest.raises(TypeError, match="must have a floating dtype, got"):
        TASKS[task](torch.zeros(1, 3, 8, 8, dtype=torch.uint8), config=BRIEF)
    with pytest.raises(ValueError, match="tv must be a weight that is finite and not negative, got -1"):
        TASKS[task](smooth(), config=BRIEF, tv=-1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(1, 1, 20, 23), r"mask must have the size of images, \(2, 3, 20, 24\).*got \(1, 1, 20, 23\)"),
        (torch.ones(3, 1, 20, 24), r"mask must have the size of images, .* got \(3, 1, 20, 24\)"),
        (torch.ones(1, 2, 20, 24), r"mask must have the size of images, .* got \(1, 2, 20, 24\)"),
        (torch.ones(20, 24), r"mask must have the size of images, .* got \(20, 24\)"),
        (torch.full((1, 1, 20, 24), 0.5), "mask must be binary"),
        (torch.zeros(1, 1, 20, 24), "mask must leave at least one known pixel in every image"),
    ],
)
def test_bad_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        inpaint(smooth(), mask, config=BRIEF)


def test_a_mask_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="images and mask must be tensors, got Tensor and NoneType"):
        inpaint(smooth(), None, config=BRIEF)


@pytest.mark.parametrize("factor", [1, 0, -2, 2.0, True])
def test_bad_factors_are_refused(factor):
    with pytest.raises(ValueError, match="factor must be an integer of at least 2, got"):
        super_resolve(smooth(), factor, config=BRIEF)


@pytest.mark.parametrize("runs", [0, 1.5, True])
def test_bad_runs_are_refused(runs):
    with pytest.raises(ValueError, match="runs must be an integer of at least 1, got"):
        denoise(smooth(), runs=runs, config=BRIEF)


def test_flash_of_another_size_is_refused():
    with pytest.raises(
        ValueError, match=r"flash and no_flash must have one size, got \(2, 3, 20, 24\) and \(2, 3, 20, 20\)"
    ):
        flash_no_flash(smooth(), smooth(width=20), config=BRIEF)
    with pytest.raises(ValueError, match="flash and no_flash must have one size"):
        flash_no_flash(smooth(3), smooth(2), config=BRIEF)


def test_fit_refuses_a_shape_that_z_cannot_hold():
    z = torch.zeros(1, 8, 16, 16)
    with pytest.raises(ValueError, match=r"z must be at least as large as shape, \(20, 24\), got \(16, 16\)"):
        fit(smooth(), BRIEF, z=z, shape=(3, 20, 24))
    for shape in ((3, 20), (3, 0, 4), (3, 2.0, 4)):
        with pytest.raises(ValueError, match=r"shape must be three positive integers \(C, H, W\), got"):
            fit(smooth(), BRIEF, shape=shape)


@pytest.mark.parametrize("config", [*PUBLISHED.values(), *PUBLISHED_INPAINTING.values(), *SMALL.values()])
def test_every_preset_is_a_network_with_room_for_an_image(config):
    with torch.device("meta"):
        net = build_network(config, 3)
        height, width = canvas(net, 33, 65)
        assert net(torch.zeros(1, config.input_channels, height, width)).shape == (1, 3, height, width)


def test_defaults_are_the_small_ones_and_the_published_are_those_of_the_paper():
    assert SMALL.keys() == PUBLISHED.keys() | {"denoise_camera"}
    count = {name: sum(p.numel() for p in build_network(config, 3).parameters()) for name, config in SMALL.items()}
    assert max(count.values()) < 300_000
    published = PUBLISHED["denoise"]
    assert sum(p.numel() for p in build_network(published, 3).parameters()) == 2_217_831
    assert published.iterations == 3000
    assert published.jitter == 1 / 30
    assert (published_super_resolution(4).jitter, published_super_resolution(8).jitter) == (0.03, 0.05)
    assert PUBLISHED_INPAINTING["holes"].input == "meshgrid"
