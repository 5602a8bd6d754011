"""The commands that restore one image file into another."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from dipdefense.arguments import check_known
from dipdefense.cli import options
from dipdefense.cli.restore_file import restore_file
from dipdefense.filters.noise_estimate import estimate_sigma
from dipdefense.fitting.config import FitConfig
from dipdefense.restoration.denoising import LEAST_NOISE, NOISE_TASKS, denoise
from dipdefense.restoration.flash import flash_no_flash
from dipdefense.restoration.impulses import find_impulses
from dipdefense.restoration.inpainting import inpaint
from dipdefense.restoration.jpeg import BEST_QUALITY, iterations_for, remove_jpeg_artifacts
from dipdefense.restoration.jpeg_quality import estimate_quality
from dipdefense.restoration.preimage import invert_features, maximise_activation
from dipdefense.restoration.presets import (
    PIXELS,
    PUBLISHED,
    PUBLISHED_INPAINTING,
    SMALL,
    TILE,
    published_super_resolution,
)
from dipdefense.restoration.super_resolution import super_resolve

__all__ = ["restoring"]

restoring = typer.Typer()
Source = Annotated[Path, typer.Argument(metavar="INPUT", help="Image file.")]
Target = Annotated[Path, typer.Argument(metavar="OUTPUT", help="Image file to make or replace.")]
Published = Annotated[bool, typer.Option("--published", help="The published network and settings; meant for a GPU.")]
Variation = Annotated[
    float | None,
    typer.Option("--tv", help="Fit plain pixels with total variation of this weight, instead of a network."),
]
Layer = Annotated[str, typer.Option(help="Name of the layer, as in named_modules(); a wrong one lists them.")]
Classifier = Annotated[str, typer.Option(help="cifar_resnet20, torchvision:NAME, timm:NAME, FILE.py:FACTORY.")]


@dataclass(frozen=True)
class Fit:
    """The options of a fit, which all these commands have."""

    config: options.ConfigFile = None
    published: Published = False
    tv: Variation = None
    iterations: options.Iterations = None
    memory_gb: options.MemoryGb = None
    seed: options.Seed = 0
    device: options.Device = "cpu"
    checkpoint: options.CheckpointFile = None

    def settings(self, task: str, large: FitConfig) -> FitConfig:
        """The settings that the options name; at most one of the three, and the small ones without any.

        With a number of iterations the small ones have no stopping rule.
        """
        if (self.config is not None) + self.published + (self.tv is not None) > 1:
            raise ValueError("config, published and tv must not be given together: each names the settings of the fit")
        small = PIXELS if self.tv is not None else SMALL[task]
        if self.iterations is not None:
            small = replace(small, stopping="fixed", stopping_options={})
        chosen = options.fit_config(self.config) or (large if self.published else small)
        given: dict[str, Any] = {"iterations": self.iterations, "memory_gb": self.memory_gb}
        return replace(chosen, **{name: value for name, value in given.items() if value is not None})

    @property
    def usual(self) -> bool:
        """Whether no option names the settings of the fit."""
        return self.config is None and not self.published and self.tv is None


@dataclass(frozen=True)
class TiledFit(Fit):
    """The options of a fit in tiles that filters refine."""

    tile: Annotated[
        int | None,
        typer.Option(help=f"Side of the tiles of larger results; {TILE}, but none with settings of your own."),
    ] = None
    refine: Annotated[
        bool | None,
        typer.Option("--refine/--no-refine", help="Refine the fit by filters; by default unless settings are given."),
    ] = None

    def arguments(self, task: str, large: FitConfig) -> dict[str, Any]:
        """`config`, `tile` and `refine` of the function; tiles and filters go with the small settings."""
        return {
            "config": self.settings(task, large),
            "tile": TILE if self.tile is None and self.usual else self.tile,
            "refine": self.usual if self.refine is None else self.refine,
        }


@restoring.command("denoise", epilog="Example: dipdefense denoise noisy.png clean.png --runs 2")
@options.fields_as_options
def denoise_file(
    source: Source,
    target: Target,
    noise: Annotated[
        str,
        typer.Option(
            help="independent from pixel to pixel; camera, correlated by demosaicing and JPEG; impulse, that is salt "
            "and pepper."
        ),
    ] = "independent",
    runs: Annotated[int, typer.Option(help="Fits whose results are averaged.")] = 1,
    fit: TiledFit = TiledFit(),
) -> None:
    """Remove noise of unknown level from an image file. Without noise, unless told camera, it stays as it is."""
    check_known("noise", noise, NOISE_TASKS)
    large = PUBLISHED_INPAINTING["half"] if noise == "impulse" else PUBLISHED["denoise"]
    arguments = fit.arguments(NOISE_TASKS[noise], large)

    def clean(image: Tensor, **keywords: Any) -> tuple[Tensor, str]:
        result = denoise(image, noise=noise, **arguments, **keywords)
        if noise == "camera":
            return result, "camera noise removed"
        if noise == "impulse":
            share = find_impulses(image).float().mean().item()
            done = "" if share else ", so the image is unchanged"
            return result, f"impulses at {100 * share:.2f} % of the values{done}"
        sigma = estimate_sigma(image).item()
        unchanged = sigma <= LEAST_NOISE and (arguments["refine"] or fit.usual)
        return (
            result,
            f"noise of {255 * sigma:.1f} in 255 {'found, so the image is unchanged' if unchanged else 'removed'}",
        )

    _restore([source], target, fit, clean, runs=runs)


@restoring.command("inpaint", epilog="Example: dipdefense inpaint photo.png mask.png whole.png --kind text")
@options.fields_as_options
def inpaint_file(
    source: Source,
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="Black and white image file; white = known pixel.")],
    target: Target,
    paste: Annotated[
        bool,
        typer.Option("--paste", help="Put the known pixels back; a refined result has them."),
    ] = False,
    kind: Annotated[
        str, typer.Option(help=f"Which of the published settings: {', '.join(PUBLISHED_INPAINTING)}.")
    ] = "text",
    fit: TiledFit = TiledFit(),
) -> None:
    """Fill in the unknown pixels of an image file: text, holes, missing pixels."""
    check_known("kind", kind, PUBLISHED_INPAINTING)
    arguments = fit.arguments("inpaint", PUBLISHED_INPAINTING[kind])

    def fill(image: Tensor, known: Tensor, **keywords: Any) -> tuple[Tensor, str]:
        grey = known[:, :1] if torch.equal(known, known[:, :1].expand_as(known)) else known
        unknown = 100 * (1 - grey.mean().item())
        return inpaint(image, grey, paste=paste, **keywords), f"{unknown:.1f} % of the image filled in"

    _restore([source, mask], target, fit, fill, **arguments)


@restoring.command("super-resolve", epilog="Example: dipdefense super-resolve small.png large.png --factor 4")
@options.fields_as_options
def super_resolve_file(
    source: Source,
    target: Target,
    factor: Annotated[int, typer.Option(help="How many times larger.")] = 4,
    fit: TiledFit = TiledFit(),
) -> None:
    """Enlarge an image file by an integer factor."""
    arguments = fit.arguments("super_resolve", published_super_resolution(factor))

    def enlarge(image: Tensor, **keywords: Any) -> tuple[Tensor, str]:
        large = super_resolve(image, factor, **keywords)
        return large, f"enlarged to {large.shape[3]} x {large.shape[2]} pixels"

    _restore([source], target, fit, enlarge, **arguments)


@restoring.command("remove-jpeg", epilog="Example: dipdefense remove-jpeg photo.jpg clean.png")
@options.fields_as_options
def remove_jpeg_file(
    source: Source,
    target: Target,
    fit: TiledFit = TiledFit(),
) -> None:
    """Remove blocks and ringing of JPEG compression from an image file.

    By default a file without a trace of JPEG, or of a quality above 80, stays as it is.
    """
    arguments = fit.arguments("remove_jpeg_artifacts", PUBLISHED["remove_jpeg_artifacts"])

    def clean(image: Tensor, **keywords: Any) -> Tensor | tuple[Tensor, str]:
        if not arguments["refine"]:
            return remove_jpeg_artifacts(image, **arguments, **keywords)
        quality = estimate_quality(image[0])
        if quality is None:
            return image, "no trace of JPEG found, so the image is unchanged; --no-refine fits it all the same"
        if fit.usual and fit.iterations is None:
            arguments["config"] = replace(arguments["config"], iterations=iterations_for(quality))
        done = "artefacts removed" if quality <= BEST_QUALITY else "so the image is unchanged"
        return remove_jpeg_artifacts(image, **arguments, **keywords), f"JPEG of quality {quality} found, {done}"

    _restore([source], target, fit, clean)


@restoring.command("flash", epilog="Example: dipdefense flash flash.png dark.png restored.png")
@options.fields_as_options
def flash_file(
    flash: Annotated[Path, typer.Argument(metavar="FLASH", help="Image file taken with a flash.")],
    no_flash: Annotated[
        Path, typer.Argument(metavar="NO_FLASH", help="Image file of the same view taken without flash.")
    ],
    target: Target,
    fit: Fit = Fit(),
) -> None:
    """Restore a dark image file with the detail of an image that was taken with a flash."""
    settings = fit.settings("flash_no_flash", PUBLISHED["flash_no_flash"])
    _restore([flash, no_flash], target, fit, flash_no_flash, config=settings)


@restoring.command(
    "invert-features", epilog="Example: dipdefense invert-features photo.png seen.png --layer features.5"
)
@options.fields_as_options
def invert_features_file(
    source: Source,
    target: Target,
    layer: Layer,
    classifier: Classifier = "torchvision:squeezenet1_0",
    weights: options.Weights = None,
    fit: Fit = Fit(),
) -> None:
    """Show what a classifier's layer keeps of an image file: a natural image with the same features."""
    from eval.classifiers import load_classifier

    settings = fit.settings("invert_features", PUBLISHED["invert_features"])
    net = load_classifier(classifier, weights).to(options.device_named(fit.device))

    def invert(image: Tensor, **keywords: Any) -> Tensor:
        return invert_features(net, layer, image, **keywords)

    _restore([source], target, fit, invert, config=settings)


