"""Checks of the white-box attack against attacks that know less: noise, queries, another model."""

from torch import Tensor, nn

from attacks import random_noise, square
from eval.diagnose.attack_convergence import Craft
from eval.diagnose.attack_trace import margin, trace
from eval.diagnose.finding import TOLERANCE, Figure, Finding, surely_above

__all__ = ["black_box", "noise", "transfer"]

REMEDY = "the gradient is masked: attack with a differentiable surrogate (BPDA), EOT, or the attack that knows less"


def noise(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int, seed: int = 0, craft: Craft = trace
) -> Finding:
    """Fail unless the attack beats a random corner of the ball: a smaller margin on most images, and none missed.

    "Most" is surely above one half. "None missed" means that at most 2 % are broken by the noise only. Margins are
    compared, since a robust model has too few errors.

    Source: Athalye et al. (2018), section 3.1; Carlini et al. (2019).
    """
    attack = craft(model, images, labels, eps=eps, steps=2 * steps, seed=seed).least()
    rival = margin(model, random_noise(model, images, labels, eps=eps, seed=seed), labels, seed=seed)
    clean = margin(model, images, labels, seed=seed)
    closer, missed = int((attack < rival).sum()), _only(rival, attack)
    passed = surely_above(closer, len(images), 0.5) and not surely_above(missed, len(images), TOLERANCE)
    figures: dict[str, Figure] = {
        "accuracy clean": _accuracy(clean),
        "accuracy noise": _accuracy(rival),
        "accuracy attack": _accuracy(attack),
    }
    return Finding(
        check="random_noise",
        passed=passed,
        figures=figures | {"smaller margin": closer, "only noise breaks": missed, "n": len(images)},
        means="the attack beats noise of its size" if passed else "the attack does no better than noise of its size",
        remedy="" if passed else REMEDY,
    )


def black_box(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    queries: int = 200,
    seed: int = 0,
    craft: Craft = trace,
) -> Finding:
    """Fail if Square, which sees logits only, breaks over 2 % of images that the white-box attack does not.

    Images are compared one by one, not in the mean, since an image that only the weaker attack breaks shows a failure
    of the stronger one.

    Source: Athalye et al. (2018), section 3.1; Carlini et al. (2019); Andriushchenko et al. (2020).
    """
    attack = craft(model, images, labels, eps=eps, steps=2 * steps, seed=seed).least()
    rival = square(model, images, labels, eps=eps, queries=queries, seed=seed)
    name = f"Square, {queries} queries"
    return _compared(margin(model, rival, labels, seed=seed), attack, check="black_box", name=name)


def transfer(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int,
    surrogate: nn.Module | None = None,
    seed: int = 0,
    craft: Craft = trace,
) -> Finding:
    """Fail if examples made on `surrogate` break over 2 % of images that examples made on the model do not.

    Source: Athalye et al. (2018), section 3.1; Pintor et al. (2022), transferability.
    """
    if surrogate is None:
        means = "not run: there is no surrogate"
        remedy = "name another classifier as the surrogate (--surrogate)"
        return Finding(check="transfer", passed=None, figures={}, means=means, remedy=remedy)
    attack = craft(model, images, labels, eps=eps, steps=2 * steps, seed=seed).least()
    rival = craft(surrogate, images, labels, eps=eps, steps=2 * steps, seed=seed).adversarial
    return _compared(margin(model, rival, labels, seed=seed), attack, check="transfer", name="transfer")


def _compared(rival: Tensor, attack: Tensor, *, check: str, name: str) -> Finding:
    missed = _only(rival, attack)
    passed = not surely_above(missed, len(attack), TOLERANCE)
    figures: dict[str, Figure] = {f"accuracy {name}": _accuracy(rival), "accuracy white-box": _accuracy(attack)}
    return Finding(
        check=check,
        passed=passed,
        figures=figures | {"broken by the weaker attack only": missed, "n": len(attack)},
        means="the attack that knows more breaks more images"
        if passed
        else "an attack that knows less breaks images that the white-box attack does not",
        remedy="" if passed else REMEDY,
    )


def _only(rival: Tensor, attack: Tensor) -> int:
    return int(((rival <= 0) & (attack > 0)).sum())


def _accuracy(margins: Tensor) -> float:
    return float((margins > 0).float().mean())
