"""The command `dipdefense check`."""

from dataclasses import asdict
from typing import Annotated

import typer

from dipdefense.check.check_classifier import check_classifier
from dipdefense.cli import options
from dipdefense.cli.output import note, print_plain

__all__ = ["check"]


def check(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A classifier, as `evaluate --classifier` takes it.")],
    weights: options.Weights = None,
    shape: Annotated[
        str | None, typer.Option(help="C,H,W of its images; the first that it accepts by default.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Labelled images, which show its input range with certainty.")
    ] = None,
    data: options.DataPath = None,
    size: options.Size = None,
    n: Annotated[int, typer.Option(help="Images of --dataset.")] = 128,
    device: options.Device = "cpu",
) -> None:
    """Look for what keeps a classifier from being defended, or attacked at full strength, and say what to change.

    A fault is certain and ends in exit code 1; a doubt is a heuristic, and can be wrong.
    """
    from eval.classifiers import load_classifier
    from eval.datasets import load_dataset

    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    where = options.device_named(device)
    images = labels = None
    if dataset is not None:
        named = load_dataset(dataset, data, size=size)
        chosen = named.first(n, 0)
        images, labels = named.batch(chosen.tolist()), named.labels[chosen]
    net = load_classifier(spec, weights).to(where)
    found = check_classifier(net, _sides(shape), images=images, labels=labels)
    for fault in found.faults:
        kind = "fault" if fault.certain else "doubt"
        note(f"{kind}, {fault.name}: {fault.message}")
    sides = " x ".join(map(str, found.shape))
    verdict = "" if found.faults else "no fault found, "
    note(f"{verdict}checked with images of {sides}")
    print_plain({"shape": found.shape, "faults": [asdict(fault) for fault in found.faults]})
    if any(fault.certain for fault in found.faults):
        raise typer.Exit(1)


def _sides(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        C, H, W = (int(side) for side in text.split(","))
    except ValueError:
        raise ValueError(f"shape must be C,H,W, such as 3,32,32, got {text!r}") from None
    return C, H, W
