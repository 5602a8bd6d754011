"""The defence: purify an image by an early-stopped fit, then classify it."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dipdefense.compatibility import check_classifier
from dipdefense.config import FitConfig
from dipdefense.decisions import DECISIONS, Decision, Last
from dipdefense.fit import FitResult, Progress, fit
from dipdefense.gradients import GRADIENTS, Fitted, Gradient, known_gradient, purification
from dipdefense.images import check_images
from dipdefense.looks import VIEWS, Looks, see
from dipdefense.presets import TILE, default_config, default_defence
from dipdefense.tiles import cut, join
from dipdefense.wrapper import Wrapper, apart

__all__ = ["DefendedClassifier", "Judgement", "Purifier", "defend"]


class Purifier(nn.Module):
    """Reconstruct images by an early-stopped deep image prior; also a torchvision transform.

    It has no parameters and no state: the networks of a fit live as long as the fit. A class derived from it may draw
    its numbers from the seed (`config_for`) or do more than fit (`frames`): attacks and evaluations meet that class.

    Args:
        config: numbers of the fit; None for the evidence-based ones of the image's size (`default_config`).
        seed: of the fit; None for fresh entropy at every call, which makes the defence stochastic.
        gradient: meaning of a backward pass. `straight_through`: the purification counts as the identity (BPDA,
            Athalye et al. 2018). `unrolled`: the exact gradient, through all steps of the fit. `none`: a backward
            pass raises. Or a callable, see `dipdefense.gradients.Gradient`; picklable, if the purifier is to be.
        tile: side in pixels of the tiles that larger images are cut into, each fitted as an image of its own;
            they overlap by a quarter. None: `presets.TILE` with the default numbers, uncut with numbers of your own.

    Raises:
        TypeError: config is no FitConfig.
        ValueError: unknown gradient, a seed that is negative or no integer, a tile that is no positive integer.
    """

    def __init__(
        self,
        config: FitConfig | None = None,
        *,
        seed: int | None = 0,
        gradient: str | Gradient = "straight_through",
        tile: int | None = None,
    ):
        super().__init__()
        self.config = config
        self.seed = seed
        self.gradient = gradient
        self.tile = tile
        self._check()

    def _check(self) -> None:
        if self.config is not None and not isinstance(self.config, FitConfig):
            raise TypeError(f"config must be a FitConfig or None, got {type(self.config).__name__}")
        for name, value, least in (("seed", self.seed, 0), ("tile", self.tile, 1)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be None or an integer of at least {least}, got {value!r}")
        known_gradient(self.gradient)

    def fit(self, images: Tensor, callback: Callable[[Progress], None] | None = None) -> FitResult:
        """The whole result of the fit to images (B, C, H, W) in [0, 1], uncut; no gradient passes.

        Raises:
            TypeError, ValueError: not a floating image batch, or outside [0, 1].
        """
        check_images(images)
        return fit(images, self.config_for(images), seed=self.seed, callback=callback)

    def config_for(self, images: Tensor) -> FitConfig:
        """The numbers of the fit to images of this shape, (B, C, H, W)."""
        return self.config or default_config(tuple(images.shape[1:]))

    def tile_for(self, images: Tensor) -> int | None:
        """The side of the tiles that images of this shape, (B, C, H, W), are cut into; None if they stay whole."""
        tile = TILE if self.tile is None and self.config is None else self.tile
        return None if tile is None or max(images.shape[2:]) <= tile else tile

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) or (C, H, W) in [0, 1] -> same shape, purified.

        Raises:
            TypeError, ValueError: not a floating image, or outside [0, 1].
        """
        if isinstance(images, Tensor) and images.dim() == 3:
            return self(images[None])[0]  # type: ignore[no-any-return]
        return self.frames(images, None, gradient=self.gradient)[0]

    @torch.no_grad()
    def reconstruct(self, images: Tensor, callback: Callable[[Progress], None] | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1] -> same, without gradient; tile by tile where images are larger than a tile.

        Values that the gain of the cosine loss lifts above 1 are clipped.
        """
        return self.frames(images, None, gradient="none", callback=callback)[0]

    @torch.no_grad()
    def trajectory(self, images: Tensor, iterations: Sequence[int], *, restart: int = 0) -> Tensor:
        """What `reconstruct` would return, ended at each of these iterations of one fit; no gradient.

        Args:
            images: (B, C, H, W) in [0, 1].
            iterations: at which to look, each from 1 to the fit's `iterations`; the fit ends at the largest.
            restart: added to the seed.

        Returns:
            (T, B, C, H, W) in the order of `iterations`.

        Raises:
            TypeError, ValueError: not a floating image batch, or outside [0, 1]; no iterations, one outside the fit,
                a stopping rule other than `fixed`.
        """
        return self.frames(images, iterations, gradient="none", restart=restart)

    def frames(
        self,
        images: Tensor,
        iterations: Sequence[int] | None,
        *,
        gradient: str | Gradient,
        restart: int = 0,
        callback: Callable[[Progress], None] | None = None,
    ) -> Tensor:
        """What `trajectory` returns, with the given meaning of a backward pass.

        `iterations` None is the iterate that the stopping rule chooses, (1, B, C, H, W). Raises as `trajectory` does.
        """
        check_images(images, empty=True)
        config = self.config_for(images)
        if iterations is not None:
            _check_looks(iterations, config)
            config = replace(config, iterations=max(iterations))
        if len(images) == 0:  # nothing to fit
            return images.expand(1 if iterations is None else len(iterations), *images.shape)
        seed = None if self.seed is None else self.seed + restart
        tile = self.tile_for(images)
        pieces = images if tile is None else cut(images, tile, tile // 4)
        if iterations is None:
            result = fit(pieces, config, seed=seed, callback=callback)
            frames, numbers, seed = result.reconstruction[None], result.chosen[None], result.seed
        else:
            frames, numbers, seed = _watch(pieces, config, seed, iterations)
        fitted = Fitted(pieces.detach().clone(), config, seed, numbers)  # the caller may write to the images
        passed = purification(pieces, frames.clamp(max=1), fitted, gradient)
        if tile is None:
            return passed
        H, W = images.shape[2:]
        return torch.stack([join(frame, (H, W), tile, tile // 4) for frame in passed])

    def variant(self, **arguments: Any) -> Self:
        """The same purifier, of the same class, with other values of some of the arguments of `Purifier`.

        Raises:
            TypeError, ValueError: an argument that `Purifier` does not have, or a value that it refuses.
        """
        unknown = arguments.keys() - {"config", "seed", "gradient", "tile"}
        if unknown:
            raise TypeError(f"arguments must be among config, seed, gradient, tile, got {sorted(unknown)[0]!r}")
        twin = apart(self)
        for name, value in arguments.items():
            setattr(twin, name, value)
        twin._check()
        return twin

    def extra_repr(self) -> str:
        """The arguments."""
        return f"config={self.config}, seed={self.seed}, gradient={self.gradient!r}, tile={self.tile}"


class Judgement(NamedTuple):
    """What a defended classifier says of a batch."""

    logits: Tensor  # (B, K)
    scores: Tensor  # (B,) in [0, 1], larger is more adversarial
    reconstruction: Tensor  # (B, C, H, W) mean of all that was classified; no gradient


class DefendedClassifier(Wrapper):
    """Purify, then classify. Works under `no_grad` and `inference_mode`; its state dict is the classifier's.

    It evaluates: a call asks the classifier several times, about the image and about its reconstructions, so that in
    training mode batch normalisation would update its statistics, and dropout would draw, several times a call. A
    classifier with such a layer in training mode is refused. The fit does not depend on the classifier, so to fine-tune
    a classifier, purify the training images once and train it alone on them.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K); normalisation is its own first layer.
        purifier: what stands in front, put into the classifier's mode; `Purifier()` if None.
        gradient: meaning of a backward pass, see `Purifier`; the purifier's own if None. It holds for every
            reconstruction that a decision classifies, so their gradients add up; that of bare logits is exact.
        decision: how reconstructions become logits, or its name in `DECISIONS`. None: the evidence-based one of the
            image's size with its fit (`default_defence`); `Last()` where the purifier has numbers of its own.

    Raises:
        TypeError: the classifier is no module, the decision no decision.
        ValueError: unknown gradient or decision.
    """

    def __init__(
        self,
        classifier: nn.Module,
        purifier: Purifier | None = None,
        *,
        gradient: str | Gradient | None = None,
        decision: Decision | str | None = None,
    ):
        super().__init__(classifier)
        self.purifier = (Purifier() if purifier is None else apart(purifier)).train(self.training)
        self.gradient = self.purifier.gradient if gradient is None else gradient
        known_gradient(self.gradient)
        self.decision = None if decision is None else _known_decision(decision)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> logits (B, K).

        Raises:
            TypeError, ValueError: not a floating image batch, or outside [0, 1]; iterations of the decision that the
                fit does not have; a classifier that is in training mode, or does not return finite logits (B, K).
        """
        return self.judge(images).logits

    def detect(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> how adversarial each looks, (B,) in [0, 1]; larger is more so.

        The score is the decision's. Raises as `forward` does.
        """
        return self.judge(images).scores

    def judge(self, images: Tensor) -> Judgement:
        """The results of `forward` and `detect` from one fit, and what was classified."""
        looks, decision, reconstruction = self.look(images)
        return Judgement(decision.combine(looks), decision.score(looks), reconstruction)

    def look(self, images: Tensor) -> tuple[Looks, Decision, Tensor]:
        """What the decision sees, the decision, and the mean of all that was classified, (B, C, H, W)."""
        check_images(images, empty=True)
        _check_mode(self.classifier)
        purifier, decision = self.plan(images)
        if purifier.seed is None:  # drawn here, so that all that a derived class makes of it is of one draw
            purifier = purifier.variant(seed=secrets.randbits(32))
        bare = self._classify(images)  # before the fit: what is wrong with the classifier is said at once
        self._check_views(images, decision, bare)
        iterations = decision.looks(purifier.config_for(images).iterations)
        reconstructions, residual = self._reconstruct(purifier, images, decision, iterations)
        prepared = decision.prepare(self._classify, images, reconstructions)
        along = [see(self._classify, look, view) for look in prepared for view in decision.views]
        looks = Looks(bare, torch.stack(along), residual)
        return looks, decision, prepared.detach().mean(0)

    def variant(self, *, seed: int | None, gradient: str | Gradient) -> Self:
        """The same defence of the same classifier with another seed and meaning of a backward pass."""
        twin = apart(self)
        twin.gradient, twin.purifier = gradient, self.purifier.variant(seed=seed, gradient=gradient)
        return twin

    def plan(self, images: Tensor) -> tuple[Purifier, Decision]:
        """The fit and the decision for images of this shape, (B, C, H, W)."""
        own = self.purifier
        if self.decision is not None or own.config is not None:
            return own, self.decision or Last()
        config, decision, tile = default_defence(tuple(images.shape[1:]))
        return own.variant(config=config, tile=own.tile or tile), decision

    def extra_repr(self) -> str:
        """The arguments that are no modules."""
        return f"gradient={self.gradient!r}, decision={self.decision}"

    def _reconstruct(
        self, purifier: Purifier, images: Tensor, decision: Decision, iterations: tuple[int, ...]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Reconstructions (restarts x iterations, B, C, H, W), and the residuals that the decision asks for."""
        if not iterations:
            return purifier.frames(images, None, gradient=self.gradient), {}
        seen = sorted({*iterations, *decision.residuals})
        restarts = range(decision.restarts)
        frames = torch.stack([purifier.frames(images, seen, gradient=self.gradient, restart=r) for r in restarts])
        residual = (frames - images).square().mean((0, 3))  # (T, B, H, W); frames (restarts, T, B, C, H, W)
        if known_gradient(self.gradient) is GRADIENTS["straight_through"]:
            residual = residual.detach()  # it does not change with the images, and the sign of a rounding is a step
        chosen = [seen.index(iteration) for iteration in iterations]
        return frames[:, chosen].flatten(0, 1), {i: residual[seen.index(i)] for i in decision.residuals}

    @torch.no_grad()
    def _check_views(self, images: Tensor, decision: Decision, bare: Tensor) -> None:
        """Refuse a classifier that does not take the size of a view, or has other classes there."""
        for view in decision.views:
            if VIEWS[view](images[:1]).shape != images[:1].shape:
                classes = see(self._classify, images[:1], view).shape[1]
                if classes != bare.shape[1]:
                    raise ValueError(
                        f"classifier must have {bare.shape[1]} classes for images of every size, got {classes} for the "
                        f"view {view!r}: pool to a fixed size before its last layer"
                    )

    def _classify(self, images: Tensor) -> Tensor:
        logits = self.classifier(images)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"classifier must return logits (B, K) for {len(images)} images, got {got}")
        if not logits.isfinite().all():
            raise ValueError("classifier must return finite logits, got NaN or infinite values")
        return logits


