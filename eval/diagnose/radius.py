"""Checks over the radius of the ball."""

from itertools import pairwise

from torch import Tensor, nn

from eval.diagnose.attack_convergence import Craft
from eval.diagnose.attack_trace import margin, query, trace
from eval.diagnose.finding import Figure, Finding, surely_above

__all__ = ["monotone", "unbounded"]

GREY = 0.5  # Linf radius within which every image can be made uniform grey, so that nothing is left to recognise


def monotone(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int, seed: int = 0, craft: Craft = trace
) -> Finding:
    """Fail where accuracy rises from one radius of 0, eps / 2, eps, 2 eps to the next.

    Paired (McNemar): of the images broken at only one of two radii, surely more than half are broken at the smaller.

    Source: Carlini et al. (2019).
    """
    radii = (eps / 2, eps, 2 * eps)
    correct = [margin(model, images, labels, seed=seed) > 0]
    for radius in radii:
        longest = 2 * steps if radius == eps else steps
        correct.append(craft(model, images, labels, eps=radius, steps=longest, seed=seed).least(steps) > 0)
    risen = any(
        surely_above(int((larger & ~smaller).sum()), int((larger ^ smaller).sum()), 0.5)
        for smaller, larger in pairwise(correct)
    )
    figures: dict[str, Figure] = {
        f"accuracy at {e:.4g}": float(s.float().mean()) for e, s in zip((0, *radii), correct, strict=True)
    }
    return Finding(
        check="monotone",
        passed=not risen,
        figures=figures | {"n": len(images)},
        means="accuracy rises with the radius" if risen else "a larger ball costs more accuracy",
        remedy="the attack fails on larger balls, which contain the smaller: correct its step size or steps"
        if risen
        else "",
    )


def unbounded(
    model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, seed: int = 0, craft: Craft = trace
) -> Finding:
    """Fail where accuracy at Linf 0.5 is surely above 1 / K: there every image can be made uniform grey.

    Source: Athalye et al. (2018), section 3.1; Pintor et al. (2022), unconstrained attack failure.
    """
    K = query(model, images[:1], seed).shape[1]
    attack = craft(model, images, labels, eps=GREY, steps=steps, seed=seed).least()
    standing = int((attack > 0).sum())
    passed = not surely_above(standing, len(images), 1 / K)
    return Finding(
        check="unbounded",
        passed=passed,
        figures={"accuracy at 0.5": standing / len(images), "accuracy by chance": 1 / K, "n": len(images)},
        means="accuracy falls to chance where every image can be made uniform grey"
        if passed
        else "images are still classified correctly that could have been made uniform grey",
        remedy="" if passed else "the attack fails, so accuracy under it shows no robustness: correct its gradient",
    )
