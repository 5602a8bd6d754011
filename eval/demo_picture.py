"""A picture of the effect of a defence: clean, adversarial, change and purified images, with predictions."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

__all__ = ["save_comparison"]

CHANGE_GAIN = 10
CHANGE = f"change x{CHANGE_GAIN}"  # the column of the perturbation


@torch.no_grad()
def save_comparison(
    path: str | Path,
    classifier: nn.Module,
    images: dict[str, Tensor],
    labels: Tensor,
    class_names: Sequence[str],
) -> None:
    """Save a grid with one row for each image; the columns are clean, adversarial, change x10, purified.

    Args:
        path: PNG file.
        classifier: its predictions are shown under the images, correct ones green, wrong ones red.
        images: `clean`, `adversarial` and `purified`, each (B, C, H, W) in [0, 1].
        labels: (B,) true classes.
        class_names: of all classes.
    """
    predictions = {name: classifier(batch).argmax(1).tolist() for name, batch in images.items()}
    change = (0.5 + CHANGE_GAIN * (images["adversarial"] - images["clean"])).clamp(0, 1)  # grey = unchanged
    columns = {
        "clean": images["clean"],
        "adversarial": images["adversarial"],
        CHANGE: change,
        "purified": images["purified"],
    }
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(1.7 * len(columns), 1.95 * len(labels)), layout="constrained")
        axes = figure.subplots(len(labels), len(columns), squeeze=False)
        for column, (name, batch) in enumerate(columns.items()):
            axes[0, column].set_title(name)
            for row, label in enumerate(labels.tolist()):
                axis = axes[row, column]
                axis.imshow(batch[row].permute(1, 2, 0).squeeze(-1).cpu().numpy(), cmap="gray", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                if name in predictions:
                    guess = predictions[name][row]
                    colour = "tab:green" if guess == label else "tab:red"
                    axis.set_xlabel(f"read as {class_names[guess]}", color=colour)
        figure.savefig(path, dpi=150)