def defend(
    classifier: nn.Module,
    config: FitConfig | None = None,
    *,
    seed: int | None = 0,
    gradient: str | Gradient = "straight_through",
    decision: Decision | str | None = None,
    check: bool | tuple[int, int, int] = False,
) -> DefendedClassifier:
    """Wrap a classifier so that it purifies what it sees. Arguments as in `Purifier` and `DefendedClassifier`.

    `check` looks for what cannot work (`check_classifier`): True for images of a size that the classifier takes, or
    their shape (C, H, W). A fault raises ValueError, a doubt warns.
    """
    if check is not False:
        found = check_classifier(classifier, None if check is True else check)
        if config is not None or decision is not None:  # the views of the default are not asked for
            found = replace(found, faults=tuple(fault for fault in found.faults if fault.name != "size"))
        found.report()
    return DefendedClassifier(classifier, Purifier(config, seed=seed), gradient=gradient, decision=decision)


def _watch(
    images: Tensor, config: FitConfig, seed: int | None, iterations: Sequence[int]
) -> tuple[Tensor, Tensor, int]:
    """The averages at these iterations of one fit, (T, B, C, H, W), their numbers (T, B), and the seed."""
    with torch.inference_mode(False):  # the fit, which writes to it, is outside that mode
        frames = images.new_zeros(len(iterations), *images.shape)

    def keep(state: Progress) -> None:
        for frame, iteration in zip(frames, iterations, strict=True):
            if iteration == state.iteration:
                frame[state.index] = state.average

    result = fit(images, config, seed=seed, callback=keep)
    numbers = torch.tensor(iterations, device=images.device)[:, None].expand(-1, len(images)).clone()
    for frame, number, iteration in zip(frames, numbers, iterations, strict=True):
        ended = result.iterations < iteration  # an image that was given up keeps its last average
        frame[ended], number[ended] = result.reconstruction[ended], result.chosen[ended]
    return frames, numbers, result.seed


