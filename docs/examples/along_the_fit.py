"""The two pictures of the README: one photograph along its fit, and accuracy along the fits to CIFAR-10.

python docs/examples/along_the_fit.py DATA FOLDER [N]

DATA holds `weights/imagenet_squeezenet1_0.pt`, `weights/cifar10_resnet20.pt`, `cifar10/test.npz` and
`imagenet/class_names.txt`. The photograph is the cup of coffee of scikit-image; N is how many images of CIFAR-10 with
index below 1000 are fitted, 256 if it is left out.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage import data
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop, resize

import dipdefense
from attacks import momentum_pgd
from dipdefense.defence.evidence import classify_view
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.fits.accuracy_along_fit import accuracy_along_fit
from eval.robustness.config import RunConfig

EPS = 4 / 255  # of the attack on the photograph
SHOWN = (5, 30, 60)  # iterations
LAST = 150  # iteration of the plot; the default stops sooner


@torch.no_grad()
def show(axis: Axes, heading: str, image: Tensor, classifier: nn.Module, label: int, names: Sequence[str]) -> None:
    """An image (1, 3, H, W), and under it the classes that the classifier reads in it and in its small mirror image."""
    axis.imshow(image[0].permute(1, 2, 0).numpy())
    axis.set_title(heading, fontsize=10)
    axis.set(xticks=[], yticks=[])
    for line, (view, said) in enumerate((("identity", "read as"), ("small_mirror", "mirrored, smaller:"))):
        guess = int(classify_view(classifier, image, view).argmax())
        colour = "tab:green" if guess == label else "tab:red"
        axis.text(
            0.5,
            -0.09 * (line + 1),
            f"{said} {names[guess]}",
            color=colour,
            ha="center",
            fontsize=9,
            transform=axis.transAxes,
        )


def photograph_along_its_fit(folder: Path, out: Path) -> None:
    """A photograph and its reconstructions, clean and attacked, each with the classes that the classifier reads."""
    classifier = load_classifier("torchvision:squeezenet1_0", folder / "weights" / "imagenet_squeezenet1_0.pt")
    by_index = json.loads((folder / "imagenet" / "class_names.txt").read_text(encoding="utf-8"))
    names = [by_index[str(index)].split(",")[0] for index in range(len(by_index))]
    photograph = torch.from_numpy(data.coffee()).permute(2, 0, 1)[None] / 255  # (1, 3, 400, 600)
    clean = center_crop(resize(photograph, 256, antialias=True), [224, 224]).clamp(0, 1)
    with torch.no_grad():
        labels = classifier(clean).argmax(1)
    inputs = {
        "photograph": clean,
        f"attacked, {round(EPS * 255)}/255": momentum_pgd(classifier, clean, labels, eps=EPS),
    }
    defended, defence = dipdefense.defend(classifier), dipdefense.defence_for(tuple(clean.shape[1:]))
    purifier = dipdefense.Purifier(replace(defence.fit, iterations=SHOWN[-1]), tile=defence.tile)
    figure = Figure(figsize=(9.6, 6), facecolor="white")
    figure.subplots_adjust(left=0.01, right=0.96, top=0.95, bottom=0.09, wspace=0.04, hspace=0.36)
    axes = figure.subplots(len(inputs), len(SHOWN) + 1)
    for row, (title, image) in zip(axes, inputs.items(), strict=True):
        headings = (title, *(f"iteration {iteration}" for iteration in SHOWN))
        for axis, heading, shown in zip(row, headings, (image, *purifier.trajectory(image, SHOWN)), strict=True):
            show(axis, heading, shown, classifier, int(labels), names)
        judged = defended.judge(image)
        answer = f"defended: {names[int(judged.logits.argmax())]}, score {judged.scores.item():.2f}"
        row[-1].set_ylabel(answer, fontsize=10)
        row[-1].yaxis.set_label_position("right")
        print(f"{title}: {answer}")
    figure.savefig(out, dpi=90, pil_kwargs={"quality": 88})


def accuracy_along_fits(folder: Path, n: int, out: Path) -> None:
    """Accuracy of the reconstruction at each iteration, of clean and of attacked images."""
    classifier = load_classifier("cifar_resnet20", folder / "weights" / "cifar10_resnet20.pt")
    images = load_dataset("cifar10", folder / "cifar10" / "test.npz").between(None, 1000)
    defence = dipdefense.defence_for((3, 32, 32))
    settings = RunConfig(attacks=("pgd",), eps=8 / 255, n=n)
    table = accuracy_along_fit(classifier, images, settings, replace(defence.fit, iterations=LAST), every=5)
    figure = Figure(figsize=(7, 3.4), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for name, rows in table.groupby("attack", sort=False):
        label = "clean" if name == "clean" else "attacked (PGD, 8/255)"
        (line,) = axis.plot(rows["iteration"], 100 * rows["accuracy"], label=label)
        low, high = 100 * rows["ci_low"], 100 * rows["ci_high"]
        axis.fill_between(rows["iteration"], low, high, color=line.get_color(), alpha=0.2)
    first, *_, last = defence.decision.iterations_of(defence.fit.iterations)
    axis.axvspan(first, last, color="grey", alpha=0.3, label="classified by the default")
    axis.set(xlabel="iteration of the fit", ylabel="right, %", ylim=(0, 100), xlim=(0, LAST))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower center")
    figure.savefig(out, dpi=110)
    for name, rows in table.groupby("attack", sort=False):
        right = rows.set_index("iteration")["accuracy"]
        at = {iteration: f"{100 * right[iteration]:.1f}" for iteration in (5, int(right.idxmax()), right.index[-1])}
        print(f"{name}: {', '.join(f'{share} % right at iteration {t}' for t, share in at.items())}; n = {n}")


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    photograph_along_its_fit(source, target / "along_the_fit.jpg")
    accuracy_along_fits(source, int(sys.argv[3]) if sys.argv[3:] else 256, target / "accuracy_along_fit.png")
