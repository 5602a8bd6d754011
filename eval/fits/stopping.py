"""Compare stopping rules with the best iterate of the same fit, on images under known noise.

A run writes its description to `config.json`, one record per image, noise, level and rule to `records.jsonl` as it is
made, and `summary.csv` at its end. A killed run is continued by the same call. Rules, noises, levels and images may be
added.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dipdefense import STOPPING_RULES, FitConfig, fit
from dipdefense.digest import configuration_hash
from dipdefense.image_tensors import check_images
from dipdefense.stopping import StoppingRule
from eval.fits.rule_watcher import Watch, build, plain_name
from eval.intervals import paired_bootstrap
from eval.metrics import psnr
from eval.noise import LEVELS, NOISES, generator_of
from eval.records import Record, Run, digest, made_with, write_whole

__all__ = ["benchmark_stopping", "summarise_stopping"]

Rules = Mapping[str, Mapping[str, Any]]  # a key of STOPPING_RULES, perhaps with :LABEL -> its options
PAST_ORACLE = 3  # a fit is long enough if it ran to this multiple of its best iterate


def benchmark_stopping(
    images: Sequence[tuple[str, Tensor]],
    rules: Rules,
    config: FitConfig,
    *,
    noises: Sequence[str] = tuple(LEVELS),
    levels: Sequence[str] = ("low", "medium", "high"),
    longest: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    device: str | torch.device = "cpu",
    out: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Fit noisy images once, run every rule on the same iterates, and compare its choice with the best iterate.

    A rule that changes the fitted pixels gets a separate fit, and is compared with the best iterate of the plain one. A
    rule whose option `sigma` is not given gets the root mean square of the noise of all `images`, which is not known
    outside a benchmark.

    Args:
        images: (name, (3, H, W) in [0, 1]) of one shape; no name twice.
        rules: the rules, with their options; `wmv:LABEL` is one more setting of `wmv`.
        config: settings of the fits; its own rule must be `fixed`.
        noises: keys of `LEVELS`.
        levels: keys of `LEVELS[noise]`.
        longest: a fit whose best iterate lies beyond a third of it is repeated with twice the iterations, at most this
            many; never if None.
        batch_size: images fitted together; records are written after each such batch.
        seed: of noise and fits.
        device: where the fits are computed.
        out: folder of the run, made if missing.
        progress: called with (records made, records in all) after every batch.

    Returns:
        The table of `summarise_stopping`, also in `out`.

    Raises:
        ValueError: an unknown name, bad options of a rule, a rule that needs more iterations, images of several shapes
            or with equal names, a folder that holds another run.
        OSError: the folder cannot be written.
    """
    longest = config.iterations if longest is None else longest
    _check(images, rules, config, noises, levels, longest, batch_size)
    clean = torch.stack([image for _, image in images])
    cells = {
        (noise, level): _with_measured_sigma(rules, images, noise, level, seed) for noise in noises for level in levels
    }
    settings = {"fit": dataclasses.asdict(config), "longest": longest, "seed": seed, "device": str(device)}
    settings |= made_with("dipdefense", "torch")
    described = {
        "run": "benchmark stopping",
        **settings,
        "rules": {
            f"{rule} under {noise} noise, {level}": dict(options)
            for (noise, level), informed in cells.items()
            for rule, options in informed.items()
        },
        "images": {name: digest(image) for name, image in images},
    }
    key = ("config", "noise", "level", "image", "pixels")
    run, records = Run(out, key, described, grows=("rules", "images")), list[Record]()
    run.begin()
    total = len(cells) * len(images) * len(rules)
    for (noise, level), informed in cells.items():
        noisy = _all_noisy(images, noise, level, seed)
        heads = {rule: _heads(rule, options, images, noise, level, settings) for rule, options in informed.items()}
        missing = [i for i in range(len(images)) if run.missing(rows[i] for rows in heads.values())]
        for start in range(0, len(missing), batch_size):
            here = missing[start : start + batch_size]
            scored = _score(clean[here].to(device), noisy[here].to(device), informed, config, longest, seed)
            run.add(run.missing(heads[rule][here[i]] | score for i, rule, score in scored))
            if progress is not None:
                waiting = len(missing) - start - len(here)
                progress(len(records) + (len(images) - waiting) * len(rules), total)
        records += run.records(head for rows in heads.values() for head in rows)
    table = summarise_stopping(records)
    write_whole(run.folder / "summary.csv", table.to_csv(index=False))
    run.end()
    return table


