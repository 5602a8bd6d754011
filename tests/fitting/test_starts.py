import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch.func import functional_call

from dipdefense import Checkpoint, FitConfig, Start, defence_for, fit, learn_start, read_start
from dipdefense.fitting.config import build_network
from dipdefense.fitting.starts import find_start
from dipdefense.fitting.unroll import pull_back
from eval.datasets import load_dataset

CONFIG = FitConfig(
    architecture_options={"channels": [4, 8], "skip_channels": 2}, input_channels=4, iterations=8, jitter=0.01
)


def digits(part: str, count: int):
    return load_dataset(part).batch(range(count))


@pytest.fixture(scope="module")
def start():
    return learn_start(digits("digits_train", 64), CONFIG, inner=8, outer=24, batch=8)


@pytest.fixture(scope="module")
def learned(start, tmp_path_factory):
    path = tmp_path_factory.mktemp("starts") / "digits.safetensors"
    start.save(path)
    return replace(CONFIG, start=str(path))


def path_of(config):
    return config.start.rpartition("@")[0]


def test_a_start_comes_back_from_its_file_as_it_was(start, learned):
    read = read_start(path_of(learned))
    assert read.recipe == start.recipe
    assert torch.equal(read.z, start.z)
    assert read.theta.keys() == start.theta.keys()
    assert all(torch.equal(read.theta[name], tensor) for name, tensor in start.theta.items())


def test_the_first_iterate_is_the_network_with_the_parameters_and_the_input_of_the_start(start, learned):
    config = replace(learned, iterations=1, jitter=0.0)
    net = build_network(config, 1)
    expected = functional_call(net, dict(start.theta), (start.z,))
    for seed in (0, 1):  # which draws the jitter alone
        first = fit(digits("digits", 2), config, seed=seed).reconstruction
        torch.testing.assert_close(first, expected.detach().expand_as(first))
    assert not torch.allclose(first, fit(digits("digits", 2), replace(config, start="random")).reconstruction)


def test_a_smaller_image_gets_the_centre_of_z(start, learned):
    config = replace(learned, iterations=1, jitter=0.0)
    expected = functional_call(build_network(config, 1), dict(start.theta), (start.z[..., 8:24, 4:28],))
    small = fit(digits("digits", 1)[..., 8:24, 4:28], config).reconstruction
    torch.testing.assert_close(small, expected.detach())


def test_fits_to_held_out_images_arrive_sooner_and_images_alone_are_the_same(learned):
    images = digits("digits", 24)
    random, early = (fit(images, config).reconstruction for config in (CONFIG, learned))
    left, right = ((result - images).square().mean((1, 2, 3)) for result in (random, early))
    assert (right < left / 2).all()
    alone = fit(images[3:4], learned).reconstruction
    torch.testing.assert_close(alone, early[3:4], rtol=0, atol=1e-4)


def test_learning_is_a_function_of_its_seed_and_goes_on_from_a_start(start, learned):
    images = digits("digits_train", 64)
    losses = {name: [] for name in ("first", "more", "other")}
    settings = {"inner": 8, "outer": 2, "batch": 8}
    for name, config, seed in (("first", CONFIG, 0), ("more", learned, 0), ("other", CONFIG, 1)):
        learn_start(images, config, seed=seed, callback=lambda k, db, name=name: losses[name].append(db), **settings)
    again = learn_start(images.requires_grad_(), CONFIG, inner=8, outer=24, batch=8)
    for name, parameter in again.theta.items():
        torch.testing.assert_close(parameter, start.theta[name], rtol=0, atol=1e-5)
    assert losses["more"][0] < losses["first"][0] - 3  # dB
    assert losses["first"] != losses["other"]
    assert start.recipe["fit"]["architecture_options"] == CONFIG.architecture_options
    assert (start.recipe["channels"], start.recipe["images"]["shape"]) == (1, [64, 1, 32, 32])


def test_one_outer_step_is_the_mean_of_fits_alone():
    images = digits("digits_train", 2).double()
    config = replace(CONFIG, jitter=0.0, iterations=3)
    steps = learn_start(images, config, inner=3, outer=1, batch=1, seed=4)
    drawn = torch.Generator().manual_seed(4)
    torch.randint(2, (1,), generator=drawn)
    (image,) = torch.randint(2, (1,), generator=drawn).tolist()
    net = build_network(config, 1).double()
    begun = learn_start(images, config, inner=1, outer=1, batch=1, rate=1e-12, seed=4)
    net.load_state_dict(dict(begun.theta))
    optimiser = torch.optim.Adam(net.parameters(), lr=config.lr)
    for _ in range(3):
        optimiser.zero_grad()
        (net(begun.z) - images[image : image + 1]).square().mean().backward()
        optimiser.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(steps.theta[name], parameter.detach(), rtol=0, atol=1e-6)


