"""The one default: fit, decision and tile by an image's shape; docs/defence.md holds the measurements behind it."""

import math
import warnings
from dataclasses import dataclass, replace

from torch import nn

from dipdefense.arguments import check_positive
from dipdefense.defence.decisions import (
    DECISIONS,
    Decision,
    DetectorGated,
    LastReconstruction,
    MeanSoftmax,
    known_decision,
)
from dipdefense.defence.detector import Detector
from dipdefense.defence.evidence import FULL_SIZE, REMEDY, UNMIRRORED, refusal_of_view
from dipdefense.fitting.config import FitConfig

__all__ = ["Defence", "default_config", "default_defence", "defence_for", "smoothing_defence_for"]

# Without skip connections the fit reproduces the strokes of a digit in the first iterations, and a perturbation as
# strong as a stroke soon after.
GREY = FitConfig(architecture_options={"channels": [16, 32, 64], "skip_channels": 0}, iterations=60)
# Nearest upsampling needs half the iterations of bilinear, and lets less of the perturbation through until then. The
# average over about two iterates removes the noise of the jitter.
COLOUR = FitConfig(
    architecture_options={"channels": [16, 32, 64], "skip_channels": 4, "upsampling": "nearest"},
    iterations=110,
    ema=0.5,
)
# For several reconstructions along a fit. With half the channels the perturbation passes later. From the learned start
# they come after a quarter of the iterations that a random one needs.
TRAJECTORY = FitConfig(
    architecture_options={"channels": [8, 16, 32], "skip_channels": 4, "upsampling": "nearest"},
    start="learned",
    iterations=45,
    lr=0.02,
    ema=0.5,
)
GATED = DetectorGated(
    iterations=(35, 40, 45),
    views=("mirror",),
    detector=Detector(iteration=45, bias=-1.78, doubt=0.67, left=8.59, drawn=-7.76),
    threshold=0.4,
)
SMALL = 32  # side in pixels; GATED was learnt on such images, and larger images are cut into tiles of this side
# A perturbation is made for one size, so it has even less effect in a smaller view than in a mirrored one.
LARGE = DetectorGated(
    iterations=(20, 25, 30),
    views=("small_mirror",),
    detector=Detector(iteration=30, bias=-46.41, doubt=0.24, left=11.62, drawn=-17.84, quiet=0.05),
    threshold=0.2,
)
LARGE_FIT = replace(TRAJECTORY, iterations=30)
# Under Gaussian noise of sigma, for smoothing: how many iterations the fit has. Filters that are told sigma then
# refine it. docs/guarantees.md holds the measurements.
NOISY_FIT = replace(TRAJECTORY, start="random", lr=0.01)
NOISY_ITERATIONS = {0.06: 40, 0.12: 80, 0.25: 80}
TILE = 64  # side in pixels if one reconstruction is classified; these small networks are slow on larger images


@dataclass(frozen=True)
class Defence:
    """The settings of a defence for images of one shape."""

    fit: FitConfig
    decision: Decision
    tile: int | None  # side in pixels of the tiles that larger images are cut into; None: no tiles


