"""What holds for every restoration task, and for its settings."""

import dataclasses

import pytest
import torch
from restoration_images import BRIEF, QUICK, error, holes, noise, smooth

from dipdefense import denoise, flash_no_flash, inpaint, remove_jpeg_artifacts, super_resolve
from dipdefense.fitting.config import build_network
from dipdefense.fitting.problem import canvas
from dipdefense.restoration.presets import PIXELS, PUBLISHED, PUBLISHED_INPAINTING, SMALL, published_super_resolution

TASKS = {
    "denoise": lambda images, **numbers: denoise(images, **numbers),
    "remove_jpeg_artifacts": lambda images, **numbers: remove_jpeg_artifacts(images, **numbers),
    "inpaint": lambda images, **numbers: inpaint(images, holes(images, 0.0), **numbers),
    "super_resolve": lambda images, **numbers: super_resolve(images, 2, **numbers),
    "flash_no_flash": lambda images, **numbers: flash_no_flash(images, images, **numbers),
}


@pytest.mark.parametrize("task", ["denoise", "inpaint", "remove_jpeg_artifacts", "super_resolve"])
def test_results_have_no_gradient_and_inference_mode_is_no_obstacle(task):
    images = smooth(1).double()  # two fits in float32 would differ by more
    refined = {"config": BRIEF, "refine": True}
    result = TASKS[task](images.clone().requires_grad_(), **refined)
    assert not result.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(TASKS[task](images, **refined), result, atol=1e-9, rtol=0)


@pytest.mark.parametrize("task", ["denoise", "inpaint", "remove_jpeg_artifacts", "super_resolve"])
def test_a_tile_of_no_pixels_is_refused(task):
    with pytest.raises(ValueError, match="tile must be None or an integer of at least 1, got 0"):
        TASKS[task](smooth(), config=BRIEF, tile=0)


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


@pytest.mark.parametrize("task", ["denoise", "inpaint", "super_resolve"])
def test_once_the_fits_have_ended_filters_say_how_far_they_are(task):
    """A grey and a colour image, which `denoise` fits and filters one after the other."""
    images = (smooth() + 0.1 * noise(smooth())).clamp(0, 1)
    images[1] = images[1, :1]
    seen, steps = [], []
    keywords = {"config": BRIEF, "callback": lambda state: steps.append(len(seen)), "filter_callback": seen.append}
    TASKS[task](images, refine=True, **keywords)
    assert seen[0] == 0
    assert seen[-1] == 1
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert steps == [0] * 12 + ([len(seen) // 2] * 12 if task == "denoise" else [])
    del seen[:]
    TASKS[task](images, refine=False, **keywords)
    assert not seen


@pytest.mark.parametrize("task", TASKS)
def test_what_is_no_image_is_refused(task):
    with pytest.raises(ValueError, match=r"must be within \[0, 1\], got"):
        TASKS[task](2 + smooth(), config=BRIEF)
    with pytest.raises(TypeError, match="must have a floating dtype, got"):
        TASKS[task](torch.zeros(1, 3, 8, 8, dtype=torch.uint8), config=BRIEF)
    with pytest.raises(ValueError, match="tv must be a weight that is finite and not negative, got -1"):
        TASKS[task](smooth(), config=BRIEF, tv=-1)


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