def test_squares_of_a_size_are_cut_from_larger_images():
    images = torch.rand(3, 3, 40, 36, generator=torch.Generator().manual_seed(0))
    start = learn_start(images, CONFIG, inner=1, outer=1, batch=2, size=16)
    assert start.z.shape == (1, 4, 16, 16)
    assert start.recipe["size"] == 16


def test_the_unrolled_gradient_is_that_of_the_fit_from_the_start(learned):
    image, weight = digits("digits", 1).double(), torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    config = replace(learned, iterations=3)
    gradient = pull_back(image, {3: weight.double()}, config, seed=0)
    step = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)).double() * 1e-7

    def value(images):
        return (fit(images, config).reconstruction * weight).sum()

    slope = (value(image + step) - value(image - step)) / 2
    torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-5, atol=0)


def test_a_configuration_names_the_contents_of_its_start(start, learned, tmp_path):
    appended = learned.start.rpartition("@")[2]
    assert len(appended) == 16
    assert FitConfig(**json.loads(json.dumps(asdict(learned)))) == learned
    assert replace(learned, iterations=5).start == learned.start
    other = tmp_path / "other.safetensors"
    replace(start, z=start.z + 1).save(other)
    with pytest.raises(ValueError, match="start must be the file that the settings name"):
        replace(learned, start=f"{other}@{appended}")
    config = replace(CONFIG, start=str(other))
    start.save(other)
    with pytest.raises(ValueError, match="start must be the file that the settings name"):
        fit(digits("digits", 1), config)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"input_channels": 8}, "start must be one for the network of the fit, .* is for"),
        ({"architecture_options": {"channels": [8, 8], "skip_channels": 2}}, "start must be one for the network"),
        ({"start": ""}, "start must be random, learned or the path of a file, got ''"),
        ({"start": None}, "start must be random, learned or the path of a file, got None"),
        ({"start": "learned"}, "start must be 'random' or a file for this network, for which no start comes"),
        ({"architecture": "pixels", "architecture_options": {}}, "start must be 'random' for pixels"),
    ],
)
def test_a_start_for_another_network_is_refused(learned, change, match):
    with pytest.raises(ValueError, match=match):
        replace(learned, **change)


def test_images_that_a_start_does_not_fit_are_refused(learned):
    with pytest.raises(ValueError, match=r"start must be one for 3 channels, got one for 1: set it to 'random'"):
        fit(torch.rand(1, 3, 32, 32), learned)
    with pytest.raises(ValueError, match=r"images of at least 64x32, this one is for up to 32x32: cut the images into"):
        fit(torch.rand(1, 1, 64, 32), learned)
    with pytest.raises(ValueError, match="z must be None where start is"):
        fit(torch.rand(1, 1, 32, 32), learned, z=torch.rand(1, 4, 32, 32))


def test_files_that_hold_no_start_are_refused(start, tmp_path):
    path = tmp_path / "start.safetensors"
    with pytest.raises(FileNotFoundError, match=r"start must be random, learned or a file .* does not exist"):
        read_start(path)
    path.write_bytes(b"no such format")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        replace(CONFIG, start=str(path))
    save_file(dict(start.theta), path)
    with pytest.raises(ValueError, match="must hold a start with its recipe"):
        read_start(path)
    name = next(iter(start.theta))
    replace(start, theta={**start.theta, name: start.theta[name][..., :1]}).save(path)
    with pytest.raises(ValueError, match="must hold the parameters of its network"):
        replace(CONFIG, start=str(path))
    with pytest.raises(OSError, match="missing"):
        start.save(tmp_path / "missing" / "start.safetensors")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inner": 0}, "inner must be an integer of at least 1"),
        ({"outer": 0}, "outer must be an integer of at least 1"),
        ({"batch": 1.5}, "batch must be an integer of at least 1"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"rate": 0.0}, "rate must lie in"),
        ({"size": 33}, "size must be at most the sides of the images"),
        ({"images": torch.full((1, 1, 32, 32), 2.0)}, "images must be within"),
        ({"config": replace(CONFIG, memory_gb=1e-9)}, "memory_gb must be at least"),
        ({"config": FitConfig(architecture="pixels")}, "architecture must be one of"),
    ],
)
def test_bad_arguments_of_learning_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        learn_start(**{"images": digits("digits_train", 2), "config": CONFIG, "outer": 1} | change)