def _check_looks(iterations: Sequence[int], config: FitConfig) -> None:
    if config.stopping != "fixed":
        raise ValueError(
            f"stopping must be fixed where iterations are named, got {config.stopping!r}: use the decision last"
        )
    if not iterations or not all(type(i) is int and 1 <= i <= config.iterations for i in iterations):
        raise ValueError(
            f"iterations must be one or more integers from 1 to the {config.iterations} of the fit, got "
            f"{tuple(iterations)!r}"
        )


def _check_mode(classifier: nn.Module) -> None:
    """Refuse layers that a call, which asks the classifier several times, would update or draw from every time.

    Running statistics and dropout layers are seen; a module that draws by functions of its own is not.
    """
    for layer in classifier.modules():
        updates = getattr(layer, "running_mean", None) is not None
        draws = isinstance(layer, _DropoutNd) and layer.p > 0
        if layer.training and (updates or draws):
            raise ValueError(
                f"classifier must be in eval mode, got {type(layer).__name__} in training mode: call .eval(); to "
                "train the classifier, train it alone on purified images"
            )


def _known_decision(decision: Decision | str) -> Decision:
    if isinstance(decision, str):
        if decision not in DECISIONS:
            raise ValueError(f"decision must be one of {', '.join(DECISIONS)}, got {decision!r}")
        return DECISIONS[decision]()
    if isinstance(decision, type) or not hasattr(decision, "combine"):
        raise TypeError(f"decision must be a Decision, its name or None, got {decision!r}")
    return decision
