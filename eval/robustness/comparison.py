"""Many defences over their strengths on identical adversarial examples: one resumable run, tables and curves.

A run writes into its folder `config.json` and `probe.json`, by which it is known again, one record per image, attack
and setting to `records.jsonl` as it is made, and at its end `table.csv`, `table.json`, `paired.csv`, `roc.csv`,
`curves.png` and `roc.png`. Killed, it goes on where it was. Methods, attacks and radii may be added. The attacks know
the bare classifier alone: no figure here is robustness against an adaptive attack.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from dipdefense.defence.logits import check_logits
from dipdefense.digest import configuration_hash
from eval.datasets import ImageDataset
from eval.intervals import tango, wilson
from eval.probe import probe, probe_images
from eval.records import Record, Run, made_with, write_whole
from eval.robustness.compared_defences import Method, Setting, Verdict
from eval.robustness.comparison_plots import save_curves, save_rocs
from eval.robustness.config import RunConfig, check_run, craft, describe_attacks, describe_subject, identify
from eval.robustness.detection import detection_table

__all__ = ["accuracy_table", "benchmark_defence", "paired_table"]

KEY = ("config", "attack", "eps", "method", "strength", "setting", "index", "image")
GROUP = ["method", "strength", "attack", "eps"]
# parts of the description that may change, and mappings that may gain entries, when a run is continued
FREE, GROWS = ("attacks", "eps", "methods", "hash"), ("attack_code", "settings")


def benchmark_defence(
    classifier: nn.Module,
    dataset: ImageDataset,
    methods: Sequence[Method],
    config: RunConfig | None = None,
    *,
    out: str | Path,
    eps: Sequence[float] | None = None,
    baseline: Setting | tuple[str, float] | None = None,
    classifier_name: str | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Score methods on clean images and on those crafted on the bare classifier, the same for all.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), in eval mode, on `device`.
        dataset: labelled images.
        methods: what is compared, see `eval.robustness.compared_defences.Method`.
        config: attacks, images and seed; `RunConfig()` if None.
        out: folder of the run, made if missing.
        eps: radii of the attacks; that of `config` alone if None.
        baseline: the setting that all others are compared with in `paired.csv`; the first if None.
        classifier_name: for config.json; the class name if None.
        device: where the classifier is and the images go.
        progress: called with (records made, records in all) after every batch and attack.

    Returns:
        The table, see `accuracy_table`.

    Raises:
        ValueError: no method, two of one setting, a baseline that is none of them, attacks that are targeted or
            crafted on the defended model, a method whose logits or scores are not finite or not (B, K) and (B,), and
            what `evaluate_robustness` refuses of classifier, data set, numbers and folder.
        OSError: the folder cannot be written.
    """
    config = config or RunConfig()
    radii = (config.eps,) if eps is None else tuple(eps)
    settings = _checked_settings(methods)
    against = settings[0] if baseline is None else Setting(*baseline)
    if against not in settings:
        raise ValueError(f"baseline must be a setting of the methods, such as {tuple(settings[0])}, got {baseline}")
    if config.crafted_on != "bare" or config.targeted:
        raise ValueError("config must have untargeted attacks, crafted on the bare classifier")
    plan = _plan(config, radii)
    check_run(classifier, dataset, config, device)
    described = _description(classifier, classifier_name, dataset, methods, config, radii, device)
    answers = probe(classifier, probe_images(dataset).to(device))
    run = Run(out, KEY, described, free=FREE, grows=GROWS, probes={"classifier": answers})
    run.begin()
    folder = run.folder
    records = _run(classifier, dataset, methods, plan, run, described, device, progress)
    table = accuracy_table(records)
    roc = detection_table(records)
    write_whole(folder / "table.csv", table.to_csv(index=False))
    write_whole(folder / "table.json", table.to_json(orient="records", indent=2) + "\n")
    write_whole(folder / "paired.csv", paired_table(records, against).to_csv(index=False))
    write_whole(folder / "roc.csv", roc.to_csv(index=False))
    if config.attacks:
        shown = "pgd" if "pgd" in config.attacks else config.attacks[-1]
        save_curves(folder / "curves.png", table, shown)
        save_rocs(folder / "roc.png", records, roc, shown)
    return table


