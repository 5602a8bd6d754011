"""Checks on the white-box attack itself: does it have gradients, and has it converged?"""

from collections.abc import Callable

from torch import Tensor, nn

from attacks import fgsm
from eval.diagnose.attack_trace import NoGradientError, Trace, margin, trace
from eval.diagnose.finding import TOLERANCE, Finding, surely_above

__all__ = ["Craft", "converged", "gradients", "one_step", "settled"]

Craft = Callable[..., Trace]  # trace, or one that remembers its answers


def gradients(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int, seed: int = 0, craft: Craft = trace
) -> Finding:
    """Fail if a backward pass raises, or over 2 % of images have a zero or NaN gradient before they are broken.

    Gradients after that do not matter, since attacks end there. The 2 % allow for a dead unit or an underflow.

    Source: Athalye et al. (2018), section 3; Pintor et al. (2022), unavailable gradients.
    """
    remedy = "attack a differentiable surrogate of what hides the gradient (BPDA), or a smoothed one"
    try:
        attack = craft(model, images, labels, eps=eps, steps=2 * steps, seed=seed)
    except NoGradientError as error:
        means = "a backward pass raises: gradient attacks are impossible, and their failure proves nothing"
        return Finding(check="gradients", passed=False, figures={"error": str(error)}, means=means, remedy=remedy)
    blind = int((~attack.usable & (attack.margins > 0)).any(0).sum())
    passed = not surely_above(blind, len(images), TOLERANCE)
    means = "the gradient is there" if passed else "the gradient is zero or NaN: the attack cannot move"
    return Finding(
        check="gradients",
        passed=passed,
        figures={"images without gradient": blind, "n": len(images)},
        means=means,
        remedy="" if passed else remedy,
    )


def converged(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int, seed: int = 0, craft: Craft = trace
) -> Finding:
    """Fail if doubling the steps breaks more than a further 2 % of images.

    Source: Carlini et al. (2019); the tolerance is ours.
    """
    attack = craft(model, images, labels, eps=eps, steps=2 * steps, seed=seed)
    early, late = attack.least(steps) > 0, attack.least() > 0
    gained = int((early & ~late).sum())
    passed = not surely_above(gained, len(images), TOLERANCE)
    return Finding(
        check="converged",
        passed=passed,
        figures={
            f"accuracy after {steps} steps": float(early.float().mean()),
            f"accuracy after {2 * steps} steps": float(late.float().mean()),
            "n": len(images),
        },
        means="more steps change nothing" if passed else "the attack has not converged: accuracy still falls",
        remedy="" if passed else "double the steps until accuracy no longer falls, and add restarts",
    )


def settled(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int, seed: int = 0, craft: Craft = trace
) -> Finding:
    """Fail if over 2 % of images are not broken, but would be if their loss went on as in the last quarter.

    The loss is the margin. The attack has twice the steps, and the loss is extrapolated by as many again. A loss that
    still moves does not matter if the image is broken already, or its margin is too large to be crossed at that rate.

    Source: Pintor et al. (2022), incomplete optimization.
    Differs: theirs fails if the rescaled loss falls by more than 1 % in the last ten steps, whatever it would reach.
    """
    attack = craft(model, images, labels, eps=eps, steps=2 * steps, seed=seed)
    quarter = max(1, steps // 2)
    end = attack.least()
    drop = attack.least(2 * steps - quarter) - end
    moving = int(((end > 0) & (end - drop * 2 * steps / quarter <= 0)).sum())
    passed = not surely_above(moving, len(images), TOLERANCE)
    return Finding(
        check="settled",
        passed=passed,
        figures={"not broken": int((end > 0).sum()), "of these about to be broken": moving, "n": len(images)},
        means="the loss no longer moves towards more errors" if passed else "the loss still moves when the steps end",
        remedy="" if passed else "more steps, another step size, or APGD, which adapts it",
    )


def one_step(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int, seed: int = 0, craft: Craft = trace
) -> Finding:
    """Fail unless the iterative attack leaves most images a smaller margin than FGSM does.

    "Most" is surely above one half. Margins are compared, since a robust model has few errors to compare.

    Source: Athalye et al. (2018), section 3.1; Carlini et al. (2019).
    """
    attack = craft(model, images, labels, eps=eps, steps=2 * steps, seed=seed).least()
    single = margin(model, fgsm(model, images, labels, eps=eps, seed=seed), labels, seed=seed)
    closer = int((attack < single).sum())
    passed = surely_above(closer, len(images), 0.5)
    return Finding(
        check="one_step",
        passed=passed,
        figures={
            "smaller margin": closer,
            "accuracy FGSM": float((single > 0).float().mean()),
            "accuracy PGD": float((attack > 0).float().mean()),
            "n": len(images),
        },
        means="many steps beat one"
        if passed
        else "one step does as well as many: the gradient misleads the later steps",
        remedy="" if passed else "look for gradients that are masked, noisy or right only at the image itself",
    )
