"""Reconstruct, gather evidence, decide: what each step computes, and what it leaves out."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from dipdefense import DefendedClassifier, Detector, DetectorGated, FitConfig, LastReconstruction, MeanSoftmax, Purifier
from dipdefense.defence import classifier as classifier_module
from dipdefense.defence import purifier as purifier_module
from dipdefense.defence.pipeline import decide, gather_evidence, reconstruct
from dipdefense.image_tensors import check_images

TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=12)
DETECTOR = Detector(iteration=12, bias=1.0, doubt=0.6, left=9.0, drawn=-9.0)
COUNTED: list[str] = []
TWICE = ["config", "fit to 6", "fit to 6"]


def images(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()


def linear() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5)).double()
    nn.init.normal_(net[1].weight, generator=torch.Generator().manual_seed(1))
    return net


class Counting(Purifier):
    """Notes the settings that it is asked for, and the fits, by their last iteration."""

    def config_for(self, images):
        COUNTED.append("config")
        return super().config_for(images)

    def frames(self, images, iterations, **more):
        COUNTED.append(f"fit to {more['config'].iterations if iterations is None else max(iterations)}")
        return super().frames(images, iterations, **more)


@dataclass(frozen=True)
class CountedMean(MeanSoftmax):
    """Notes its scores."""

    def score(self, evidence):
        COUNTED.append("score")
        return super().score(evidence)


@dataclass(frozen=True)
class CountedGate(DetectorGated):
    """Notes its scores."""

    def score(self, evidence):
        COUNTED.append("score")
        return super().score(evidence)


@pytest.mark.parametrize(
    ("decision", "logits", "everything"),
    [
        (CountedMean((4, 6), detector=DETECTOR), ["config", "fit to 6"], ["config", "fit to 12", "score"]),
        (CountedMean((4, 6)), ["config", "fit to 6"], ["config", "fit to 6", "score"]),
        (CountedGate((4, 6), detector=DETECTOR), *[["config", "fit to 12", "score"]] * 2),
        (
            CountedMean((4, 6), restarts=2),
            *[["config", "fit to 6", "fit to 6"]],
            ["config", *["fit to 6"] * 2, "score"],
        ),
        (LastReconstruction(), *[["config", "fit to 12"]] * 2),
    ],
)
def test_nothing_is_computed_twice_or_for_nothing(decision, logits, everything):
    defended = DefendedClassifier(linear(), Counting(TINY), decision=decision)
    for call, expected in ((defended, logits), (defended.judge, everything), (defended.detect, everything)):
        COUNTED.clear()
        call(images())
        assert expected == COUNTED


def test_images_are_checked_once_at_the_door(monkeypatch):
    checked = []

    def noted(images, **options):
        checked.append(images)
        check_images(images, **options)

    for module in (classifier_module, purifier_module):
        monkeypatch.setattr(module, "check_images", noted)
    purifier = Purifier(TINY)
    defended = DefendedClassifier(linear(), purifier, decision=MeanSoftmax((4,), restarts=2))
    for call in (defended, defended.judge, purifier, purifier.reconstruct, lambda x: purifier.trajectory(x, (2,))):
        checked.clear()
        call(images())
        assert len(checked) == 1


@torch.no_grad()
def test_decisions_that_share_reconstructions_answer_as_alone():
    net, x, purifier = linear(), images(), Purifier(TINY, seed=3)
    decisions = [
        MeanSoftmax((4, 6), restarts=2, views=("identity", "mirror")),
        DetectorGated((5,), detector=DETECTOR, threshold=0.3),
    ]
    shared = reconstruct(purifier, x, decisions, gradient="none")
    assert shared.frames.shape == (2, 4, *x.shape)
    assert shared.iterations == (4, 5, 6, 12)
    for decision in decisions:
        logits, scores = decide(decision, gather_evidence(net, x, net(x), shared, decision))
        alone = DefendedClassifier(net, purifier, decision=decision).judge(x)
        torch.testing.assert_close(logits, alone.logits)
        torch.testing.assert_close(scores, alone.scores)
        torch.testing.assert_close(shared.classified(decision).mean(0), alone.reconstruction)


@torch.no_grad()
def test_the_score_sees_the_restarts_of_its_decision():
    x, purifier = images(), Purifier(TINY)
    decisions = [MeanSoftmax((4,), detector=DETECTOR), MeanSoftmax((4,), restarts=2)]
    shared = reconstruct(purifier, x, decisions, gradient="none")
    assert shared.scored(decisions[0]).keys() == {12}
    torch.testing.assert_close(shared.scored(decisions[0])[12], purifier.trajectory(x, (12,)))
    assert shared.scored(decisions[1]) == {}
    unscored = reconstruct(purifier, x, decisions[:1], gradient="none", scored=False)
    assert unscored.iterations == (4,)
    assert gather_evidence(linear(), x, x, unscored, decisions[0], scored=False).scored == {}


def test_a_score_that_is_known_is_not_computed_again():
    evidence, decision, _ = DefendedClassifier(
        linear(), Purifier(TINY), decision=CountedGate((4,), detector=DETECTOR)
    ).evidence(images())
    COUNTED.clear()
    logits, scores = decide(decision, evidence)
    assert COUNTED == ["score"]
    torch.testing.assert_close(decision.combine(evidence), logits)
    torch.testing.assert_close(decision.score(evidence), scores)
