"""The defence: purify an image, classify the reconstructions, decide."""

import secrets
from dataclasses import replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dipdefense.defence.decisions import DECISIONS, Decision, LastReconstruction
from dipdefense.defence.evidence import VIEWS, Evidence, classify_view
from dipdefense.defence.gradients import GRADIENTS, Gradient, known_gradient
from dipdefense.defence.logits import check_logits
from dipdefense.defence.presets import default_defence
from dipdefense.defence.purifier import Purifier
from dipdefense.defence.wrapper import Wrapper, shallow_copy
from dipdefense.fitting.config import FitConfig
from dipdefense.image_tensors import check_images

__all__ = ["DefendedClassifier", "Prediction", "defend"]


class Prediction(NamedTuple):
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
            image's size with its fit (`default_defence`); `LastReconstruction()` where the purifier has its own config.

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
        self.purifier = (Purifier() if purifier is None else shallow_copy(purifier)).train(self.training)
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

    def judge(self, images: Tensor) -> Prediction:
        """The results of `forward` and `detect` from one fit, and what was classified."""
        looks, decision, reconstruction = self.look(images)
        return Prediction(decision.combine(looks), decision.score(looks), reconstruction)

    def look(self, images: Tensor) -> tuple[Evidence, Decision, Tensor]:
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
        along = [classify_view(self._classify, look, view) for look in prepared for view in decision.views]
        looks = Evidence(bare, torch.stack(along), residual)
        return looks, decision, prepared.detach().mean(0)

    def variant(self, *, seed: int | None, gradient: str | Gradient) -> Self:
        """The same defence of the same classifier with another seed and meaning of a backward pass."""
        twin = shallow_copy(self)
        twin.gradient, twin.purifier = gradient, self.purifier.variant(seed=seed, gradient=gradient)
        return twin

    def plan(self, images: Tensor) -> tuple[Purifier, Decision]:
        """The fit and the decision for images of this shape, (B, C, H, W)."""
        own = self.purifier
        if self.decision is not None or own.config is not None:
            return own, self.decision or LastReconstruction()
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
                classes = classify_view(self._classify, images[:1], view).shape[1]
                if classes != bare.shape[1]:
                    raise ValueError(
                        f"classifier must have {bare.shape[1]} classes for images of every size, got {classes} for the "
                        f"view {view!r}: pool to a fixed size before its last layer"
                    )

    def _classify(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images)
        check_logits(logits, len(images))
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
        from dipdefense.check.check_classifier import check_classifier  # it knows the defence, which need not know it

        found = check_classifier(classifier, None if check is True else check)
        if config is not None or decision is not None:  # the views of the default are not asked for
            found = replace(found, faults=tuple(fault for fault in found.faults if fault.name != "size"))
        found.report()
    return DefendedClassifier(classifier, Purifier(config, seed=seed), gradient=gradient, decision=decision)


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
