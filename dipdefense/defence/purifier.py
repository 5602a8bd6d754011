"""Purify an image: its reconstruction by an early-stopped fit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from dipdefense.arguments import check_integer, check_positive
from dipdefense.defence.gradients import Fitted, Gradient, known_gradient, purification
from dipdefense.defence.presets import defence_for
from dipdefense.defence.wrapper import shallow_copy
from dipdefense.filters.refinement import refine
from dipdefense.fitting.checkpoint import Checkpoint, CheckpointLike
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.fit import FitResult, Progress, fit
from dipdefense.image_tensors import check_images
from dipdefense.tiles import cut, join

__all__ = ["Purifier"]

ARGUMENTS = ("config", "seed", "gradient", "tile", "sigma")


class Purifier(nn.Module):
    """Reconstruct images by an early-stopped deep image prior; also a torchvision transform.

    The reconstruction is the image that the fit returns, as its stopping rule chooses it. With the default fit
    (`defence_for`) it is the mean of the iterates that the default decision classifies, which is also the
    reconstruction of `DefendedClassifier.judge`.

    The module has no parameters and no state, since the networks of a fit exist only during the fit. A derived class
    may draw its settings from the seed (`config_for`) or change the fits (`frames`); attacks and evaluations then use
    that class.

    Args:
        config: settings of the fit; None for those of `defence_for` for the image's shape.
        seed: of the fit; None for fresh entropy at every call, which makes the defence stochastic.
        gradient: meaning of a backward pass. `straight_through`: the purification counts as the identity (BPDA,
            Athalye et al. 2018). `unrolled`: the exact gradient, through all steps of the fit. `none`: a backward
            pass raises. Or a callable, see `dipdefense.defence.gradients.Gradient`; a purifier can be pickled only if
            the callable can be.
        tile: side in pixels of the tiles that larger images are cut into; each tile is fitted as a separate image, and
            tiles overlap by a quarter. None: that of `defence_for` with the default fit, no tiles with your own config.
        sigma: std of Gaussian noise in the images, in their unit, where it is known, as in randomised smoothing. The
            filters of `dipdefense.filters.refinement` then bring back the detail that the fit lacks; in a backward pass
            they have their own gradient. The detectors of the presets were learnt without them, so take the decision of
            `smoothing_defence_for`. None: the fit alone.

    Raises:
        TypeError: config is not a FitConfig.
        ValueError: unknown gradient, a seed that is not a non-negative integer, a tile that is not a positive integer,
            a sigma that is not positive.
    """

    def __init__(
        self,
        config: FitConfig | None = None,
        *,
        seed: int | None = 0,
        gradient: str | Gradient = "straight_through",
        tile: int | None = None,
        sigma: float | None = None,
    ):
        super().__init__()
        self.config = config
        self.seed = seed
        self.gradient = gradient
        self.tile = tile
        self.sigma = sigma
        self._check()

    def _check(self) -> None:
        if self.config is not None and not isinstance(self.config, FitConfig):
            raise TypeError(f"config must be a FitConfig or None, got {type(self.config).__name__}")
        for name, value, least in (("seed", self.seed, 0), ("tile", self.tile, 1)):
            check_integer(name, value, least, none=True)
        if self.sigma is not None:
            check_positive("sigma", self.sigma)
        known_gradient(self.gradient)

    def fit(self, images: Tensor, callback: Callable[[Progress], None] | None = None) -> FitResult:
        """The whole result of the fit to images (B, C, H, W) in [0, 1], without tiles, filters and gradient.

        Its `reconstruction` is the iterate that the stopping rule chooses. With the default settings that is not what
        the purifier returns, which is a mean over several iterates.

        Raises:
            TypeError, ValueError: not a floating image batch, or outside [0, 1].
        """
        check_images(images)
        return fit(images, self.config_for(images), seed=self.seed, callback=callback)

    def config_for(self, images: Tensor) -> FitConfig:
        """The settings of the fit to images of this shape, (B, C, H, W)."""
        return self.config or defence_for(tuple(images.shape[1:])).fit

    def tile_for(self, images: Tensor) -> int | None:
        """The side of the tiles that images of this shape, (B, C, H, W), are cut into; None if they are not cut."""
        tile = self.tile
        if tile is None and self.config is None:
            tile = defence_for(tuple(images.shape[1:])).tile
        return None if tile is None or max(images.shape[2:]) <= tile else tile

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) or (C, H, W) in [0, 1] -> same shape, purified.

        Raises:
            TypeError, ValueError: not a floating image, or outside [0, 1].
        """
        if isinstance(images, Tensor) and images.dim() == 3:
            return self(images[None])[0]  # type: ignore[no-any-return]
        check_images(images, empty=True)
        return self._purify(images, gradient=self.gradient)

    @torch.no_grad()
    def reconstruct(
        self,
        images: Tensor,
        callback: Callable[[Progress], None] | None = None,
        checkpoint: CheckpointLike | None = None,
    ) -> Tensor:
        """Purify images (B, C, H, W) in [0, 1], without gradient; in tiles if they are larger than a tile.

        Values above 1, which the gain of the cosine loss can give, are clipped. `callback` and `checkpoint` are those
        of `dipdefense.fit`.
        """
        check_images(images, empty=True)
        return self._purify(images, gradient="none", callback=callback, checkpoint=checkpoint)

    def _purify(self, images: Tensor, *, gradient: str | Gradient, **options: Any) -> Tensor:
        """The reconstructions; with the default fit, the mean of the iterates that the default decision classifies.

        `options` are the callback and the checkpoint of `frames`.
        """
        config, iterations = self.config_for(images), None
        if self.config is None:
            default = defence_for(tuple(images.shape[1:]))
            if config == default.fit:  # a derived class may have another fit
                iterations = default.decision.iterations_of(config.iterations) or None
        return self.frames(images, iterations, config=config, gradient=gradient, **options).mean(0)

    @torch.no_grad()
    def trajectory(self, images: Tensor, iterations: Sequence[int], *, restart: int = 0) -> Tensor:
        """The results of one fit if it ended at each of these iterations, refined where `sigma` is given; no gradient.

        Args:
            images: (B, C, H, W) in [0, 1].
            iterations: each from 1 to the fit's `iterations`; the fit ends at the largest.
            restart: added to the seed.

        Returns:
            (T, B, C, H, W) in the order of `iterations`.

        Raises:
            TypeError, ValueError: not a floating image batch, or outside [0, 1]; no iterations, one outside the fit,
                a stopping rule other than `fixed`.
        """
        check_images(images, empty=True)
        return self.frames(images, iterations, config=self.config_for(images), gradient="none", restart=restart)

    def frames(
        self,
        images: Tensor,
        iterations: Sequence[int] | None,
        *,
        config: FitConfig,
        gradient: str | Gradient,
        restart: int = 0,
        callback: Callable[[Progress], None] | None = None,
        checkpoint: CheckpointLike | None = None,
    ) -> Tensor:
        """The result of `trajectory` for this `config`, with the given meaning of a backward pass.

        `iterations` None gives the iterate that the stopping rule chooses, (1, B, C, H, W). The caller has checked the
        images. Raises as `trajectory` does.
        """
        if iterations is not None:
            _check_iterations(iterations, config)
            config = replace(config, iterations=max(iterations))
        if len(images) == 0:  # nothing to fit
            return images.expand(1 if iterations is None else len(iterations), *images.shape)
        seed = None if self.seed is None else self.seed + restart
        tile = self.tile_for(images)
        pieces = images if tile is None else cut(images, tile, tile // 4)
        if iterations is None:
            result = fit(pieces, config, seed=seed, callback=callback, checkpoint=checkpoint)
            frames, chosen, seed = result.reconstruction[None], result.chosen[None], result.seed
        else:
            frames, chosen, seed = _watch(pieces, config, seed, iterations, callback, checkpoint)
        fitted = Fitted(pieces.detach().clone(), config, seed, chosen)  # the caller may write to the images
        passed = purification(pieces, frames.clamp(max=1), fitted, gradient)
        if tile is not None:
            H, W = images.shape[2:]
            passed = torch.stack([join(frame, (H, W), tile, tile // 4) for frame in passed])
        if self.sigma is None:
            return passed
        level = images.new_full((len(images),), self.sigma)
        return torch.stack([refine(images, frame, level) for frame in passed])

    def variant(self, **arguments: Any) -> Self:
        """The same purifier, of the same class, with other values of some of the arguments of `Purifier`.

        Raises:
            TypeError, ValueError: an argument that `Purifier` does not have, or a value that it refuses.
        """
        unknown = arguments.keys() - set(ARGUMENTS)
        if unknown:
            raise TypeError(f"arguments must be among {', '.join(ARGUMENTS)}, got {sorted(unknown)[0]!r}")
        twin = shallow_copy(self)
        for name, value in arguments.items():
            setattr(twin, name, value)
        twin._check()
        return twin

    def extra_repr(self) -> str:
        """The arguments."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in ARGUMENTS)


def _watch(
    images: Tensor,
    config: FitConfig,
    seed: int | None,
    iterations: Sequence[int],
    callback: Callable[[Progress], None] | None,
    checkpoint: CheckpointLike | None,
) -> tuple[Tensor, Tensor, int]:
    """The averages at these iterations of one fit, (T, B, C, H, W), their iterations (T, B), and the seed."""
    with torch.inference_mode(False):  # the fit writes to these frames outside that mode
        frames = images.new_zeros(len(iterations), *images.shape)

    def keep(state: Progress) -> None:
        for frame, iteration in zip(frames, iterations, strict=True):
            if iteration == state.iteration:
                frame[state.index] = state.average
        if callback is not None:
            callback(state)

    if checkpoint is not None:
        checkpoint = Checkpoint.at(checkpoint, {f"averages at {tuple(iterations)}": frames})
    result = fit(images, config, seed=seed, callback=keep, checkpoint=checkpoint)
    chosen = torch.tensor(iterations, device=images.device)[:, None].expand(-1, len(images)).clone()
    for frame, number, iteration in zip(frames, chosen, iterations, strict=True):
        ended = result.iterations < iteration  # an image that was given up keeps its last average
        frame[ended], number[ended] = result.reconstruction[ended], result.chosen[ended]
    return frames, chosen, result.seed


def _check_iterations(iterations: Sequence[int], config: FitConfig) -> None:
    if config.stopping != "fixed":
        raise ValueError(
            f"stopping must be fixed where iterations are named, got {config.stopping!r}: use the decision last"
        )
    if not iterations or not all(type(i) is int and 1 <= i <= config.iterations for i in iterations):
        raise ValueError(
            f"iterations must be one or more integers from 1 to the {config.iterations} of the fit, got "
            f"{tuple(iterations)!r}"
        )
