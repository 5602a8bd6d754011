"""Checks of the white-box attack against those that know less: noise, queries, another model."""

from torch import Tensor, nn

from attacks import random_noise, square
from eval.diagnose.finding import TOLERANCE, Figure, Finding, surely_above
from eval.diagnose.optimisation import Craft
from eval.diagnose.trace import margin, trace

__all__ = ["black_box", "noise", "transfer"]

REMEDY = "the gradient is masked: attack the model by a differentiable surrogate (BPDA), EOT, or the rival itself"


def noise(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int, seed: int = 0, craft: Craft = trace
) -> Finding:
    """Fail unless the attack leaves most images a smaller margin than a random corner of the ball, and none to it.

    "Most" is surely above one half, "none" at most 2 %. Margins, since errors are too few on a robust model.

    Source: Athalye et al. (2018), section 3.1; Carlini et al. (2019).
    """
    attack = craft(model, images, labels, eps=eps, steps=2 * steps, seed=seed).least()
    rival = margin(model, random_noise(model, images, labels, eps=eps, seed=seed), labels, seed=seed)
    clean = margin(model, images, labels, seed=seed)
    closer, missed = int((attack < rival).sum()), _only(rival, attack)
    passed = surely_above(closer, len(images), 0.5) and not surely_above(missed, len(images), TOLERANCE)
    figures: dict[str, Figure] = {
        "accuracy clean": _accuracy(clean),
        "noise": _accuracy(rival),
        "attack": _accuracy(attack),
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
    """Fail where Square, which sees logits only, breaks more than 2 % of images that the white-box attack does not.

    Per example, not in the mean: one that only the weaker attack breaks shows that the stronger one went wrong.

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
    """Fail where examples made on `surrogate` break more than 2 % of images that those made on the model do not.

    Source: Athalye et al. (2018), section 3.1; Pintor et al. (2022), transferability.
    """
    if surrogate is None:
        means = "not asked: there is no surrogate"
        return Finding(check="transfer", passed=None, figures={}, means=means, remedy="name another classifier")
    attack = craft(model, images, labels, eps=eps, steps=2 * steps, seed=seed).least()
    rival = craft(surrogate, images, labels, eps=eps, steps=2 * steps, seed=seed).adversarial
    return _compared(margin(model, rival, labels, seed=seed), attack, check="transfer", name="transfer")


def _compared(rival: Tensor, attack: Tensor, *, check: str, name: str) -> Finding:
    missed = _only(rival, attack)
    passed = not surely_above(missed, len(attack), TOLERANCE)
    figures: dict[str, Figure] = {f"accuracy {name}": _accuracy(rival), "white-box": _accuracy(attack)}
    return Finding(
        check=check,
        passed=passed,
        figures=figures | {"broken by the rival only": missed, "n": len(attack)},
        means="who knows more breaks more"
        if passed
        else "an attack that knows less breaks what the white-box does not",
        remedy="" if passed else REMEDY,
    )


def _only(rival: Tensor, attack: Tensor) -> int:
    return int(((rival <= 0) & (attack > 0)).sum())


def _accuracy(margins: Tensor) -> float:
    return float((margins > 0).float().mean())