def defence_for(
    shape: tuple[int, ...],
    classifier: nn.Module | None = None,
    *,
    decision: str | Decision | None = None,
    mirror: bool = True,
    fit: FitConfig | None = None,
) -> Defence:
    """The defence for images of shape (C, H, W), used by `defend`, `Purifier`, the commands and the benchmarks.

    Args:
        shape: of the images; it depends on their sides, and on whether they are grey.
        classifier: the one that is defended. If it does not accept images of the size of a view, as a vision
            transformer does not, the view of full size replaces that view, with a warning. None: accepts any size.
        decision: a name in `DECISIONS` gives the decision that was tuned for this shape, with its detector and fit. A
            decision of your own gets the default fit. None: the default.
        mirror: whether an image keeps its class when mirrored. If False, for digits or text, no view is mirrored.
        fit: settings of your own, for which no decision was tuned. The decision is then `LastReconstruction`, or the
            named one without arguments, and images are not cut into tiles. "detector_gated" is refused, since its
            detector holds for the default fit alone.

    Raises:
        TypeError: the decision is neither a decision nor a name.
        ValueError: a shape that is not three positive integers; an unknown name, or one for which nothing was tuned at
            this shape; a decision of your own with mirrored views although `mirror` is False, or with views that the
            classifier does not accept.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (C, H, W), three positive integers, got {tuple(shape)}")
    decision = None if decision is None else known_decision(decision)
    if fit is not None:
        chosen = DECISIONS[decision]() if isinstance(decision, str) else decision or LastReconstruction()
        if isinstance(decision, str) and chosen.gated:
            raise ValueError(
                f"decision must be a DetectorGated with a detector that was learnt on your fit, got {decision!r}, "
                "whose threshold and detector hold for the default fit alone"
            )
        defence = Defence(fit, chosen, None)
    elif decision is None or isinstance(decision, str):
        defence = _tuned_by_name(shape, decision)
    else:
        defence = _tuned_by_name(shape, None if decision.iterations_of(1) else "last")
        defence = replace(defence, decision=decision)
    own = not (decision is None or isinstance(decision, str))
    if not mirror:
        defence = _without_mirror(defence, own)
    return defence if classifier is None else _of_sizes_taken(defence, own, shape, classifier)


def _tuned_by_name(shape: tuple[int, ...], name: str | None) -> Defence:
    if shape[-3] == 1:
        tuned = {"last": Defence(GREY, LastReconstruction(), TILE)}
    else:
        config, gated = (LARGE_FIT, LARGE) if max(shape[-2:]) > SMALL else (TRAJECTORY, GATED)
        mean = MeanSoftmax(gated.iterations, gated.restarts, gated.views, gated.detector)
        tuned = {
            "detector_gated": Defence(config, gated, SMALL),
            "mean_softmax": Defence(config, mean, SMALL),
            "last": Defence(COLOUR, LastReconstruction(), TILE),
        }
    if name is None:
        return next(iter(tuned.values()))
    if name not in tuned:
        raise ValueError(
            f"decision must be {' or '.join(tuned)} for images of shape {tuple(shape)}, for which no other was tuned, "
            f"got {name!r}: leave it out, or give a decision and a fit with your own settings"
        )
    return tuned[name]


def _without_mirror(defence: Defence, own: bool) -> Defence:
    decision = defence.decision
    views = tuple(dict.fromkeys(UNMIRRORED.get(view, view) for view in decision.views))
    if views == decision.views:
        return defence
    if own:
        raise ValueError(f"decision must have no mirrored view where mirror is False, got {decision.views}")
    assert isinstance(decision, MeanSoftmax)  # all others classify the identity alone
    return replace(defence, decision=replace(decision, views=views))


def _of_sizes_taken(defence: Defence, own: bool, shape: tuple[int, ...], classifier: nn.Module) -> Defence:
    decision, views = defence.decision, []
    for view in decision.views:
        refusal = refusal_of_view(classifier, shape, view)
        if refusal is not None and own:
            raise ValueError(f"{refusal}: {REMEDY}")
        if refusal is not None:
            warnings.warn(
                f"{refusal}: the default defence classifies the view {FULL_SIZE[view]!r} in its place, which keeps "
                "more of a perturbation; let the classifier's first layer resize to have the smaller view",
                stacklevel=3,
            )
        views.append(view if refusal is None else FULL_SIZE[view])
    if tuple(views) == decision.views:
        return defence
    assert isinstance(decision, MeanSoftmax)  # all others classify the identity alone
    return replace(defence, decision=replace(decision, views=tuple(dict.fromkeys(views))))


def smoothing_defence_for(shape: tuple[int, ...], sigma: float, *, mirror: bool = True) -> Defence:
    """The defence of the noisy copies of images of shape (C, H, W), used by `smooth` and `certify`.

    It is for a `Purifier` that is told sigma, whose filters bring back the detail that the fit lacks. Its iterations
    were chosen for sigma 0.06, 0.12 and 0.25 on colour images of 32 pixels a side; another sigma gets those of the
    nearest by ratio. Nothing was chosen for grey images, whose noisy copies get the default fit.

    Raises:
        ValueError: as `defence_for`; a sigma that is not positive.
    """
    check_positive("sigma", sigma)
    default = defence_for(shape, decision="last")
    if shape[-3] == 1:
        return default
    iterations = NOISY_ITERATIONS[min(NOISY_ITERATIONS, key=lambda tuned: abs(math.log(tuned / sigma)))]
    views = ("identity", "mirror") if mirror else ("identity",)
    return Defence(replace(NOISY_FIT, iterations=iterations), MeanSoftmax((iterations,), views=views), SMALL)


def default_config(shape: tuple[int, ...]) -> FitConfig:
    """Deprecated: the fit of `defence_for(shape, decision="last")`."""
    return defence_for(shape[-3:], decision="last").fit


def default_defence(shape: tuple[int, ...]) -> tuple[FitConfig, Decision, int | None]:
    """Deprecated: the fit, the decision and the tile of `defence_for(shape)`."""
    defence = defence_for(shape[-3:])
    return defence.fit, defence.decision, defence.tile