@restoring.command(
    "maximise-activation",
    epilog="Example: dipdefense maximise-activation swan.png --classifier torchvision:squeezenet1_0 "
    "--weights squeezenet.pt --layer classifier.1 --channel 100",
)
@options.fields_as_options
def maximise_activation_file(
    target: Target,
    layer: Layer,
    channel: Annotated[int, typer.Option(help="Channel of the layer's output; a class if it is the last layer.")],
    size: Annotated[int, typer.Option(help="Side of the image in pixels.")] = 112,
    channels: Annotated[int, typer.Option(help="Channels of the image: 3, or 1 for grey.")] = 3,
    classifier: Classifier = "torchvision:squeezenet1_0",
    weights: options.Weights = None,
    fit: Fit = Fit(),
) -> None:
    """Show what a channel of a classifier's layer responds to: a natural image that activates it most."""
    from eval.classifiers import load_classifier

    settings = fit.settings("maximise_activation", PUBLISHED["maximise_activation"])
    net = load_classifier(classifier, weights).to(options.device_named(fit.device))

    def excite(**keywords: Any) -> Tensor:
        return maximise_activation(net, layer, channel, shape=(channels, size, size), **keywords)

    _restore([], target, fit, excite, config=settings)


def _restore(
    sources: list[Path],
    target: Path,
    fit: Fit,
    function: Callable[..., Tensor | tuple[Tensor, str]],
    **keywords: Any,
) -> None:
    keywords |= {"seed": fit.seed, "tv": fit.tv or 0.0, "checkpoint": fit.checkpoint}
    refined = isinstance(fit, TiledFit) and (fit.usual if fit.refine is None else fit.refine)
    restore_file(sources, target, fit.device, function, refined=refined, **keywords)