@pytest.mark.parametrize(("ended_after", "seconds"), [(1, 0.0), (7, 60.0), (23, 0.0), (24, 60.0)])
def test_learning_that_is_killed_comes_to_the_same_start(start, tmp_path, ended_after, seconds):
    images, settings = digits("digits_train", 64), {"inner": 8, "outer": 24, "batch": 8}
    settings["checkpoint"] = Checkpoint(tmp_path / "learning", seconds)
    first, second = [], []

    def kill(number, level):
        first.append(level)
        if number == ended_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_start(images, CONFIG, callback=kill, **settings)
    resumed = learn_start(images, CONFIG, callback=lambda number, level: second.append(level), **settings)
    assert second[:ended_after] == first
    assert len(second) == 24
    assert resumed.recipe == start.recipe
    assert all(torch.equal(resumed.theta[name], tensor) for name, tensor in start.theta.items())


def test_a_checkpoint_of_other_learning_is_refused(tmp_path):
    images, path = digits("digits_train", 4), tmp_path / "learning"
    settings = {"inner": 1, "outer": 2, "batch": 2, "checkpoint": path}
    learn_start(images, CONFIG, **settings)
    saved = path.read_bytes()
    changes = {"images": {"images": 1 - images}, "seed": {"seed": 1}, "inner": {"inner": 2}}
    for differing, change in changes.items():
        with pytest.raises(ValueError, match=f"checkpoint of this start, it is of another .*{differing}"):
            learn_start(**{"images": images, "config": CONFIG} | settings | change)
    with pytest.raises(ValueError, match="checkpoint of this fit, it is of another"):
        fit(images, CONFIG, checkpoint=path)
    assert path.read_bytes() == saved
    path.write_bytes(saved[:-1])
    with pytest.raises(ValueError, match="whole checkpoint, it is torn"):
        learn_start(images, CONFIG, **settings)


def test_fits_that_diverge_are_an_error():
    config = replace(CONFIG, lr=1e30)
    with pytest.raises(RuntimeError, match="diverge"):
        learn_start(digits("digits_train", 2), config, inner=4, outer=3, batch=2)


def test_a_start_is_for_any_memory_budget(start, learned):
    shipped = defence_for((3, 32, 32)).fit
    assert shipped.start == "learned"
    for memory_gb in (None, 0.5, 1.0):
        assert replace(learned, memory_gb=memory_gb).start == learned.start
        assert find_start(vars(replace(shipped, memory_gb=memory_gb)), 3) is find_start(vars(shipped), 3)
    recipe = find_start(vars(shipped), 3).recipe["fit"]
    assert FitConfig(**recipe).memory_gb == recipe["memory_gb"] == 1.0  # as it was when it was learnt


def test_a_start_has_the_type_that_the_package_names(start):
    assert isinstance(start, Start)


@pytest.fixture(scope="module")
def shipped():
    """The settings of the default for small colour images, and the same from a random start."""
    config = defence_for((3, 32, 32)).fit
    assert config.start == "learned"
    return config, replace(config, start="random", lr=0.01)


def decibels(images, config, iterations):
    error = fit(images, replace(config, iterations=iterations)).reconstruction - images
    return -10 * error.square().mean((1, 2, 3)).log10()


def test_the_start_that_ships_fits_a_photograph_in_half_of_the_iterations(shipped):
    learned, random = shipped
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1) / 255
    tiles = photograph[:, 32:416, 64:576].unfold(1, 32, 96).unfold(2, 32, 96).flatten(1, 2).movedim(1, 0)
    assert (decibels(tiles, learned, 20) > decibels(tiles, random, 20)).all()
    ahead = decibels(tiles, learned, 30) - decibels(tiles, random, 60)
    assert ahead.mean() > 2 * ahead.std() / len(ahead) ** 0.5


def test_noise_stays_slow_from_the_start_that_ships(shipped):
    """Otherwise the network would no longer prefer images to perturbations."""
    learned, random = shipped
    noise = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (decibels(noise, learned, 60) < decibels(noise, random, 60) + 1).all()  # a photograph gains six times that
    assert (decibels(noise, learned, 100) < decibels(noise, random, 100)).all()
