"""The defence: purify an image, classify the reconstructions, decide."""

import secrets
from typing import NamedTuple, Self

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dipdefense.defence.decisions import Decision, known_decision
from dipdefense.defence.evidence import Evidence
from dipdefense.defence.gradients import Gradient, known_gradient
from dipdefense.defence.logits import check_logits
from dipdefense.defence.pipeline import Reconstructions, decide, gather_evidence, reconstruct
from dipdefense.defence.presets import Defence, defence_for
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
        decision: how reconstructions become logits, or its name in `DECISIONS`; None for the default. `defence_for`
            says what either means with the default fit, and where the purifier has a config of its own.
        mirror: whether a class stays itself in the mirror. False, for digits or text: the default, and the decisions by
            name, classify no mirrored view.

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
        mirror: bool = True,
    ):
        super().__init__(classifier)
        self.purifier = (Purifier() if purifier is None else shallow_copy(purifier)).train(self.training)
        self.gradient = self.purifier.gradient if gradient is None else gradient
        known_gradient(self.gradient)
        self.decision = None if decision is None else known_decision(decision)
        self.mirror = mirror
        # by the shape of images, with what they were chosen for: the sizes that a classifier takes are tried once
        self._defences: dict[tuple[int, ...], tuple[object, Defence]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> logits (B, K).

        Raises:
            TypeError, ValueError: not a floating image batch, or outside [0, 1]; a decision by name that was not tuned
                for this shape; iterations of the decision that the fit does not have; a classifier that is in training
                mode, or does not return finite logits (B, K).
        """
        evidence, decision, _ = self.evidence(images, scored=False)
        return decision.combine(evidence)

    def detect(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> how adversarial each looks, (B,) in [0, 1]; larger is more so.

        The score is the decision's. Raises as `forward` does.
        """
        evidence, decision, _ = self.evidence(images)
        return decision.score(evidence)

    def judge(self, images: Tensor) -> Prediction:
        """The results of `forward` and `detect` from one fit, and what was classified."""
        evidence, decision, reconstructions = self.evidence(images)
        logits, scores = decide(decision, evidence)
        return Prediction(logits, scores, reconstructions.classified(decision).detach().mean(0))

    def evidence(self, images: Tensor, *, scored: bool = True) -> tuple[Evidence, Decision, Reconstructions]:
        """What the decision sees, the decision, and the reconstructions.

        `scored` False leaves out what a detection score alone would need. Raises as `forward` does.
        """
        check_images(images, empty=True)
        _check_mode(self.classifier)
        purifier, decision = self.plan(images)
        if purifier.seed is None:  # drawn here, so that all that a derived class makes of it is of one draw
            purifier = purifier.variant(seed=secrets.randbits(32))
        bare = self._classify(images)  # before the fit: what is wrong with the classifier is said at once
        reconstructions = reconstruct(purifier, images, [decision], gradient=self.gradient, scored=scored)
        evidence = gather_evidence(self._classify, images, bare, reconstructions, decision, scored=scored)
        return evidence, decision, reconstructions

    def plan(self, images: Tensor) -> tuple[Purifier, Decision]:
        """The purifier and the decision for images of this shape, (B, C, H, W)."""
        own, shape = self.purifier, tuple(images.shape[1:])
        asked = (self.decision, self.mirror, own.config)
        known, defence = self._defences.get(shape, (None, None))
        if defence is None or known != asked:
            defence = defence_for(shape, self.classifier, decision=self.decision, mirror=self.mirror, fit=own.config)
            self._defences[shape] = asked, defence
        return own.variant(config=defence.fit, tile=own.tile or defence.tile), defence.decision

    def variant(self, *, seed: int | None, gradient: str | Gradient) -> Self:
        """The same defence of the same classifier with another seed and meaning of a backward pass."""
        twin = shallow_copy(self)
        twin.gradient, twin.purifier = gradient, self.purifier.variant(seed=seed, gradient=gradient)
        twin._defences = self._defences  # shared, so that a classifier that refuses a view is warned of once
        return twin

    def extra_repr(self) -> str:
        """The arguments that are no modules."""
        return f"gradient={self.gradient!r}, decision={self.decision}, mirror={self.mirror}"

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
    mirror: bool = True,
    check: bool | tuple[int, int, int] = False,
) -> DefendedClassifier:
    """Wrap a classifier so that it purifies what it sees. Arguments as in `Purifier` and `DefendedClassifier`.

    `check` looks for what cannot work (`check_classifier`): True for images of a size that the classifier takes, or
    their shape (C, H, W). A fault raises ValueError, a doubt warns.
    """
    if check is not False:
        from dipdefense.check.check_classifier import check_classifier  # it knows the defence, which need not know it

        check_classifier(classifier, None if check is True else check).report()
    purifier = Purifier(config, seed=seed)
    return DefendedClassifier(classifier, purifier, gradient=gradient, decision=decision, mirror=mirror)


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