def summarise_stopping(records: Sequence[Record]) -> pd.DataFrame:
    """One row per rule, over all noises and levels, then one per rule, noise and level.

    Columns: `rule, noise, level, n` (fits); `gap` in dB (PSNR of the best iterate minus that of the chosen one) with
    `ci_low, ci_high`, a 95 % bootstrap interval over images, where an image counts with its mean over noises and
    levels; `gap_max`; `past_mean, past_max` (iterations from the chosen one to the end, for fits that the rule ended);
    `unfinished` (fits that it did not end); `too_short` (fits that did not run to three times the best iterate);
    `overhead` (seconds in the rule per second of the fit).
    """
    frame = pd.DataFrame(list(records))
    frame["past"] = frame["past"].astype(float)  # empty where the rule never ended the fit
    rows = [_summary(group) | {"rule": rule} for rule, group in frame.groupby("rule", sort=False)]
    for (rule, noise, level), group in frame.groupby(["rule", "noise", "level"], sort=False):
        rows.append(_summary(group) | {"rule": rule, "noise": noise, "level": level})
    return pd.DataFrame(rows)[["rule", *_summary(frame)]]


def _summary(group: pd.DataFrame) -> dict[str, Any]:
    by_image = group.groupby("image", sort=False)[["oracle_psnr", "psnr"]].mean().to_numpy()
    gap, low, high = float(by_image[:, 0].mean() - by_image[:, 1].mean()), float("nan"), float("nan")
    if len(by_image) > 1:  # a single image has no interval
        gap, low, high = paired_bootstrap(by_image[:, 0], by_image[:, 1])
    return {
        "noise": "all",
        "level": "all",
        "n": len(group),
        "gap": gap,
        "ci_low": low,
        "ci_high": high,
        "gap_max": group["gap"].max(),
        "past_mean": group["past"].mean(),
        "past_max": group["past"].max(),
        "unfinished": int((~group["finished"]).sum()),
        "too_short": int((~group["long_enough"]).sum()),
        "overhead": group["overhead"].mean(),
    }


def _score(
    clean: Tensor, noisy: Tensor, rules: Rules, config: FitConfig, longest: int, seed: int
) -> list[tuple[int, str, Record]]:
    """(position, rule, score) of every image and rule; fits that are too short are repeated."""
    scores, left, iterations = [], torch.arange(len(clean)), config.iterations
    own = [rule for rule, options in rules.items() if _changes_the_fit(build(rule, options), noisy)]
    while len(left):
        plain = dataclasses.replace(config, iterations=iterations)
        watch = Watch(clean[left], noisy[left], rules, iterations)
        seconds = fit(noisy[left], plain, seed=seed, callback=watch).seconds
        oracle_psnr, oracle = watch.psnr.max(1)
        oracle += 1
        long_enough = oracle * PAST_ORACLE <= iterations
        last = torch.nonzero(long_enough | torch.tensor(iterations >= longest)).flatten()  # rows of this fit
        for rule, options in rules.items():
            if rule in own:
                settings = dataclasses.replace(plain, stopping=plain_name(rule), stopping_options=dict(options))
                verdict = _verdict_of_a_fit(clean[left[last]], noisy[left[last]], settings, seed)
            else:
                verdict = watch.verdict(rule, last)
            overhead = watch.overhead(rule, seconds)
            for i, (chosen, quality, past) in zip(last.tolist(), verdict, strict=True):
                score = {
                    "iterations": iterations,
                    "long_enough": bool(long_enough[i]),
                    "oracle": int(oracle[i]),
                    "oracle_psnr": float(oracle_psnr[i]),
                    "chosen": chosen,
                    "psnr": quality,
                    "gap": float(oracle_psnr[i]) - quality,
                    "past": past,
                    "finished": past is not None,
                    "overhead": overhead,
                }
                scores.append((int(left[i]), rule, score))
        left = left[~torch.isin(torch.arange(len(left)), last)]
        iterations = min(2 * iterations, longest)
    return scores


