"""Claims of the course report about the defence along a fit: what is learned first, and when images are right."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attacks import pgd
from dipdefense import Progress, defence_for, fit
from eval.claims.bench import Bench
from eval.claims.claim import Outcome, holds
from eval.claims.experiments.named_attacks import cifar
from eval.intervals import wilson
from eval.metrics import psnr
from eval.records import Record

__all__ = ["EXPERIMENTS"]

IMAGES, ITERATIONS, EVERY = 32, 300, 20
EPS = 8 / 255
PROTOCOL = (
    "CIFAR-10, ResNet-20, {n} images, PGD of 20 steps at Linf 8/255 on the bare classifier; the fit that was tuned for "
    "one reconstruction, run for {iterations} iterations. Classifier, data, attack and iteration are not stated. The "
    "report says nothing of an attacker who knows the defence, who wins (docs/robustness.md)."
)


def _along(bench: Bench) -> list[Record]:
    """Accuracy, PSNR and the share of the perturbation, for every twentieth iteration."""
    own = defence_for((3, 32, 32), decision="last").fit
    config = bench.fit(replace(own, iterations=ITERATIONS, stopping="fixed", stopping_options={}))
    every = min(EVERY, config.iterations)

    def measure() -> list[Record]:
        net, clean, labels = cifar(bench, IMAGES)
        attacked = pgd(net, clean, labels, eps=EPS, seed=bench.settings.seed)
        both, averages = torch.cat([clean, attacked]), dict[int, Tensor]()

        def watch(state: Progress) -> None:
            if state.iteration % every == 0:
                averages.setdefault(state.iteration, torch.zeros_like(both))[state.index] = state.average

        fit(both, config, seed=bench.settings.seed, callback=watch)
        with torch.no_grad():
            bare = float((net(attacked).argmax(1) == labels).float().mean())
            return [{"iteration": 0, "attacked": bare}] + [
                {"iteration": iteration} | _scores(net, images, clean, attacked, labels)
                for iteration, images in sorted(averages.items())
            ]

    rows: list[Record] = bench.once("perturbation along a fit", {"iterations": config.iterations, "n": IMAGES}, measure)
    return rows


def _scores(net: torch.nn.Module, averages: Tensor, clean: Tensor, attacked: Tensor, labels: Tensor) -> Record:
    """`share_of_delta` is its share in the difference of both results, <f(x + delta) - f(x), delta> / |delta|^2."""
    of_clean, of_attacked = averages.chunk(2)
    delta = (attacked - clean).flatten(1)
    share = ((of_attacked - of_clean).flatten(1) * delta).sum(1) / delta.square().sum(1)
    row: Record = {"share_of_delta": share.mean().item()}
    for name, images in (("clean", of_clean), ("attacked", of_attacked)):
        right = int((net(images).argmax(1) == labels).sum())
        low, high = wilson(right, len(labels))
        row |= {name: right / len(labels), f"{name}_low": low, f"{name}_high": high}
        row |= {f"psnr_{name}": psnr(images, clean).mean().item()}
    return row


def right_early(bench: Bench) -> Outcome:
    """S0-1."""
    bare, *rows = _along(bench)
    best, last = max(rows, key=lambda row: row["attacked"]), rows[-1]
    return Outcome(
        verdict=holds(best["attacked_low"] > bare["attacked"], best["attacked"] > last["attacked"]),
        protocol=PROTOCOL.format(n=IMAGES, iterations=last["iteration"]),
        ours=f"attacked images right: bare {100 * bare['attacked']:.0f} %, at iteration {best['iteration']} "
        f"{100 * best['attacked']:.0f} % ({100 * best['attacked_low']:.0f} to {100 * best['attacked_high']:.0f}), at "
        f"{last['iteration']} {100 * last['attacked']:.0f} %",
        n=IMAGES,
        why="Reproduced if the Wilson interval at the best iteration, chosen on the same images, lies above the bare "
        "accuracy, and fewer images are right at the end.",
        table=[bare, *rows],
    )


def two_stages(bench: Bench) -> Outcome:
    """S0-2."""
    _, *rows = _along(bench)
    best, last = max(rows, key=lambda row: row["attacked"]), rows[-1]
    return Outcome(
        verdict=holds(best["share_of_delta"] < last["share_of_delta"] / 2, best["attacked"] > last["attacked"]),
        protocol=PROTOCOL.format(n=IMAGES, iterations=last["iteration"]),
        ours=f"share of the perturbation in the reconstruction: {best['share_of_delta']:.2f} at iteration "
        f"{best['iteration']}, where most attacked images are right, and {last['share_of_delta']:.2f} at "
        f"{last['iteration']}",
        n=IMAGES,
        why="Reproduced if at the best iteration the share is less than half of that at the end.",
        table=rows,
    )


EXPERIMENTS: dict[str, Callable[[Bench], Outcome]] = {"S0-1": right_early, "S0-2": two_stages}
