"""The command `dipdefense evaluate`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from dipdefense.cli import options
from dipdefense.cli.output import note, print_accuracies, progress_bar

__all__ = ["evaluate"]


@options.fields_as_options
def evaluate(
    subject: options.Subject = options.ON_DIGITS,
    config: options.ConfigFile = None,
    decision: options.DecisionName = None,
    tile: options.Tile = None,
    smooth: options.Smooth = None,
    filters: Annotated[str, options.defence_option(help="Comma-separated cheap filters to compare with.")] = "",
    attacks: options.Attacks = None,
    norm: options.Norm = "linf",
    eps: options.Eps = "8/255",
    steps: options.AttackSteps = 20,
    crafted_on: Annotated[
        str, options.attack_option(help="bare, defended or both; both:32 attacks 32 of the images through the defence.")
    ] = "bare",
    n: options.Count = 100,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 64,
    device: options.DeviceOrCluster = "cpu",
    gallery: Annotated[int, options.run_option(help="Images whose fits `dipdefense report` shows frame by frame.")] = 0,
    out: options.RunFolder = Path("runs/evaluate"),
) -> None:
    """Measure the accuracy of a classifier, bare and defended, on clean and attacked images.

    Attacks that do not know the defence make it look strong. Judge it by dipdefense ladder alone.
    """
    from eval.robustness.config import RunConfig
    from eval.robustness.run_spec import RunSpec

    where, cluster = options.device_or_cluster(device)
    crafted_on, n_defended = _crafted_on(crafted_on)
    sigma, votes = (None, 1) if smooth is None else options.smoothing(smooth)
    spec = RunSpec(
        **vars(subject) | {"index": options.index_range(subject.index)},
        config=RunConfig(
            attacks=None if attacks is None else options.names(attacks),
            norm=norm,
            eps=options.number("eps", eps),
            steps=steps,
            crafted_on=crafted_on,
            n=n,
            n_defended=n_defended,
            seed=seed,
            batch_size=batch_size,
        ),
        fit=options.fit_config(config),
        tile=tile,
        decision=decision,
        sigma=sigma,
        votes=votes,
        filters=tuple(options.names(filters)),
    )
    if not 0 <= gallery <= n:
        raise ValueError(f"gallery must lie between 0 and the {n} images of the run, got {gallery}")
    with progress_bar("records") as progress:
        if cluster is None:
            from eval.robustness.evaluate import evaluate as run

            table = run(spec.evaluation(where), out, progress=progress)
        else:
            from eval.robustness.distributed import evaluate_shards

            table = evaluate_shards(spec, out=out, cluster=cluster, progress=progress)
    if gallery:  # made on this machine
        from eval.robustness.gallery import gallery_of_run

        with progress_bar("gallery") as progress:
            gallery_of_run(out, *spec.load(where), spec.config, n=gallery, device=where, progress=progress)
    print_accuracies(table)
    for line in _distortions(table):
        note(line)
    note(f"table and records: {out}")


def _distortions(table: Any) -> Iterator[str]:
    """What each minimum-norm attack changed an image by: one line for each, of the images that it changed."""
    rows = table[table["eps"].isna()].drop_duplicates(["attack", "crafted_on"])
    for row in rows.itertuples():
        yield f"{row.attack}, crafted on {row.crafted_on}: median L2 {row.l2:.3f}, median Linf {row.linf:.4f}"


def _crafted_on(text: str) -> tuple[str, int | None]:
    """What attacks are crafted on, and how many images on the defended model; None if that is not given."""
    kind, colon, count = text.partition(":")
    if colon and (not count.isdecimal() or kind == "bare"):
        raise ValueError(f"crafted_on must be bare, defended, both, or such as both:32, got {text!r}")
    return kind, int(count) if colon else None