def _verdict_of_a_fit(
    clean: Tensor, noisy: Tensor, config: FitConfig, seed: int
) -> list[tuple[int, float, int | None]]:
    """As `Watch.verdict`, for a fit under the rule itself, which the engine ends up to 9 iterations late."""
    if not len(clean):
        return []
    result = fit(noisy, config, seed=seed)
    past = (result.iterations - result.chosen).tolist()
    ends = [p if stopped else None for p, stopped in zip(past, result.stopped.tolist(), strict=True)]
    return list(zip(result.chosen.tolist(), psnr(result.reconstruction, clean).tolist(), ends, strict=True))


def _changes_the_fit(rule: StoppingRule, noisy: Tensor) -> bool:
    target, hidden = rule.prepare(noisy[:1], torch.Generator().manual_seed(0))
    return hidden is not None or not torch.equal(target, noisy[:1])


def _with_sigma(rules: Rules, sigma: float) -> Rules:
    """The options, with the noise level added for the rules that need one and have none."""
    needing = {rule for rule in rules if "sigma" in inspect.signature(STOPPING_RULES[plain_name(rule)]).parameters}
    return {rule: ({"sigma": sigma} if rule in needing else {}) | dict(options) for rule, options in rules.items()}


def _with_measured_sigma(
    rules: Rules, images: Sequence[tuple[str, Tensor]], noise: str, level: str, seed: int
) -> Rules:
    """The options at one noise and level, sigma being the root mean square of the noise of all images."""
    clean = torch.stack([image for _, image in images])
    error = (_all_noisy(images, noise, level, seed) - clean).square().mean().sqrt().item()
    return _with_sigma(rules, round(error, 6))


def _all_noisy(images: Sequence[tuple[str, Tensor]], noise: str, level: str, seed: int) -> Tensor:
    """The noisy images, (N, 3, H, W); each is a function of the image, its name and the seed alone."""
    strength, add = LEVELS[noise][level], NOISES[noise]
    return torch.cat(
        [add(image[None], strength, generator=generator_of(seed, name, noise, level)) for name, image in images]
    )


def _heads(
    rule: str,
    options: Mapping[str, Any],
    images: Sequence[tuple[str, Tensor]],
    noise: str,
    level: str,
    settings: Mapping[str, Any],
) -> list[Record]:
    """The names of the records of all images; `config` is the hash of everything else that they depend on."""
    key = configuration_hash({"rule": rule, "options": dict(options), **settings})
    head = {"config": key, "rule": rule, "options": dict(options), "noise": noise, "level": level}
    return [head | {"image": name, "pixels": digest(image)} for name, image in images]


def _check(
    images: Sequence[tuple[str, Tensor]],
    rules: Rules,
    config: FitConfig,
    noises: Sequence[str],
    levels: Sequence[str],
    longest: int,
    batch_size: int,
) -> None:
    """Raise, before anything is computed, if the run would fail or mislead later."""
    for name, given, known in (
        ("rules", [plain_name(rule) for rule in rules], STOPPING_RULES),
        ("noises", noises, LEVELS),
        ("levels", levels, LEVELS["gaussian"]),
    ):
        if not given or any(one not in known for one in given):
            raise ValueError(f"{name} must be among {', '.join(known)}, got {', '.join(map(str, given)) or 'none'}")
    if not images or len({image.shape for _, image in images}) != 1:
        raise ValueError("images must be at least one, and of one shape: crop them")
    if len({name for name, _ in images}) < len(images):
        raise ValueError("images must have different names")
    for name, image in images:
        check_images(image, name, ndim=3, channels=(3,))
    if config.stopping != "fixed":
        raise ValueError(f"config must stop by the rule fixed, got {config.stopping!r}: name it among the rules")
    if longest < config.iterations:
        raise ValueError(f"longest must be at least the {config.iterations} iterations of the fit, got {longest}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    for rule, options in _with_sigma(rules, 0.1).items():
        dataclasses.replace(config, stopping=plain_name(rule), stopping_options=dict(options))
