"""The command `dipdefense adapt`."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from dipdefense.arguments import check_known
from dipdefense.cli import options
from dipdefense.cli.output import note, print_plain, progress_bar
from dipdefense.defence.adaptation.adapt import adapt as adapted_copy
from dipdefense.defence.adaptation.adapt import noise_levels
from dipdefense.defence.adaptation.agreement import measure_agreement
from dipdefense.defence.adaptation.training_inputs import NoisyCopies
from dipdefense.whole_file import check_writable

__all__ = ["adapt"]

ON_TRAINING_DIGITS = options.Subject(dataset="digits_train")
HELD_OUT = 10  # one of so many images is not trained on


@options.fields_as_options
def adapt(
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="File of the weights, such as w.safetensors.")],
    subject: options.Subject = ON_TRAINING_DIGITS,
    sigma: Annotated[
        str, options.defence_option(help="Standard deviation of the noise, or several: 0.12 or 0,31/255.")
    ] = "0.12",
    purifier: Annotated[
        str, options.defence_option(help="dip, or another purifier of the command certify: its reconstructions.")
    ] = "dip",
    copies: Annotated[int, options.defence_option(help="Noisy copies of each image; each is one fit.")] = 1,
    mirror: options.Mirror = True,
    layers: Annotated[
        str, options.run_option(help="What is trained, from cheap to dear: batch_norm, last or all.")
    ] = "all",
    epochs: Annotated[int, options.run_option(help="Passes over all reconstructions and images.")] = 20,
    lr: Annotated[float, options.run_option(help="Step size of Adam at the start; it falls to 0.")] = 3e-4,
    batch: Annotated[int, options.run_option(help="Reconstructions and images of a step.")] = 64,
    eps: options.Eps = "0",
    steps: options.AttackSteps = 7,
    n: options.Count = 1000,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    checkpoint: options.CheckpointFile = None,
) -> None:
    """Teach a classifier, without labels, to read reconstructions; write weights that --weights of any command takes.

    With --eps it learns on inputs that are perturbed within this Linf radius. The last tenth of the n images is not
    trained on: on it the command counts how often reconstructions get the class of the bare classifier.
    """
    from eval.certification.purifiers_by_name import PURIFIERS, TOLD, purifier_named
    from eval.classifiers import write_weights
    from eval.text_tables import percent

    if target.suffix != ".safetensors":
        raise ValueError(f"OUTPUT must end in .safetensors, got {target}")
    if target.is_dir():
        raise IsADirectoryError(f"OUTPUT must be a file, {target} is a folder")
    check_known("purifier", purifier, PURIFIERS)
    if n < 3:
        raise ValueError(f"n must be at least 3, of which one is held out, got {n}")
    levels = noise_levels([options.number("sigma", level) for level in options.names(sigma)])
    if purifier in TOLD and (len(levels) > 1 or not levels[0]):
        raise ValueError(f"sigma must be one level above 0 for the purifier {purifier}, which is told it, got {sigma}")
    purify = purifier_named(purifier, levels[0])
    dataset, classifier = subject.load(options.device_named(device))
    positions = dataset.first(n, seed).tolist()
    if len(positions) < n:
        raise ValueError(f"n must be at most the {len(dataset)} images of {subject.dataset} {subject.index}, got {n}")
    check_writable(target)  # before the work
    images = dataset.batch(positions).to(options.device_named(device))
    held_out = max(1, n // HELD_OUT)
    learning: dict[str, Any] = {
        **{"sigma": levels, "layers": layers, "epochs": epochs, "lr": lr, "batch": batch, "copies": copies},
        **{"eps": options.number("eps", eps), "attack_steps": steps, "mirror": mirror, "seed": seed},
    }
    with ExitStack() as bars:
        student = adapted_copy(
            classifier,
            images[:-held_out],
            **learning,
            purify=purify,
            callback=_bar_by_stage(bars),
            checkpoint=checkpoint,
        )
    data = {
        "classifier": subject.classifier,
        "dataset": subject.dataset,
        "index": subject.index,
        "size": subject.size,
        "n": n,
        "held_out": held_out,
    }
    write_weights(student, target, subject.classifier, {**learning, "purifier": purifier, **data})
    noisy = NoisyCopies(levels, copies, seed, purify)
    with progress_bar("held-out reconstructions") as progress:
        agreement = measure_agreement(classifier, student, images[-held_out:], noisy, progress)
    bare, adapted, clean = (f"{percent(share)} %" for share in agreement)
    print_plain({"weights": str(target), "held_out": held_out, **agreement._asdict()})
    note(
        f"same class as the bare classifier's of the image, {held_out} held-out images: reconstructions {bare} before, "
        f"{adapted} after; images without noise 100 % before, {clean} after"
    )
    note(f"weights: {target}; use them: --classifier {subject.classifier} --weights {target}")


def _bar_by_stage(bars: ExitStack) -> Callable[[str, int, int, float | None], None]:
    """A callback of `dipdefense.adapt` that shows each stage in a bar of its own, the first from now on."""
    current, progress = "reconstructions", bars.enter_context(progress_bar("reconstructions"))

    def report(stage: str, done: int, total: int, loss: float | None) -> None:
        nonlocal current, progress
        if stage != current:
            bars.close()
            current, progress = stage, bars.enter_context(progress_bar(stage))
        progress(done, total)

    return report
