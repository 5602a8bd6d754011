"""The candidate results of one fit of the deep image prior: last output, moving average, blind stop, and oracle."""

import torch
from torch import Tensor

from dipdefense import FitConfig, Progress, fit
from eval.fits.rule_watcher import Watch

__all__ = ["CANDIDATES", "ORACLE", "Candidates", "fit_candidates"]

RULE = "blind_discrepancy"
ORACLE = "dip_oracle"  # the only one that uses the reference
CANDIDATES = ("dip", "dip_ema", "dip_blind_stop", ORACLE)


class Candidates:
    """A callback that keeps the candidates of every image of a fit.

    `dip` is the last iterate, `dip_ema` the moving average at the end, `dip_blind_stop` the moving average where the
    rule `blind_discrepancy` stops, and `dip_oracle` the moving average of largest PSNR. Only the last one uses the
    reference.

    Args:
        reference: (N, C, H, W) in [0, 1].
        noisy: the fitted images, same shape.
        iterations: of the fit, whose rule is `fixed`.
    """

    def __init__(self, reference: Tensor, noisy: Tensor, iterations: int):
        self.watch = Watch(reference, noisy, {RULE: {}}, iterations)
        self.images = {name: torch.zeros_like(reference) for name in CANDIDATES}
        self.iteration = {name: torch.zeros(len(noisy), dtype=torch.long) for name in CANDIDATES}

    @torch.no_grad()
    def __call__(self, state: Progress) -> None:
        """See `fit`: the workers call this one at a time."""
        self.watch(state)
        index, number = state.index, state.iteration
        so_far = self.watch.psnr[index.cpu(), :number].to(index.device)
        always = torch.ones_like(index, dtype=torch.bool)
        for name, images, better in (
            ("dip", state.output, always),
            ("dip_ema", state.average, always),
            ("dip_blind_stop", state.average, self.watch.chosen[RULE][index] == number),
            (ORACLE, state.average, so_far.argmax(1) == number - 1),
        ):
            self.images[name][index[better]] = images[better]
            self.iteration[name][index[better].cpu()] = number

    def seconds(self, elapsed: float, iterations: int) -> dict[str, Tensor]:
        """Seconds per image, (N,), of a fit of `elapsed` seconds in all, up to its end or to the blind stop."""
        each = (elapsed - self.watch.inside) / len(self.watch.noisy)
        seconds = {name: torch.full((len(self.watch.noisy),), each) for name in CANDIDATES}
        end = self.watch.end[RULE].cpu()
        seconds["dip_blind_stop"] *= torch.where(end > 0, end, iterations) / iterations
        return seconds


def fit_candidates(
    reference: Tensor, noisy: Tensor, config: FitConfig, seed: int
) -> dict[str, list[tuple[Tensor, float, int]]]:
    """(image (C, H, W), seconds, iteration) of every candidate and image, from one fit.

    Seconds are those of the batch divided by its images, without the time of the callback.
    """
    candidates = Candidates(reference, noisy, config.iterations)
    elapsed = fit(noisy, config, seed=seed, callback=candidates).seconds
    seconds = candidates.seconds(elapsed, config.iterations)
    return {
        name: list(
            zip(candidates.images[name], seconds[name].tolist(), candidates.iteration[name].tolist(), strict=True)
        )
        for name in CANDIDATES
    }
