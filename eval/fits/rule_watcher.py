"""A callback that measures every iterate of a fit, and runs stopping rules on it that do not end the fit."""

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dipdefense import STOPPING_RULES, Progress
from dipdefense.stopping import Iterate, StoppingRule
from eval.cost import clock
from eval.metrics import psnr

__all__ = ["Watch", "build", "plain_name"]


class Watch:
    """The PSNR of the result of a fit at each iteration, and the iteration that each rule would have chosen.

    Args:
        clean: reference, (N, C, H, W) in [0, 1].
        noisy: the fitted images, same shape; the fit has no operator, and its own rule is `fixed`.
        rules: keys of `STOPPING_RULES`, with `:LABEL` if a key is used twice, and their options.
        iterations: of the fit.
    """

    def __init__(self, clean: Tensor, noisy: Tensor, rules: Mapping[str, Mapping[str, Any]], iterations: int):
        self.clean, self.noisy, self.rules = clean, noisy, rules
        self.psnr = torch.full((len(clean), iterations), -torch.inf)  # of the moving average, in dB
        self.chosen = {rule: torch.zeros(len(clean), dtype=torch.long, device=clean.device) for rule in rules}
        self.end = {rule: torch.zeros_like(chosen) for rule, chosen in self.chosen.items()}  # 0: not yet
        self.seconds = dict.fromkeys(rules, 0.0)
        self.inside = 0.0  # seconds of all calls
        self.panels: dict[int, tuple[Tensor, dict[str, StoppingRule]]] = {}  # worker -> images of its chunk, rules

    @torch.no_grad()
    def __call__(self, state: Progress) -> None:
        """See `fit`: the workers call this one at a time."""
        start = clock(self.clean.device)
        index, number = state.index, state.iteration
        panel = self._panel(state)
        self.psnr[index.cpu(), number - 1] = psnr(state.average, self.clean[index]).float().cpu()
        for name, rule in panel.items():
            begin = clock(self.clean.device)
            iterate = Iterate(state.output, state.average, self.noisy[index], state.sane, lambda images: images)
            better, done = rule.observe(iterate)
            self.seconds[name] += clock(self.clean.device) - begin
            chosen, end = self.chosen[name][index], self.end[name][index]
            self.chosen[name][index] = torch.where(better & (end == 0), number, chosen)
            self.end[name][index] = torch.where(done & (end == 0), number, end)
        self.inside += clock(self.clean.device) - start

    def _panel(self, state: Progress) -> dict[str, StoppingRule]:
        """The rules of this worker's chunk, new at its first iteration, without the images that have ended."""
        worker, index = threading.get_ident(), state.index
        if state.iteration == 1:
            rules = {name: build(name, options) for name, options in self.rules.items()}
            for name, rule in rules.items():
                rule.prepare(self.noisy[index], torch.Generator().manual_seed(0))  # only its time matters here
                self.chosen[name][index] = self.end[name][index] = 0  # a chunk that ran out of memory begins again
            self.panels[worker] = index, rules
        before, rules = self.panels[worker]
        if len(before) > len(index):
            for rule in rules.values():
                rule.keep(torch.isin(before, index))
            self.panels[worker] = index, rules
        return rules

    def verdict(self, rule: str, rows: Tensor) -> list[tuple[int, float, int | None]]:
        """For the images at `rows`: chosen iterate, its PSNR, and iterations from there to the rule's end, or None."""
        chosen, end = self.chosen[rule].cpu()[rows], self.end[rule].cpu()[rows]
        past = [int(e - c) if e else None for c, e in zip(chosen, end, strict=True)]
        return list(zip(chosen.tolist(), self.psnr[rows, chosen - 1].tolist(), past, strict=True))

    def overhead(self, rule: str, seconds: float) -> float:
        """Seconds in the rule per second of a fit of `seconds` in all; workers waited for each other here."""
        return self.seconds[rule] / max(len(self.panels) * (seconds - self.inside), 1e-9)


def plain_name(rule: str) -> str:
    """`wmv` for `wmv:short`; the label after the colon distinguishes two settings of one rule."""
    return rule.partition(":")[0]


def build(rule: str, options: Mapping[str, Any]) -> StoppingRule:
    """A new rule of this name."""
    return STOPPING_RULES[plain_name(rule)](**options)
