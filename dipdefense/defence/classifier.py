"""The defence: purify an image, classify the reconstructions, decide."""

import secrets
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dipdefense.arguments import check_integer
from dipdefense.defence.alarm import Alarm, set_alarm
from dipdefense.defence.check_logits import check_logits
from dipdefense.defence.decisions import Decision, known_decision
from dipdefense.defence.evidence import Evidence
from dipdefense.defence.gradients import Gradient, known_gradient
from dipdefense.defence.pipeline import Reconstructions, decide, gather_evidence, reconstruct
from dipdefense.defence.presets import Defence, defence_for
from dipdefense.defence.purifier import Purifier
from dipdefense.defence.wrapper import Wrapper, shallow_copy
from dipdefense.fitting.config import FitConfig
from dipdefense.image_tensors import check_images

__all__ = ["DefendedClassifier", "Prediction", "check_mode", "defend"]


class _Parts(NamedTuple):
    logits: Tensor  # (B, K)
    scores: Tensor  # (B,) in [0, 1], larger is more adversarial
    reconstruction: Tensor  # (B, C, H, W) mean of all that was classified; no gradient


class Prediction(_Parts):
    """The answer of a defended classifier to a batch: the tuple (logits, scores, reconstruction), and `flagged`."""

    flagged: Tensor | None = None  # (B,) bool, whether the alarm goes off; None before `calibrate`

    def _replace(self, **changes: Any) -> Self:
        """A copy with other values of some fields, `flagged` among them; see `typing.NamedTuple`."""
        flagged = changes.pop("flagged", self.flagged)
        twin = super()._replace(**changes)
        twin.flagged = flagged
        return twin


