"""The commands that restore a file."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dipdefense.cli import app
from dipdefense.cli.restore_file import EndsOfFits, check_source
from dipdefense.files.reading import read_image
from dipdefense.files.writing import write_image
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.step import step
from dipdefense.restoration.presets import SMALL

QUICK = {"architecture_options": {"channels": [8, 8], "skip_channels": 0}, "input_channels": 4, "iterations": 4}


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("image", (3, 20, 24)), ("flash", (3, 20, 24)), ("small", (3, 10, 12)), ("tiny", (3, 8, 8))):
        write_image(torch.rand(*shape, generator=generator), tmp_path / f"{name}.png")
    write_image((torch.rand(1, 20, 24, generator=generator) > 0.5).float(), tmp_path / "mask.png")
    write_image(torch.zeros(1, 20, 24), tmp_path / "nothing.png")
    (tmp_path / "config.json").write_text(json.dumps(QUICK))
    (tmp_path / "net.py").write_text(
        "import torch\ndef build():\n"
        "    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.Flatten())\n"
        "    net[0].weight.data = torch.linspace(-1, 1, 108).view(4, 3, 3, 3)\n"
        "    return net\n"
    )
    return tmp_path


def dipdefense(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=True)


def refused(message: str, *arguments: object) -> None:
    result = dipdefense(*arguments)
    assert isinstance(result.exception, ValueError), result.output
    assert message in str(result.exception)


def arguments(folder, command: str) -> list[object]:
    image, net = folder / "image.png", f"{folder / 'net.py'}:build"
    return {
        "denoise": ["denoise", image],
        "inpaint": ["inpaint", image, folder / "mask.png"],
        "super-resolve": ["super-resolve", image, "--factor", 2],
        "remove-jpeg": ["remove-jpeg", image],
        "flash": ["flash", folder / "flash.png", image],
        "invert-features": ["invert-features", image, "--layer", "0", "--classifier", net],
        "maximise-activation": [
            *("maximise-activation", "--layer", "0", "--channel", 2, "--size", 20, "--classifier", net)
        ],
    }[command]


COMMANDS = ("denoise", "inpaint", "super-resolve", "remove-jpeg", "flash", "invert-features", "maximise-activation")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_becomes_a_file(folder, command):
    """The same for the same seed, another for another; --iterations and --tv reach the fit."""
    config, results = ("--config", folder / "config.json"), []
    for i, options in enumerate([config, config, (*config, "--seed", 1), ("--tv", 0.1, "--iterations", 3)]):
        result = dipdefense(*arguments(folder, command), folder / f"{i}.png", *options)
        assert result.exit_code == 0, result.output
        assert re.search(rf"\.png: .*{'4' if i < 3 else '3'} iterations, \d+\.\d s\n$", result.output)
        results.append(read_image(folder / f"{i}.png"))
    shapes = {"super-resolve": (3, 40, 48), "maximise-activation": (3, 20, 20)}
    assert results[0].shape == shapes.get(command, (3, 20, 24))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert results[3].std() < results[0].std()  # three steps of Adam away from grey


@pytest.mark.parametrize("command", COMMANDS)
def test_published_numbers_are_taken_when_asked_for_and_small_ones_else(folder, command, monkeypatch):
    seen: list[FitConfig] = []

    class StopError(ValueError):
        pass

    def fit(observed, config, **problem):
        seen.append(config)
        raise StopError

    monkeypatch.setattr("dipdefense.restoration.prior_fit.fit", fit)
    monkeypatch.setattr("dipdefense.restoration.preimage.fit", fit)
    always = ("--no-refine",) if command == "remove-jpeg" else ()  # the image was never compressed
    for options in (always, ("--published",), ("--published", "--iterations", 9, "--memory-gb", 0.5)):
        assert isinstance(dipdefense(*arguments(folder, command), folder / "o.png", *options).exception, StopError)
    small, published, short = seen
    assert max(small.architecture_options["channels"]) == 64
    assert small.iterations <= 600
    assert max(published.architecture_options["channels"]) == 128
    assert published.iterations >= 600
    assert short.iterations == 9
    assert (published.memory_gb, short.memory_gb) == (24, 0.5)


def test_options_of_their_own(folder):
    image, config = folder / "image.png", ("--config", folder / "config.json")
    assert dipdefense("denoise", image, folder / "o.png", "--runs", 2, *config).exit_code == 0
    assert dipdefense("inpaint", image, folder / "mask.png", folder / "p.png", "--paste", *config).exit_code == 0
    known = read_image(folder / "mask.png").bool().expand(3, -1, -1)
    assert torch.equal(read_image(folder / "p.png")[known], read_image(image)[known])


def test_denoise_says_what_it_found(folder, monkeypatch):
    monkeypatch.setitem(SMALL, "denoise", FitConfig(**QUICK | {"iterations": 60}, stopping="blind_discrepancy"))
    write_image(torch.full((3, 20, 24), 0.5), folder / "flat.png")
    noisy, flat = (dipdefense("denoise", folder / f"{name}.png", folder / "o.png") for name in ("image", "flat"))
    line = r"image.png: noise of (6|7)\d\.\d in 255 removed, \d+ iterations, \d+\.\d s\n$"
    assert re.search(line, noisy.output)  # uniform values: 73.6
    assert re.search(r"flat.png: noise of 0.0 in 255 found, so the image is unchanged, \d\.\d s\n$", flat.output)
    assert torch.equal(read_image(folder / "o.png"), read_image(folder / "flat.png"))
    for option in ("--no-refine", "--tile=8"):
        assert dipdefense("denoise", folder / "image.png", folder / "p.png", option).exit_code == 0
    refused(
        "tile must be None or an integer of at least 1", "denoise", folder / "image.png", folder / "o.png", "--tile", 0
    )


def test_denoise_is_told_the_kind_of_noise(folder, monkeypatch):
    for task in ("denoise_camera", "inpaint"):
        monkeypatch.setitem(SMALL, task, FitConfig(**QUICK))
    image = torch.full((3, 20, 24), 0.5)
    image[0, 3, 4], image[1, 7, 9] = 0, 1
    write_image(image, folder / "dots.png")
    dots = dipdefense("denoise", folder / "dots.png", folder / "o.png", "--noise", "impulse")
    assert "dots.png: impulses at 0.14 % of the values, 4 iterations, " in dots.output
    whole = read_image(folder / "o.png")
    assert (whole - read_image(folder / "dots.png")).abs().gt(0.2).sum() == 2
    assert dipdefense("denoise", folder / "image.png", folder / "c.png", "--noise", "camera").exit_code == 0
    refused("noise must be one of independent, camera, impulse", "denoise", folder / "image.png", "o.png", "--noise=x")


def test_remove_jpeg_says_what_it_found(folder, monkeypatch):
    monkeypatch.setitem(SMALL, "remove_jpeg_artifacts", FitConfig(**QUICK))
    blurred = torch.nn.functional.avg_pool2d(torch.rand(3, 72, 72, generator=torch.Generator().manual_seed(1)), 9, 1)
    write_image((0.5 + 3 * (blurred - 0.5)).clamp(0, 1), folder / "smooth.png")
    for quality in (20, 90):
        with Image.open(folder / "smooth.png") as image:
            image.save(folder / f"{quality}.jpg", quality=quality)
    names = ("20.jpg", "90.jpg", "smooth.png")
    said = {name: dipdefense("remove-jpeg", folder / name, folder / "o.png") for name in names}
    assert re.search(r"20.jpg: JPEG of quality (19|20|21) found, artefacts removed, \d+ it", said["20.jpg"].output)
    assert re.search(r"90.jpg: JPEG of quality (89|90|91) found, so the image is unchanged, \d", said["90.jpg"].output)
    assert (
        "smooth.png: no trace of JPEG found, so the image is unchanged; --no-refine fits it"
        in said["smooth.png"].output
    )
    assert torch.equal(read_image(folder / "o.png"), read_image(folder / "smooth.png"))


def test_what_cannot_be_restored_is_refused_in_one_line(folder):
    image, out, config = folder / "image.png", folder / "o.png", ("--config", folder / "config.json")
    refused("mask must have the size of images", "inpaint", image, folder / "small.png", out, *config)
    refused("mask must be binary", "inpaint", image, folder / "flash.png", out, *config)
    refused("mask must leave at least one known pixel", "inpaint", image, folder / "nothing.png", out, *config)
    refused("kind must be one of text, holes", "inpaint", image, folder / "mask.png", out, "--kind", "magic")
    refused("factor must be an integer of at least 2, got 1", "super-resolve", image, out, "--factor", 1, *config)
    refused("flash and no_flash must have one size", "flash", folder / "small.png", image, out, *config)
    refused("runs must be an integer of at least 1, got 0", "denoise", image, out, "--runs", 0, *config)
    refused("tv must be a weight", "denoise", image, out, "--tv", -1)
    refused("must not be given together", "denoise", image, out, "--published", *config)
    refused("OUTPUT must not replace an image that it comes from", "denoise", image, image, *config)
    refused("the suffix must be one of", "denoise", image, folder / "o.xyz", *config)
    invert = arguments(folder, "invert-features")
    refused("layer must be one of 0, 1, got 'conv5'", *invert, out, "--layer", "conv5", *config)
    excite = arguments(folder, "maximise-activation")
    refused("layer must be one of 0, 1, got 'conv5'", *excite, out, "--layer", "conv5", *config)
    refused("channel must be one of the 4 of layer '0', 0 to 3, got 4", *excite, out, "--channel", 4, *config)
    refused("shape must be three positive integers (C, H, W), got (3, 0, 0)", *excite, out, "--size", 0, *config)
    assert not out.exists()


def test_benchmark_restoration_refuses(folder):
    command = ("benchmark", "restoration", "--data", folder, "--out", folder / "run")
    refused("tasks must be among text, holes", *command, "--tasks", "magic")
    refused("size must be at least 16 pixels, got 8", *command, "--size", 8)
    assert not (folder / "run").exists()


class KilledError(BaseException):
    pass


def kill_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """End what computes after so many steps of fits."""
    left = iter(range(steps))

    def last(*arguments, **keywords):
        if next(left, None) is None:
            raise KilledError
        return step(*arguments, **keywords)

    patch.setattr("dipdefense.fitting.fit.step", last)


@pytest.mark.parametrize("command", [*COMMANDS, "purify"])
def test_a_killed_command_goes_on_from_its_checkpoint(folder, command, monkeypatch):
    """To the same file; after the end it computes nothing."""
    monkeypatch.setattr("dipdefense.fitting.checkpoint.SECONDS", 0)
    line = ["purify", folder / "image.png"] if command == "purify" else arguments(folder, command)
    options = ("--config", folder / "config.json")
    assert dipdefense(*line, folder / "whole.png", *options).exit_code == 0
    options = (*options, "--checkpoint", folder / "fit")
    for steps, ends in ((2, False), (2, True), (0, True)):
        with monkeypatch.context() as patch:
            kill_after(steps, patch)
            if ends:
                assert dipdefense(*line, folder / "o.png", *options).exit_code == 0
                assert (folder / "o.png").read_bytes() == (folder / "whole.png").read_bytes()
            else:
                with pytest.raises(KilledError):
                    dipdefense(*line, folder / "o.png", *options)
    refused("of another (seed", *line, folder / "o.png", "--seed", 1, *options)


def test_what_was_done_is_said_in_one_line(folder):
    config = ("--config", folder / "config.json")
    tiles = dipdefense("purify", folder / "image.png", folder / "o.png", "--tile", 16, *config)
    runs = dipdefense("denoise", folder / "image.png", folder / "o.png", "--runs", 2, *config)
    filled = dipdefense("inpaint", folder / "image.png", folder / "mask.png", folder / "o.png", *config)
    unknown = 100 * (1 - read_image(folder / "mask.png").mean().item())
    for result, words in (
        (tiles, r"purified, noise of \d+\.\d in 255 seen, 4 fits of 4 iterations"),
        (runs, r"noise of \d+\.\d in 255 removed, 2 fits of 4 iterations"),
        (filled, rf"{unknown:.1f} % of the image filled in, 4 iterations"),
    ):
        assert re.fullmatch(rf"\S+image\.png: {words}, \d+\.\d s\n", result.output), result.output
    (folder / "two").mkdir()
    for name in "ab":
        write_image(torch.full((1, 8, 8), 0.5), folder / "two" / f"{name}.png")
    result = dipdefense("purify", folder / "two", folder / "out", *config)
    assert re.fullmatch(r"\S+out: 2 of 2 images purified, \d+\.\d s\n", result.output)


def test_the_ends_of_fits_are_those_of_the_last_iterations():
    """Two fits, the first of two images; its second image stops earlier."""
    ends = EndsOfFits()
    assert str(ends) == ""
    for iteration, index in ((1, [0, 1]), (2, [0, 1]), (3, [0]), (1, [0]), (2, [0])):
        ends.see(SimpleNamespace(iteration=iteration, index=torch.tensor(index)))
    assert str(ends) == "3 fits of 2 to 3 iterations"


def test_a_source_that_is_no_file_is_refused(folder):
    for command in ("purify", "denoise"):
        result = dipdefense(command, folder / "none.png", folder / "o.png")
        assert isinstance(result.exception, FileNotFoundError)
        assert "INPUT must be an image file, " in str(result.exception)
        assert str(result.exception).endswith("none.png does not exist: check the name and the folder")
    with pytest.raises(IsADirectoryError, match=r"is a folder: name a file in it \(dipdefense purify takes folders\)"):
        check_source(folder)
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist: check the name and the folder"):
        check_source(folder / "none.png")


def test_purify_has_one_checkpoint_for_one_file(folder):
    (folder / "images").mkdir()
    for more in ((folder / "images", folder / "o"), (folder / "image.png", folder / "o", "--engine", "ray")):
        refused("--checkpoint must come with a single image file", "purify", *more, "--checkpoint", folder / "fit")