def accuracy_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per method, strength, attack and eps, in the order of the records; the interval is Wilson's at 95 %.

    Columns `method, strength, attack, eps, n, accuracy, ci_low, ci_high, seconds_per_image`.
    """
    rows = []
    for key, group in pd.DataFrame(list(records)).groupby(GROUP, sort=False):
        low, high = wilson(int(group["correct"].sum()), len(group))
        rows.append((*key, len(group), group["correct"].mean(), low, high, group["seconds"].mean()))
    return pd.DataFrame(rows, columns=[*GROUP, "n", "accuracy", "ci_low", "ci_high", "seconds_per_image"])


def paired_table(records: Iterable[Record], baseline: Setting) -> pd.DataFrame:
    """Accuracy minus that of the baseline on the same images, with Tango's 95 % score interval.

    Columns `method, strength, attack, eps, against, against_strength, n, difference, ci_low, ci_high`.
    """
    frame, rows = pd.DataFrame(list(records)), []
    for (attack, eps), group in frame.groupby(["attack", "eps"], sort=False):
        right: dict[Any, pd.Series[bool]] = {
            setting: rows_of.set_index("index")["correct"] for setting, rows_of in group.groupby(GROUP[:2], sort=False)
        }
        base = right[baseline]
        for setting, correct in right.items():
            if setting == baseline:
                continue
            found = tango(correct.reindex(base.index), base)
            rows.append((*setting, attack, eps, baseline.method, float(baseline.strength), len(base), *found))
    columns = [*GROUP, "against", "against_strength", "n", "difference", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


def _checked_settings(methods: Sequence[Method]) -> list[Setting]:
    settings = [setting for method in methods for setting in method.settings]
    if not settings:
        raise ValueError("methods must be at least one, got none")
    twice = next((setting for setting in settings if settings.count(setting) > 1), None)
    if twice is not None:
        raise ValueError(f"methods must have each setting once, got {tuple(twice)} twice")
    return settings


def _plan(config: RunConfig, radii: Sequence[float]) -> list[tuple[str, RunConfig]]:
    """(attack, numbers of it), the clean images first."""
    for name, several in (("eps", radii), ("attacks", config.attacks)):
        if len(set(several)) < len(several):
            raise ValueError(f"{name} must each stand once, got {', '.join(map(str, several))}")
    if not radii:
        raise ValueError("eps must be one or more radii, got none")
    attacked = [(attack, replace(config, eps=float(eps))) for attack in config.attacks for eps in radii]
    return [("clean", replace(config, eps=0.0)), *attacked]


def _description(
    classifier: nn.Module,
    classifier_name: str | None,
    dataset: ImageDataset,
    methods: Sequence[Method],
    config: RunConfig,
    radii: Sequence[float],
    device: str | torch.device,
) -> dict[str, Any]:
    """All that the figures depend on, in plain values; `hash` names what all records share."""
    example = dataset.batch([0])
    shared = {
        "run": "benchmark defence",
        **{name: value for name, value in asdict(config).items() if name not in ("attacks", "eps")},
        **describe_subject(classifier, classifier_name, dataset),
        "device": str(device),
        **made_with("dipdefense", "torch", "torchattacks", "scikit-image"),
    }
    settings = {
        _title(s): {**s._asdict(), **method.describe(s, example)} for method in methods for s in method.settings
    }
    return {
        **shared,
        "attacks": list(config.attacks),
        "attack_code": describe_attacks(config.attacks),
        "eps": list(radii),
        "hash": configuration_hash(shared),
        "methods": list(settings),
        "settings": settings,
    }


def _title(setting: Setting) -> str:
    return f"{setting.method} {float(setting.strength)}"


def _run(
    classifier: nn.Module,
    dataset: ImageDataset,
    methods: Sequence[Method],
    plan: Sequence[tuple[str, RunConfig]],
    run: Run,
    described: dict[str, Any],
    device: str | torch.device,
    progress: Callable[[int, int], None] | None,
) -> list[Record]:
    """All records of the plan, making those that are missing."""
    config, records = plan[0][1], list[Record]()
    digests = {Setting(d["method"], d["strength"]): configuration_hash(d) for d in described["settings"].values()}
    total = config.n * len(plan) * len(digests)
    order = dataset.first(config.n, config.seed)
    for positions in order.split(config.batch_size):  # type: ignore[no-untyped-call]
        images, labels = dataset.batch(positions.tolist()), dataset.labels[positions]
        rows = identify(images, labels, dataset.index[positions])
        images, labels = images.to(device), labels.to(device)
        for attack, numbers in plan:
            shared = {"config": described["hash"], "attack": attack, "eps": numbers.eps}
            heads = {s: [{**shared, **s._asdict(), "setting": digests[s], **row} for row in rows] for s in digests}
            missing = [m for m in methods if run.missing(head for s in m.settings for head in heads[s])]
            if missing:
                attacked = images if attack == "clean" else craft(attack, classifier, images, labels, numbers)
                facts = _facts(classifier, images, attacked, labels)
                for method in missing:
                    run.add(run.missing(_judge(method, attacked, labels, facts, heads)))
            records += run.records(head for named in heads.values() for head in named)
            if missing and progress is not None:
                progress(len(records), total)
    return records


@torch.no_grad()
def _facts(classifier: nn.Module, clean: Tensor, attacked: Tensor, labels: Tensor) -> list[Record]:
    """The label, and whether the attack fooled the bare classifier: right on the clean image, wrong on this one."""
    fooled = (classifier(clean).argmax(1) == labels) & (classifier(attacked).argmax(1) != labels)
    return [{"label": y, "fooled": f} for y, f in zip(labels.tolist(), fooled.tolist(), strict=True)]


@torch.no_grad()
def _judge(
    method: Method, images: Tensor, labels: Tensor, facts: list[Record], heads: dict[Setting, list[Record]]
) -> list[Record]:
    """One record per image and setting of a method."""
    records = []
    for setting, verdict in method(images).items():
        _check(setting, verdict, len(images))
        predictions = verdict.logits.argmax(1).tolist()
        scores = [None] * len(images) if verdict.scores is None else verdict.scores.tolist()
        seconds = round(verdict.seconds / len(images), 6)
        for head, fact, label, prediction, score in zip(
            heads[setting], facts, labels.tolist(), predictions, scores, strict=True
        ):
            judged = {"prediction": prediction, "correct": prediction == label, "score": score, "seconds": seconds}
            records.append(head | fact | judged)
    return records


def _check(setting: Setting, verdict: Verdict, n: int) -> None:
    logits, scores = verdict.logits, verdict.scores
    check_logits(logits, n, setting.method)
    if scores is not None and (scores.shape != (n,) or not scores.isfinite().all()):
        raise ValueError(f"{setting.method} must give finite scores (B,) or None, got shape {tuple(scores.shape)}")