class DefendedClassifier(Wrapper):
    """Purify, then classify. Works under `no_grad` and `inference_mode`; its state dict is the classifier's.

    It is for evaluation. A call runs the classifier several times, on the image and on its reconstructions, so in
    training mode every call would update the statistics of batch normalisation, and draw from dropout, several times. A
    classifier with such a layer in training mode is refused. The fit does not depend on the classifier: to fine-tune a
    classifier, purify the training images once and train the classifier alone on them; `adapt` does so without labels.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K); normalisation is its own first layer.
        purifier: makes the reconstructions, and gets the classifier's mode; `Purifier()` if None.
        gradient: meaning of a backward pass, see `Purifier`; the purifier's own if None. It applies to every
            reconstruction that a decision classifies, so their gradients add up; the gradient of bare logits is exact.
        decision: how reconstructions become logits, or its name in `DECISIONS`; None for the default. `defence_for`
            says what both mean with the default fit, and with a config of your own.
        mirror: whether an image keeps its class when mirrored. If False, for digits or text, the default decision and
            the decisions by name classify no mirrored view.

    Raises:
        TypeError: the classifier is not a module, or the decision is neither a decision nor a name.
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
        self.alarm: Alarm | None = None  # see `calibrate`
        # shape of images -> (the arguments, their defence), so that the views of a classifier are tried once
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
        """(B, C, H, W) in [0, 1] -> detection scores (B,) in [0, 1]; larger is more adversarial.

        The score is that of the decision. Raises as `forward` does.
        """
        evidence, decision, _ = self.evidence(images)
        return decision.score(evidence)

    def judge(self, images: Tensor) -> Prediction:
        """The results of `forward` and `detect` from one fit, the mean reconstruction, and what the alarm says.

        Raises as `forward` does, and ValueError for images of another shape than the alarm was set on.
        """
        alarm = self.alarm
        is_batch = isinstance(images, Tensor) and images.dim() == 4  # what is none, `evidence` refuses
        if alarm is not None and is_batch and tuple(images.shape[1:]) != alarm.shape:
            raise ValueError(
                f"images must be of the shape that the alarm was set on, {alarm.shape}, got {tuple(images.shape[1:])}: "
                "calibrate on such images"
            )
        evidence, decision, reconstructions = self.evidence(images)
        logits, scores = decide(decision, evidence)
        answer = Prediction(logits, scores, reconstructions.classified(decision).detach().mean(0))
        answer.flagged = None if alarm is None else alarm.flags(scores.detach())
        return answer

    def calibrate(self, clean_images: Tensor, fpr: float = 0.05, *, batch_size: int = 64) -> Self:
        """The same defence with an alarm: of clean images, `judge` flags a share of about `fpr`.

        The rate holds on average over draws of the clean images, for further images of the same kind. Images of other
        kinds (another camera, more noise) may raise more alarms. An attacker who knows the score need not raise any.

        Args:
            clean_images: (n, C, H, W) in [0, 1], n at least 1 / fpr - 1, like those that will be seen, used for nothing
                else. Their labels are not needed.
            fpr: rate of false alarms, in (0, 1).
            batch_size: images scored together.

        Returns:
            A copy, whose `alarm` holds the threshold; `alarm.interval()` says how sure the rate is. What it decides,
            and its scores, are as before.

        Raises:
            TypeError, ValueError: what `forward` raises; a rate outside (0, 1), or too few images for it.
        """
        check_images(clean_images, "clean_images")
        check_integer("batch_size", batch_size, 1)
        shape = tuple(clean_images.shape[1:])
        set_alarm(torch.zeros(len(clean_images)), fpr, shape)  # refuses a rate before the fits
        with torch.no_grad():
            scores = torch.cat([self.detect(part) for part in torch.split(clean_images, batch_size)])
        twin = shallow_copy(self)
        twin.alarm = set_alarm(scores, fpr, shape)
        return twin

    def evidence(self, images: Tensor, *, scored: bool = True) -> tuple[Evidence, Decision, Reconstructions]:
        """What the decision sees, the decision, and the reconstructions.

        If `scored` is False, what only a detection score needs is left out. Raises as `forward` does.
        """
        check_images(images, empty=True)
        check_mode(self.classifier)
        purifier, decision = self.plan(images)
        if purifier.seed is None:  # drawn here, so that everything that a derived class does belongs to one draw
            purifier = purifier.variant(seed=secrets.randbits(32))
        bare = self._classify(images)  # before the fit, so that a faulty classifier is reported at once
        reconstructions = reconstruct(purifier, images, [decision], gradient=self.gradient, scored=scored)
        evidence = gather_evidence(self._classify, images, bare, reconstructions, decision, scored=scored)
        return evidence, decision, reconstructions

    def plan(self, images: Tensor) -> tuple[Purifier, Decision]:
        """The purifier and the decision for images of this shape, (B, C, H, W)."""
        own, shape = self.purifier, tuple(images.shape[1:])
        arguments = (self.decision, self.mirror, own.config)
        known, defence = self._defences.get(shape, (None, None))
        if defence is None or known != arguments:
            defence = defence_for(shape, self.classifier, decision=self.decision, mirror=self.mirror, fit=own.config)
            self._defences[shape] = arguments, defence
        return own.variant(config=defence.fit, tile=own.tile or defence.tile), defence.decision

    def variant(self, *, seed: int | None, gradient: str | Gradient) -> Self:
        """The same defence of the same classifier with another seed and meaning of a backward pass."""
        twin = shallow_copy(self)
        twin.gradient, twin.purifier = gradient, self.purifier.variant(seed=seed, gradient=gradient)
        twin._defences = self._defences  # shared, so that there is one warning if the classifier refuses a view
        return twin

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        alarm = "" if self.alarm is None else f", alarm={self.alarm}"
        return f"gradient={self.gradient!r}, decision={self.decision}, mirror={self.mirror}{alarm}"

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

    `check` runs `check_classifier`: True for images of a size that the classifier accepts, or their shape (C, H, W). A
    fault raises ValueError, a doubt gives a warning.
    """
    if check is not False:
        from dipdefense.check.check_classifier import check_classifier  # it imports the defence

        check_classifier(classifier, None if check is True else check).report()
    purifier = Purifier(config, seed=seed)
    return DefendedClassifier(classifier, purifier, gradient=gradient, decision=decision, mirror=mirror)


def check_mode(classifier: nn.Module) -> None:
    """Refuse layers in training mode, which every run of the classifier would update or draw from.

    It finds running statistics and dropout layers, but not a module that draws in its own `forward`.
    """
    for layer in classifier.modules():
        updates = getattr(layer, "running_mean", None) is not None
        draws = isinstance(layer, _DropoutNd) and layer.p > 0
        if layer.training and (updates or draws):
            raise ValueError(
                f"classifier must be in eval mode, got {type(layer).__name__} in training mode: call .eval(); to "
                "train the classifier, train it alone on purified images"
            )
