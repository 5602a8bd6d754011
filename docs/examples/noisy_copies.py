"""How often single noisy copies of images are classified right, behind purifiers of `certify` and the fit alone.

python docs/examples/noisy_copies.py DATA SIGMA INDEX N SEED, with the folder of images and weights, the std of the
noise, a range of CIFAR-10 such as 1000: or :1000, the number of images, and the seed of their choice and of the noise.
One copy of each image; its answer is the mean softmax over the reconstruction and its mirror image, for all purifiers.
The rivals are purifiers of `certify`, with its strengths; the fit alone is as it was before the filters, at sigma 0.12.
Intervals are of 95 %, and differences are paired.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from dipdefense import Purifier
from dipdefense.defence.presets import smoothing_defence_for
from dipdefense.defence.smoothing import gaussian_draws
from eval.certification.purifiers_by_name import purifier_named
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.intervals import tango, wilson

RIVALS = ("cosine", "total_variation", "non_local_means", "jpeg")
data, sigma, index = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
n, seed = map(int, sys.argv[4:])
low, high = (int(end) if end else None for end in index.split(":"))
dataset = load_dataset("cifar10", data / "cifar10" / "test.npz").between(low, high)
classifier = load_classifier("cifar_resnet20", data / "weights" / "cifar10_resnet20.pt")
position = dataset.first(n, seed)
images, labels = dataset.batch(position.tolist()), dataset.labels[position]
noisy = torch.stack([x + sigma * gaussian_draws(x, seed, range(1))[0] for x in images]).clamp(0, 1)
fit = smoothing_defence_for(tuple(images.shape[1:]), sigma).fit


@torch.no_grad()
def right(*reconstructions):
    """Which images the mean softmax over reconstructions and their mirror images gets right."""
    shown = [view for images in reconstructions for view in (images, images.flip(3))]
    return (sum(classifier(view).softmax(1) for view in shown).argmax(1) == labels).numpy()


rights = {
    "fit and filters (dip)": right(Purifier(fit, sigma=sigma)(noisy)),
    "fit alone, iterations 100 and 120": right(*Purifier(replace(fit, iterations=120)).trajectory(noisy, (100, 120))),
    **{name: right(purifier_named(name, sigma)(noisy)) for name in RIVALS},
    "none": right(noisy),
    "none, without noise": right(images),
}
default = rights["fit and filters (dip)"]
for name, found in rights.items():
    share, *ends = (f"{100 * value:.1f}" for value in (found.mean(), *wilson(int(found.sum()), n)))
    print(f"{name}: {share} % right ({' to '.join(ends)})", end="")
    less, *bounds = (f"{100 * value:+.1f}" for value in tango(default, found))
    print("" if found is default else f", dip minus it {less} ({' to '.join(bounds)})")
